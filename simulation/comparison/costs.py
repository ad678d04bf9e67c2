"""What each run cost: wall time, steps, and bytes between server and sites where the run counted them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from federation.run_folder import RUN, RunError
from simulation.runs import Run

TRAFFIC = "traffic"
"""The fact in run.json of a federated run: bytes of all rounds and sites, of training and evaluation together."""

_FIELDS = ("to_sites_bytes", "from_sites_bytes", "rounds")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run cost."""

    model: str
    kind: str
    seconds: float
    """Wall time from start to end, scoring included."""
    step_unit: str
    num_steps: int
    """Epochs or rounds that the run made."""
    to_sites_bytes: int | None
    from_sites_bytes: int | None
    """Sent to all sites and received from them in the whole run; None where not recorded."""
    rounds: int | None
    """Rounds that the bytes are of; None where not recorded."""

    @property
    def total_bytes(self) -> int | None:
        if self.to_sites_bytes is None or self.from_sites_bytes is None:
            return None
        return self.to_sites_bytes + self.from_sites_bytes

    @property
    def bytes_per_round(self) -> float | None:
        """Both ways, all sites together; None where not recorded or without a round."""
        return self.total_bytes / self.rounds if self.total_bytes is not None and self.rounds else None


def costs_of(runs: Sequence[Run]) -> tuple[Cost, ...]:
    """One row a run that was trained. Raises RunError where run.json's traffic is not three whole numbers."""
    return tuple(
        Cost(
            model=run.label,
            kind="personal" if run.is_personal else run.record.kind,
            seconds=run.record.seconds,
            step_unit=run.record.step_unit,
            num_steps=max((each.step for each in run.history), default=0),
            **_traffic(run),
        )
        for run in runs
        if run.record.kind != "evaluated"
    )


def _traffic(run: Run) -> dict[str, int | None]:
    facts: Any = run.record.more.get(TRAFFIC)
    if facts is None:
        return dict.fromkeys(_FIELDS)
    if not isinstance(facts, dict) or not all(_is_count(facts.get(name)) for name in _FIELDS):
        raise RunError(
            f"{run.path / RUN}: `{TRAFFIC}`: expected the whole numbers {', '.join(_FIELDS)}, found something else; "
            "train again"
        )
    return {name: facts[name] for name in _FIELDS}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
