"""A site's own say, in a file that the server cannot reach: what may be asked of it, when, and what may leave."""

from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from client.privacy_ledger import Budget
from dipro_model.vocabulary import Task
from federation.settings import RunSettings


class PolicyError(ValueError):
    """What a site's policy does not allow, or a policy that cannot be read: then nothing is allowed."""


class SitePolicy(BaseModel):
    """What one site allows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tasks: tuple[Task, ...] = tuple(Task)
    """Tasks that the site trains and scores."""
    minimum_patients: Annotated[int, Field(ge=1)] = 1
    """Training patients that the site must have itself, so that no model is of a few."""
    minimum_cell: Annotated[int, Field(ge=1)] = 10
    """The run's `federation.minimum_cell` must be this or more."""
    metrics: Literal["all"] | tuple[str, ...] = "all"
    """Metrics of the site's own patients that leave; others are undefined to the server. The counts behind the metrics
    of all patients together leave by the minimum cell."""
    hours: tuple[str, ...] = ()
    """Times of the day, by this machine's clock, within which it works, such as 20:00-06:00; none is all day."""
    summed_sites: Annotated[int, Field(ge=0)] = 0
    """An update leaves only in a sum of so many sites or more (`secure_aggregation`); 0 lets it leave alone."""
    gpu_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a GPU's memory that the site's process takes at most."""
    largest_epsilon: Literal["any"] | Annotated[float, Field(gt=0)] = "any"
    """What all runs together may spend of each training patient's privacy; with a number, runs without
    `patient_privacy` are refused, and so is training past it, whatever the server asks."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta of that epsilon; must be below 1 over the site's training patients."""
    least_noise: Annotated[float, Field(ge=0)] = 0.0
    """Noise multiplier that a private run must have at least, of its steps and of its statistics."""

    @field_validator("metrics", "hours", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or not set(value) <= set(Task):
            raise ValueError(f"expected a list of {', '.join(Task)}, found {value!r}")
        return tuple(Task(each) for each in value)

    @field_validator("hours")
    @classmethod
    def _are_times(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            _window(each)
        return value

    def check(self, settings: RunSettings, num_patients: int, now: datetime) -> None:
        """Raises PolicyError, saying what was asked and what is allowed, where this site does not take part."""
        if settings.task not in self.tasks:
            raise PolicyError(f"this site's policy allows the tasks {', '.join(self.tasks)}, asked was {settings.task}")
        cell = settings.federation.minimum_cell
        if cell < self.minimum_cell:
            raise PolicyError(
                f"this site's policy asks for federation.minimum_cell of {self.minimum_cell} or more, found {cell}"
            )
        if num_patients < self.minimum_patients:
            raise PolicyError(
                f"this site's policy asks for {self.minimum_patients} training patients of its own, it has fewer"
            )
        self._check_privacy(settings, num_patients)
        self.check_masked(settings)
        if self.hours and not any(_is_within(now.time(), *_window(each)) for each in self.hours):
            raise PolicyError(f"this site's policy allows work at {', '.join(self.hours)} by its clock, not now")

    def _check_privacy(self, settings: RunSettings, num_patients: int) -> None:
        privacy = settings.patient_privacy
        if not privacy.enabled:
            if self.largest_epsilon != "any" or self.least_noise:
                raise PolicyError("this site's policy asks for patient_privacy.enabled=true, found false")
            return
        delta = max(privacy.delta, self.delta if self.largest_epsilon != "any" else 0.0)
        if delta * num_patients >= 1:
            raise PolicyError(
                "this site has too many training patients for this delta: expected one below 1 over their number, "
                f"found {delta:g}; lower patient_privacy.delta, or `delta` of the site's policy"
            )
        statistics = privacy.statistics_noise if privacy.statistics == "noised" else None
        noise = privacy.noise(settings.federation)
        if min(noise, noise if statistics is None else statistics) < self.least_noise:
            raise PolicyError(
                f"this site's policy asks for a noise multiplier of {self.least_noise:g} or more, found {noise:g}"
                + ("" if statistics is None else f", and {statistics:g} of the statistics")
            )
        if statistics is None and self.largest_epsilon != "any":
            raise PolicyError(
                "this site's policy bounds what patients spend; expected patient_privacy.statistics=noised, found "
                "public"
            )

    @property
    def budget(self) -> Budget | None:
        """What all private runs may spend together; None is any."""
        return None if self.largest_epsilon == "any" else Budget(epsilon=self.largest_epsilon, delta=self.delta)

    def check_masked(self, settings: RunSettings) -> None:
        """Raises PolicyError where updates would leave in the clear, or in a sum of fewer sites than is allowed."""
        secure = settings.secure_aggregation
        sites = secure.least_sites(settings.federation.sites_a_round) if secure.enabled else 1
        if sites < self.summed_sites:
            raise PolicyError(
                f"this site's policy lets an update leave in a sum of {self.summed_sites} sites or more, found one of "
                f"{sites} (secure_aggregation.enabled, secure_aggregation.threshold)"
            )

    def lets_out(self, metric: str) -> bool:
        """Whether a metric of the site's own patients may leave."""
        return self.metrics == "all" or metric in self.metrics


def load_policy(path: Path) -> SitePolicy:
    """Read a policy. Raises PolicyError for anything that is not as documented: a typo must not open the site."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise PolicyError(
            f"the site's policy {path.name} cannot be read ({error.strerror}); nothing is allowed"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise PolicyError(f"the site's policy {path.name} is no YAML; nothing is allowed") from None
    try:
        return SitePolicy.model_validate({} if found is None else found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PolicyError(f"the site's policy {path.name}: {where}: {first['msg']}; nothing is allowed") from None


def _window(text: str) -> tuple[time, time]:
    try:
        start, end = (time.fromisoformat(part.strip()) for part in text.split("-"))
    except ValueError:
        raise ValueError(f"expected times as 20:00-06:00, found {text!r}") from None
    return start, end


def _is_within(now: time, start: time, end: time) -> bool:
    return start <= now < end if start <= end else now >= start or now < end
