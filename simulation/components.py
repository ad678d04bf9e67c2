"""A trained model as a start for private training: its heads become linear ones on components of the class tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from client.dataset import DataError
from client.records import SiteRecords, SiteSpec
from client.statistics import site_statistics
from dipro_model import DiPro
from dipro_model.readout import linear_readout
from federation.agreement import Agreement, agree
from federation.checkpoint import save_checkpoint
from federation.settings import RunSettings
from federation.trained import Trained
from simulation.evaluate import predict


def with_components(
    specs: Sequence[SiteSpec], trained: Trained, num_components: int, *, device: str = "auto"
) -> Trained:
    """The model with linear heads, each on the principal components of its class token over all training patients.

    A new head is the nearest linear one to that which it replaces. A model that read each cohort's own z-scores reads
    from now on those of all these training patients together. What the patients are like becomes part of the model:
    they must be public wherever the model is to protect somebody.

    Raises DataError where no site has a sample of the model's task in its training split, ValueError where the tokens
    vary in fewer directions.
    """
    settings, config = trained.settings, trained.model.config
    if config.trained == "readout":
        raise ValueError(f"{trained.path}: expected a model with its own heads, found one that has components already")
    trained = replace(trained, agreement=trained.agreement or _agreement(specs, settings))
    with _seen(trained.model.heads) as seen:
        predict(specs, trained, splits=("train",), device=device)
    backbone = replace(config.backbone, freeze=True)
    model = DiPro(replace(config, backbone=backbone, trained="readout", num_components=num_components))
    own = {name: value for name, value in trained.model.state_dict().items() if not name.startswith("heads.")}
    model.load_state_dict(own, strict=False)
    for place, (tokens, logits) in enumerate(seen):
        model.heads[place] = linear_readout(torch.cat(tokens), torch.cat(logits), num_components)
    told = {"trained": "readout", "components": num_components, "freeze_backbone": True, "start": str(trained.path)}
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=told)})
    return replace(trained, model=model, settings=settings)


def save_start(start: Trained, path: Path) -> None:
    """Write what `with_components` made. Raises DataError where there is such a file."""
    if path.exists():
        raise DataError(f"{path}: expected no such file, found one; choose another name")
    assert start.agreement is not None, "made with one"
    settings, agreement = start.settings.model_dump(mode="json"), start.agreement.to_json()
    save_checkpoint(path, start.model, step=start.step or 0, settings=settings, agreement=agreement)


def _agreement(specs: Sequence[SiteSpec], settings: RunSettings) -> Agreement:
    sites = [SiteRecords(spec, crop_pixels=settings.model.crop_pixels) for spec in specs]
    minimum = settings.federation.minimum_cell
    return agree([site_statistics(site, settings.task, minimum_cell=minimum) for site in sites])


@contextmanager
def _seen(heads: nn.ModuleList) -> Iterator[list[tuple[list[Tensor], list[Tensor]]]]:
    """What each head is given and gives while this lasts: [stay, width] and [stay, class] of each batch."""
    seen: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in heads]
    hooks = [head.register_forward_hook(_keeper(*kept)) for head, kept in zip(heads, seen, strict=True)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(tokens: list[Tensor], logits: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def keep(head: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        tokens.append(given[0].detach().float().cpu())
        logits.append(result.detach().float().cpu())

    return keep
