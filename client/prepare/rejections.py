"""What a preparation leaves out, counted by stage and reason, so that nothing is dropped in silence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NUM_EXAMPLES = 5
"""Identifiers kept for each reason; enough to find the rows again, too few to be a copy of the data."""


class PrepareError(ValueError):
    """Raw files, a profile or a folder cannot be prepared; the message says what was expected and what to do."""


@dataclass(kw_only=True)
class Rejection:
    """One reason: how many rows, images or stays it cost and a few of their identifiers."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Rejections:
    """Counts of everything left out, by stage and reason.

    With `strict` the first rejection raises PrepareError instead. Examples are identifiers (of files, stays, rows,
    items) and never a clinical value, because reports travel further than records do.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._by_stage: dict[str, dict[str, Rejection]] = {}

    def add(self, reason: str, count: int = 1, *, where: str = "", examples: Sequence[str] = ()) -> None:
        """Count `count` things rejected for `reason` in the stage or file `where`; a count of 0 changes nothing."""
        if self.strict and count:
            raise PrepareError(_strict_message(reason, count, where, examples))
        self.exclude(reason, count, where=where, examples=examples)

    def exclude(self, reason: str, count: int = 1, *, where: str = "", examples: Sequence[str] = ()) -> None:
        """Count what a rule of the cohort leaves out (a view, a short stay): no fault, so strict mode goes on."""
        if count < 0:
            raise AssertionError(f"a count of rejections cannot be negative: {count} for {reason!r}")
        if count == 0:
            return
        entry = self._by_stage.setdefault(where, {}).setdefault(reason, Rejection())
        entry.count += count
        entry.examples.extend(str(example) for example in examples[: NUM_EXAMPLES - len(entry.examples)])

    def count(self, reason: str, *, where: str | None = None) -> int:
        """How many were rejected for `reason`, in one stage or (None) in all."""
        stages = self._by_stage.values() if where is None else [self._by_stage.get(where, {})]
        return sum(reasons[reason].count for reasons in stages if reason in reasons)

    def to_report(self) -> dict[str, Any]:
        """{stage: {reason: {count, examples}}}, sorted, ready for JSON."""
        return {
            stage: {
                reason: {"count": entry.count, "examples": list(entry.examples)}
                for reason, entry in sorted(reasons.items())
            }
            for stage, reasons in sorted(self._by_stage.items())
        }


def _strict_message(reason: str, count: int, where: str, examples: Sequence[str]) -> str:
    place = f"{where}: " if where else ""
    named = f" (for example {', '.join(str(example) for example in examples[:NUM_EXAMPLES])})" if examples else ""
    return (
        f"{place}{reason}: {count} rejected{named}; strict mode stops at the first rejection. "
        "Repair the input, or prepare without --strict to count it in report.json"
    )
