"""The settings of patient-level differential privacy at the sites, and what they come to."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from federation.accounting import Accountant, Answers, noise_for
from federation.sections import FederationSettings, Section

if TYPE_CHECKING:
    from federation.settings import RunSettings

LEAST_CELL = 10
"""Patients behind each number about validation patients, which the guarantee does not cover."""


_TAKES_MORE = {
    "scaffold": "sends control variates beside the weights, which would leave without noise",
    "qfedavg": "weighs sites by their training losses, which do not leave",
}
"""Strategies that take more of the sites than noised weights, and what that is."""


class PatientPrivacySettings(Section):
    """Whether what leaves a site hides any one of its training patients; docs/privacy.md says from whom."""

    enabled: bool = False
    """Train by DP-SGD (Abadi et al. 2016) with the patient as its unit: whoever sees all that leaves in training can
    hardly tell whether any one took part. Not covered: validation patients' metrics, numbers of samples."""
    epsilon: Annotated[float, Field(gt=0)] = 8.0
    """What the run may spend of each training patient's privacy; smaller hides more: 1 is strong, 10 is little."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Chance that epsilon does not hold; must be below 1 over the training patients of each site."""
    noise_multiplier: Literal["solved"] | Annotated[float, Field(gt=0)] = "solved"
    """Standard deviation of the noise over `clip`; `solved` is the least with which all rounds keep epsilon."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Longest gradient of a patient; longer ones are shortened to it."""
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Chance of each training patient to be in a step, drawn anew for every step; takes the place of batch sizes."""
    gradients: Literal["vmap", "microbatches"] = "microbatches"
    """How each patient's own gradient is computed: one after the other, or several together, with the same result."""
    patients_at_once: Annotated[int, Field(ge=1)] = 16
    """vmap: patients whose gradients are in memory together, each as large as the trained part of the model."""
    statistics: Literal["noised", "public", "start"] = "noised"
    """Statistics that the sites agree on: noised, within the same epsilon; as they are, taken for public; or none of
    theirs, but those by which the public model `model.start` reads values, which `dipro-fed components` writes."""
    statistics_noise: Annotated[float, Field(gt=0)] = 10.0
    """noised: standard deviation of the noise over the most that a patient adds to the statistics."""
    accountant: Accountant = "prv"
    """prv composes numerically and is tight; rdp is looser."""

    @property
    def told_statistics(self) -> Literal["noised", "public", "start"]:
        """Which statistics a site tells; without privacy its own."""
        return self.statistics if self.enabled else "public"

    def steps_a_round(self, federation: FederationSettings) -> int:
        """Steps of a site's work in a round."""
        if federation.local_work == "steps":
            return federation.local_steps
        return max(1, math.ceil(federation.local_epochs / self.sampling_rate))

    def statistics_answers(self) -> list[Answers]:
        """What the statistics of a site spend of the budget."""
        if self.statistics != "noised":
            return []
        return [Answers(noise_multiplier=self.statistics_noise, sampling_rate=1.0, count=1)]

    def answers(self, noise: float, count: int) -> Answers:
        """What so many steps with this noise multiplier spend of the budget."""
        return Answers(noise_multiplier=noise, sampling_rate=self.sampling_rate, count=count)

    def noise(self, federation: FederationSettings) -> float:
        """The noise multiplier. Raises BudgetError where none keeps the budget."""
        if self.noise_multiplier != "solved":
            return self.noise_multiplier
        return noise_for(
            self.epsilon,
            self.delta,
            sampling_rate=self.sampling_rate,
            count=self.steps_a_round(federation) * federation.rounds,
            besides=tuple(self.statistics_answers()),
            accountant=self.accountant,
        )


def require_guarantee(settings: "RunSettings") -> None:
    """Raises ValueError, naming the setting and why, where these settings would give no guarantee."""
    privacy, training, federation = settings.patient_privacy, settings.training, settings.federation
    if not privacy.enabled:
        return
    name = settings.strategy.name
    faults = {
        "training.batch_norm=frozen, because batch norm in training mode mixes patients of a batch": (
            training.batch_norm != "frozen" and f"training.batch_norm={training.batch_norm}"
        ),
        "federation.local_work=epochs or steps, because what is done in a time depends on the patients": (
            federation.local_work == "seconds" and "federation.local_work=seconds"
        ),
        f"a strategy that takes nothing of the sites but weights, because {name} {_TAKES_MORE.get(name)}": (
            name in _TAKES_MORE and f"strategy.name={name}"
        ),
        "strategy.recalibrate=false, because batch norm's statistics would leave without noise": (
            settings.strategy.recalibrate and "strategy.recalibrate=true"
        ),
        "personal.method=none, because a personal model's scores would leave, and it is trained without noise": (
            settings.personal.method != "none" and f"personal.method={settings.personal.method}"
        ),
        f"federation.minimum_cell={LEAST_CELL} or more, because smaller counts tell of single patients": (
            federation.minimum_cell < LEAST_CELL and f"federation.minimum_cell={federation.minimum_cell}"
        ),
        "federation.check_duplicates=false, because hashes of identifiers tell who is a patient": (
            federation.check_duplicates and "federation.check_duplicates=true"
        ),
        "model.start, because patient_privacy.statistics=start takes those of the model that it names": (
            privacy.statistics == "start" and not settings.model.start and "none"
        ),
        "training.class_weights=none or published, because patient_privacy.statistics=start tells no label counts": (
            privacy.statistics == "start"
            and training.class_weights == "balanced"
            and f"training.class_weights={training.class_weights}"
        ),
        "federation.common_batch=false, because the guarantee is for Poisson samples of the patients, whose size "
        "patient_privacy.sampling_rate says": (federation.common_batch and "federation.common_batch=true"),
        "training.accumulated_batches=1, because the guarantee is for Poisson samples of the patients, whose size "
        "patient_privacy.sampling_rate says": (
            training.accumulated_batches != 1 and f"training.accumulated_batches={training.accumulated_batches}"
        ),
    }
    if found := next(((expected, value) for expected, value in faults.items() if value), None):
        raise ValueError(f"patient_privacy.enabled=true: expected {found[0]}; found {found[1]}")
