"""What a run has spent of its sites' privacy: one line for every noised mean, on the disk before its noise is drawn."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.accounting import Accountant, Answers, epsilon_of
from federation.audit import AuditLog, verify

LEDGER = "site_privacy.jsonl"
"""Name of the ledger in a run's folder; its lines are chained by hashes as those of the audit log."""
_CHARGED = "charged"


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one noised mean cost."""

    round: int
    """A round that was computed again after a crash stands here twice: the first mean may have left."""
    noise_multiplier: float
    """Noise over the longest update, of mean and count together."""
    clip: float
    """The longest update that the round let through."""
    epsilon: float
    """Spent by all charges up to this one."""


class Ledger:
    """The charges of one run, kept in its folder and never taken back."""

    def __init__(self, folder: Path) -> None:
        """Open the ledger of a run's folder, or begin it. Raises AuditError where a line was changed or is missing."""
        path = folder / LEDGER
        self._log = AuditLog(path=path)
        # Whatever a killed process left of a line is cut off: its noise was not drawn yet.
        self._log.write("opened")
        verify(path)
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.charges = [_charge(each) for each in entries if each["event"] == _CHARGED]

    def charge(self, charge: Charge) -> None:
        """Write a charge down; it is on the disk when this returns."""
        facts = {"round": charge.round, "noise_multiplier": charge.noise_multiplier, "clip": charge.clip}
        self._log.write(_CHARGED, **facts, epsilon=charge.epsilon)
        self.charges.append(charge)


def spent(noises: Sequence[float], delta: float, accountant: Accountant) -> float:
    """Epsilon at delta of noised means with these noise multipliers, each of all sites: no sampling amplifies it."""
    counted = sorted(Counter(noises).items())
    answers = [Answers(noise_multiplier=noise, sampling_rate=1.0, count=count) for noise, count in counted]
    return epsilon_of(answers, delta, accountant)


def _charge(entry: dict[str, Any]) -> Charge:
    return Charge(
        round=entry["round"],
        noise_multiplier=entry["noise_multiplier"],
        clip=entry["clip"],
        epsilon=entry["epsilon"],
    )
