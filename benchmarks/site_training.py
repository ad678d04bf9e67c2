"""What an attacker may look at: the model that one site's work in one round makes, with or without patient privacy."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from client.dataset import SampleSet
from client.features import inputs_of
from client.local_work import LocalWork
from client.private_work import PrivateWork
from client.records import SiteRecords, SiteSpec
from client.training import make_optimizer
from dipro_model import ClassWeights, DiPro
from federation.initial import initial_model
from federation.settings import RunSettings, load_settings

Train = Callable[[SampleSet], DiPro]
"""Makes a model of a site's samples. Whoever defends them chooses it; the attacks see what comes out."""


def site_training(settings: RunSettings) -> Train:
    """The work of a site in the only round of a run, from the run's initial model, which everybody knows."""

    def train(samples: SampleSet) -> DiPro:
        model = initial_model(settings)
        optimizer, weights = make_optimizer(model, settings), ClassWeights()
        if settings.patient_privacy.enabled:
            work = PrivateWork(settings=settings, server_round=1)
            work.run(model, samples, optimizer, weights, spend=lambda count: None)
        else:
            LocalWork(settings=settings, server_round=1).run(model, samples, optimizer, weights)
        return model

    return train


def quiet() -> None:
    """Let a script not be told for every model that its ResNet is random."""
    logging.getLogger("federation.initial").setLevel(logging.ERROR)


def defences(
    plain: Sequence[str], private: Sequence[str], epsilons: Sequence[float]
) -> dict[float | None, RunSettings]:
    """Settings by epsilon, None without privacy; `private` are those that privacy needs or does best with."""
    found: dict[float | None, RunSettings] = {None: load_settings(overrides=list(plain))}
    for epsilon in epsilons:
        given = ["patient_privacy.enabled=true", f"patient_privacy.epsilon={float(epsilon)}", *private]
        found[epsilon] = load_settings(overrides=[*plain, *given])
    return found


def samples_of(cohort: Path, settings: RunSettings, split: str, subjects: Sequence[int] | None = None) -> SampleSet:
    """The samples of some patients of a cohort, or of all."""
    chosen = None if subjects is None else tuple(subjects)
    records = SiteRecords(SiteSpec(name="site", cohort=cohort, subjects=chosen), crop_pixels=settings.model.crop_pixels)
    return SampleSet([records], settings.task, split, inputs_of([records], initial_model(settings), settings))


def one_thread() -> None:
    """Small models gain nothing by more."""
    torch.set_num_threads(1)
