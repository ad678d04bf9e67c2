"""What each run hid, and how well: patients by site, whole sites from whoever sees the models, updates from the server.

From run.json and the audit log of the run's folder; a run that used none of it is not there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from federation.audit import AUDIT
from federation.masked_log import MASKING, UNMASKED, MaskedRound, masked_rounds
from federation.run_folder import RUN, SITES, UPDATES, RunError
from simulation.runs import Run


class _Fact(BaseModel):
    """A part of what run.json says; a later version may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Fact = TypeVar("Fact", bound=_Fact)


class Spent(_Fact):
    """What one site's patients spent in a run."""

    steps: int
    epsilon: float


class Patients(_Fact):
    """Patient-level privacy of one run, at its delta."""

    delta: float
    budget: float
    statistics: str
    sites: Mapping[str, Spent]

    @property
    def epsilon(self) -> float:
        """Of any patient of the run, who is at one site: the largest of the sites'."""
        return max((each.epsilon for each in self.sites.values()), default=0.0)


class WholeSites(_Fact):
    """Site-level privacy of one run, at its delta: the same for every site."""

    epsilon: float
    delta: float
    budget: float
    noise_multiplier: float
    noise_to_update: float
    by_round: Sequence[tuple[int, float, float]]
    """Round, epsilon so far, clip; a round that was made again stands twice."""
    ended: str = ""


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What secure aggregation hid from the server in one run."""

    least_sites: int
    """Sites that each sum was of at least."""
    rounds: tuple[MaskedRound, ...] | None
    """Those that gave a sum; None where the run's folder has no audit log."""

    @property
    def num_hidden(self) -> int | None:
        """Updates of single sites that the server had masked alone, with their lengths and directions."""
        return None if self.rounds is None else sum(len(each.masked) for each in self.rounds)

    @property
    def num_again(self) -> int | None:
        """Attempts beyond the first of each round."""
        return None if self.rounds is None else sum(each.attempts - 1 for each in self.rounds)

    @property
    def num_opened(self) -> int | None:
        """Masks of lost sites that the others had to open."""
        return None if self.rounds is None else sum(len(each.opened) for each in self.rounds)

    def by_site(self, site: str) -> tuple[int, int] | None:
        """Rounds in whose sum a site's update is, and those in which its mask was opened."""
        if self.rounds is None:
            return None
        return sum(site in each.masked for each in self.rounds), sum(site in each.opened for each in self.rounds)


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What one run hid; None of what it did not use."""

    model: str
    """The run's label."""
    sites: tuple[str, ...]
    patients: Patients | None
    whole_sites: WholeSites | None
    updates: Updates | None


def hidden_of(runs: Sequence[Run]) -> tuple[Hidden, ...]:
    """One row a run that hid anything. Raises RunError where run.json does not say what such a run says."""
    found = [
        Hidden(
            model=run.label,
            sites=run.record.sites,
            patients=_patients(run),
            whole_sites=_whole_sites(run),
            updates=_updates(run),
        )
        for run in runs
    ]
    return tuple(each for each in found if each.patients or each.whole_sites or each.updates)


def _patients(run: Run) -> Patients | None:
    said = run.record.more.get("privacy")
    return None if said is None else _read(Patients, said, run, "privacy")


def _whole_sites(run: Run) -> WholeSites | None:
    said = run.record.more.get(SITES)
    return None if said is None else _read(WholeSites, said, run, SITES)


class _LeastSites(_Fact):
    least_sites: int


def _updates(run: Run) -> Updates | None:
    said = run.record.more.get(UPDATES)
    if said is None:
        return None
    least, log = _read(_LeastSites, said, run, UPDATES).least_sites, run.path / AUDIT
    if not log.is_file():
        return Updates(least_sites=least, rounds=None)
    return Updates(least_sites=least, rounds=tuple(each for each in masked_rounds(_told(log)) if each.has_sum))


def _told(log: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The events that are about masks; of a long log most lines are about messages, which need not be parsed."""
    marks = tuple(f'"event": "{kind}"' for kind in (MASKING, UNMASKED))
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if any(mark in line for mark in marks):
                try:
                    facts = json.loads(line)
                except ValueError:
                    continue  # a line that was changed or is half written; `dipro-fed audit verify` tells
                if isinstance(facts, dict):
                    yield str(facts.get("event")), facts


def _read(kind: type[Fact], said: object, run: Run, name: str) -> Fact:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise RunError(
            f"{run.path / RUN}: `{where}`: expected what a run with such settings writes ({first['msg'].lower()}); "
            "train again"
        ) from None
