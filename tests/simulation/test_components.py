"""A trained model as a start for private runs: what it keeps, what of it learns, what is refused."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from client.dataset import DataError
from client.records import SiteSpec
from dipro_fed.main import app
from dipro_model import DiPro
from federation.checkpoint import save_checkpoint
from federation.initial import initial_model, start_agreement
from federation.settings import SettingsError
from federation.trained import Trained, load_trained
from simulation.components import save_start, with_components
from simulation.evaluate import predict
from simulation.train import train
from tests.small_run import federate, small_settings

NUM_COMPONENTS = 3
LAYERS = "model.num_transformer_layers=2"
"""Published networks differ in this by task."""
PRIVATE = (
    LAYERS,
    "model.trained=readout",
    f"model.components={NUM_COMPONENTS}",
    "model.freeze_backbone=true",
    "training.optimizer=sgd",
    "training.schedule=constant",
    "training.batch_norm=frozen",
    "training.accumulated_batches=1",
    "federation.local_work=steps",
    "federation.local_steps=1",
    "federation.check_duplicates=false",
    "patient_privacy.enabled=true",
    "federation.minimum_cell=10",
    "patient_privacy.sampling_rate=1.0",
)


@pytest.fixture(scope="module")
def trained(specs: list[SiteSpec], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("runs") / "public"
    train(specs, small_settings("task=length_of_stay", LAYERS, "training.epochs=1"), folder)
    return load_trained(folder)


@pytest.fixture(scope="module")
def start(specs: list[SiteSpec], trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "start.pt"
    save_start(with_components(specs, trained, NUM_COMPONENTS), path)
    return path


def test_the_file_is_a_model_like_the_one_it_was_made_of(specs: list[SiteSpec], trained: Trained, start: Path) -> None:
    before, after = load_trained(trained.path), load_trained(start)
    assert after.settings.model.trained == "readout"
    ours = after.model.state_dict()
    for name, value in before.model.state_dict().items():
        if not name.startswith("heads."):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    one, other = (predict(specs, each, splits=("train",)).probabilities for each in (before, after))
    assert np.abs(one - other).max() < 0.1  # as near as three components come
    assert np.corrcoef(one[:, 0, 0], other[:, 0, 0])[0, 1] > 0.8


def test_components_have_mean_0_and_variance_1_over_the_patients(specs: list[SiteSpec], start: Path) -> None:
    found = load_trained(start)
    seen: list[torch.Tensor] = []
    found.model.heads[0].components.register_forward_hook(lambda *given: seen.append(given[-1].detach()))
    predict(specs, found, splits=("train",))
    values = torch.cat(seen)
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(NUM_COMPONENTS), rtol=0, atol=1e-3)
    torch.testing.assert_close(values.var(dim=0, correction=0), torch.ones(NUM_COMPONENTS), rtol=0, atol=1e-2)


def test_a_private_run_of_another_outcome_moves_nothing_but_the_linear_head(
    specs: list[SiteSpec], start: Path, tmp_path: Path
) -> None:
    settings = small_settings(*PRIVATE, f"model.start={start}", "federation.rounds=2", "patient_privacy.epsilon=50.0")
    ended = federate(tmp_path, [spec.cohort for spec in specs], settings)
    begun = initial_model(settings).state_dict()
    moved = {name for name, value in ended.items() if not torch.equal(value, begun[name])}
    assert moved == {"heads.0.linear.weight", "heads.0.linear.bias"}


def test_what_does_not_fit_is_refused(specs: list[SiteSpec], trained: Trained, start: Path, tmp_path: Path) -> None:
    base = [each for each in PRIVATE if not each.startswith("model.components")]
    with pytest.raises(ValueError, match=r"with 4 components of 1 class tokens .*dipro-fed components"):
        initial_model(small_settings(*base, "model.components=4", f"model.start={start}"))
    with pytest.raises(ValueError, match=r"found no fitting heads\.0\.components\.weight"):
        initial_model(small_settings(*PRIVATE, f"model.start={trained.path}"))
    with pytest.raises(ValueError, match=r"same parts as the run's, found one that differs in parts.pae;"):
        initial_model(small_settings(*PRIVATE, f"model.start={start}", "parts.pae=false"))
    with pytest.raises(SettingsError, match=r"expected model\.start, a file of `dipro-fed components`, found none"):
        small_settings(*PRIVATE)
    progression = small_settings("task=disease_progression", LAYERS).config()
    other = DiPro(replace(progression, trained="readout", num_components=NUM_COMPONENTS))
    save_checkpoint(tmp_path / "other.pt", other, step=1, settings={})
    with pytest.raises(ValueError, match=r"found no fitting global_fusion\.class_tokens"):
        initial_model(small_settings(*PRIVATE, f"model.start={tmp_path / 'other.pt'}"))
    silent = tmp_path / "silent.pt"
    save_checkpoint(silent, trained.model, step=1, settings=trained.settings.model_dump(mode="json"))
    with pytest.raises(ValueError, match="expected a start that says how it reads values"):
        start_agreement(small_settings(f"model.start={silent}"))
    with pytest.raises(SettingsError, match=r"expected model\.start, because patient_privacy.statistics=start"):
        small_settings(
            "patient_privacy.enabled=true",
            "federation.minimum_cell=10",
            "training.batch_norm=frozen",
            "patient_privacy.statistics=start",
        )
    with pytest.raises(SettingsError, match="statistics=start tells no label counts"):
        small_settings(*PRIVATE, f"model.start={start}", "patient_privacy.statistics=start")
    with pytest.raises(ValueError, match="found one that has components already"):
        with_components(specs, load_trained(start), NUM_COMPONENTS)
    with pytest.raises(DataError, match="expected no such file, found one"):
        save_start(load_trained(start), start)


def test_the_command_writes_the_file(specs: list[SiteSpec], trained: Trained, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    out = tmp_path / "start.pt"
    words = ["components", str(trained.path), *(str(spec.cohort) for spec in specs), "--components", "2"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "who must be public" in done.output
    assert load_trained(out).model.config.num_components == 2


def test_values_are_read_as_the_start_reads_them_and_sites_tell_nothing(
    specs: list[SiteSpec], start: Path, tmp_path: Path
) -> None:
    words = (
        "patient_privacy.statistics=start",
        f"model.start={start}",
        "federation.rounds=1",
        "training.precision=fp32",
    )
    settings = small_settings(*PRIVATE, *words, "training.class_weights=none", "patient_privacy.epsilon=50.0")
    federate(tmp_path, [spec.cohort for spec in specs], settings)
    known, ended = load_trained(start).agreement, load_trained(tmp_path / "checkpoints" / "last.pt").agreement
    assert known is not None
    assert ended is not None
    assert (ended.ehr, ended.demographics) == (known.ehr, known.demographics)
    assert not any(chain.from_iterable(ended.labels.values()))
    assert not any(ended.categories.values())
