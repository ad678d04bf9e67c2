"""What the server's audit log says of rounds whose updates were masked: which were hidden, and whose masks opened."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

MASKING, UNMASKED = "masking", "unmasked"
"""Events: the sites of a round are asked for the keys of an attempt; the sum of an attempt is known."""


@dataclass(frozen=True, kw_only=True)
class MaskedRound:
    """One round, as its last attempt that gave a sum left it."""

    round: int
    masked: tuple[str, ...]
    """Sites whose updates are in the sum, in order; the server saw none of them alone."""
    opened: tuple[str, ...]
    """Sites that were lost after they had given shares: the others opened their masks, of which no update came."""
    attempts: int
    """How often it was begun; more than once after a crash, or where the sites of a round were others than expected."""

    @property
    def has_sum(self) -> bool:
        """Whether the server learned the sum; not of a round at work, or one that failed."""
        return bool(self.masked)


def masked_rounds(events: Iterable[tuple[str, Mapping[str, Any]]]) -> list[MaskedRound]:
    """The rounds that were begun, in order, of the kinds and facts of a log's events in theirs.

    Other kinds are passed over, as are facts that are not as this version writes them.
    """
    attempts: dict[int, set[str]] = {}
    sums: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for kind, facts in events:
        number, attempt = facts.get("round"), facts.get("attempt")
        if kind not in (MASKING, UNMASKED) or not _is_round(number) or not isinstance(attempt, str):
            continue
        attempts.setdefault(number, set()).add(attempt)
        members, survivors = facts.get("members"), facts.get("survivors")
        if kind == UNMASKED and _are_names(members) and _are_names(survivors):
            sums[number] = tuple(sorted(survivors)), tuple(sorted(set(members) - set(survivors)))
    return [
        MaskedRound(round=number, masked=masked, opened=opened, attempts=len(tried))
        for number, tried in sorted(attempts.items())
        for masked, opened in [sums.get(number, ((), ()))]
    ]


def _is_round(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
