"""Random stays and small networks for the model's tests."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jaxtyping
import pytest
import torch

from dipro_model import BackboneConfig, DiPro, DiProConfig, Stay
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, REGIONS, Task


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_stay(
    *, frames: int = 3, steps: int = 6, seed: int = 0, task: Task = Task.MORTALITY, pixels: int = 16, channels: int = 1
) -> Stay:
    """A stay with radiographs at random times between hours 0 and 12, in float64 where not bytes."""
    draw = torch.Generator().manual_seed(seed)
    taken = (12 * torch.rand(frames, generator=draw, dtype=torch.float64)).sort().values
    labels = {
        Task.DISEASE_PROGRESSION: torch.randint(0, 4, (len(DISEASES),), generator=draw),
        Task.MORTALITY: torch.randint(0, 2, (), generator=draw),
        Task.LENGTH_OF_STAY: torch.randint(0, 4, (), generator=draw),
    }
    return Stay(
        regions=torch.randint(
            0, 256, (frames, len(REGIONS), channels, pixels, pixels), generator=draw, dtype=torch.uint8
        ),
        ehr=torch.randn(steps, len(EHR_VARIABLES), generator=draw, dtype=torch.float64),
        ehr_hours=torch.arange(steps, dtype=torch.float64),
        intervals=torch.stack([taken[:-1], taken[1:]], dim=-1),
        demographics=torch.randn(len(DEMOGRAPHICS), generator=draw, dtype=torch.float64),
        label=labels[task],
        region_progression=torch.randint(0, 4, (frames - 1, len(REGIONS), len(DISEASES)), generator=draw),
    )


def small_model(task: Task, *, seed: int = 0, num_fusion_layers: int = 1, channels: int = 8) -> DiPro:
    """A narrow network in float64 evaluation mode whose batch norms have statistics other than 0 and 1."""
    torch.manual_seed(seed)
    config = replace(
        DiProConfig.published(task, backbone=BackboneConfig(depth=10, channels=channels)),
        width=16,
        num_groups=3,
        num_heads=2,
        num_fusion_layers=num_fusion_layers,
    )
    model = DiPro(config).double()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """As users run it: what the tests' own checks of types and shapes would refuse first comes through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def make_stay() -> Callable[..., Stay]:
    return random_stay


@pytest.fixture(scope="session")
def make_model() -> Callable[..., DiPro]:
    return small_model
