"""What a site's patients have spent of their privacy, run after run, on the site's own disk.

An append-only file, JSON lines chained by hashes as the audit log is. What is about to be spent is written, and on the
disk, before anything is computed: a crash spends too much on paper, never too little. The audit log is told the hash of
every line, so that a ledger that was deleted, or put back to an older one, is found out.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.accounting import Answers, BudgetError, epsilon_of
from federation.audit import AUDIT, AuditError, AuditLog, verify

LEDGER = "privacy.jsonl"
"""Name of the ledger in a site's folder."""
STEPS, STATISTICS = "steps", "statistics"
"""What is spent on."""
_BEGAN, _SPENT = "began", "spent"


class LedgerError(ValueError):
    """A ledger that cannot be trusted, or a budget that is spent: the site then does not train."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a site allows all private runs on its patients to spend together."""

    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that was spent."""

    run: str
    server_round: int
    what: str
    """STEPS or STATISTICS."""
    answers: Answers


@dataclass(frozen=True, kw_only=True)
class PrivacyLedger:
    """The ledger of one site's training patients."""

    folder: Path
    """The site's folder."""
    patients: str
    """Whose it is, as `patients_digest` gives it."""

    @property
    def path(self) -> Path:
        return self.folder / LEDGER

    def entries(self) -> list[Entry]:
        """All that was spent; empty where there is no ledger yet.

        Raises LedgerError for one that is damaged, of other patients, missing where the audit log knows of one, or
        older than the audit log says.
        """
        lines = self._lines()
        return [
            Entry(
                run=str(line["run"]),
                server_round=int(str(line["round"])),
                what=str(line["what"]),
                answers=Answers(**line["answers"]),
            )
            for line in lines
            if line["event"] == _SPENT
        ]

    def spend(
        self, *, run: str, server_round: int, what: str, answers: Sequence[Answers], budget: Budget | None
    ) -> None:
        """Write down what is about to be spent. Raises LedgerError, and writes nothing, where the budget forbids it."""
        before = self.entries()
        if budget is not None:
            _require_within(budget, [each.answers for each in before], answers)
        log = AuditLog(path=self.path)
        if not self.path.is_file():
            log.write(_BEGAN, patients=self.patients)
        for each in answers:
            log.write(_SPENT, run=run, round=server_round, what=what, answers=asdict(each))
        head = verify(self.path).head
        AuditLog(path=self.folder / AUDIT).write("privacy spent", run=run, round=server_round, what=what, ledger=head)

    def steps_of(self, run: str) -> int:
        """Steps that one run has spent, those that were made again after a crash among them. Raises LedgerError."""
        return sum(each.answers.count for each in self.entries() if each.run == run and each.what == STEPS)

    def begin_anew(self) -> Path | None:
        """Put the ledger aside, for patients of whom none is in it; the audit log says so. Its new name, if any."""
        aside = None
        if self.path.is_file():
            number = sum(1 for _ in self.folder.glob("privacy-*.jsonl")) + 1
            aside = self.path.rename(self.folder / f"privacy-{number}.jsonl")
        AuditLog(path=self.folder / AUDIT).write("privacy ledger begun anew", ledger="")
        return aside

    def _lines(self) -> list[dict]:
        head = _last_head(self.folder / AUDIT)
        if not self.path.is_file():
            if head:
                raise LedgerError(
                    f"{self.path}: expected the ledger of what was spent of the patients' privacy, found none; put it "
                    "back from a backup. Only where the patients are others: `dipro-fed site privacy --begin-anew`"
                )
            return []
        try:
            verify(self.path, head=head or None)
        except AuditError as error:
            raise LedgerError(f"{error}; the site does not train until the ledger is put back from a backup") from None
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        if not lines or lines[0].get("patients") != self.patients:
            raise LedgerError(
                f"{self.path}: expected the ledger of this site's {self.patients[:12]} training patients, found one of "
                "others. Where none of these patients is in it: `dipro-fed site privacy --begin-anew`"
            )
        return lines


def summed(answers: Sequence[Answers]) -> list[Answers]:
    """The same answers, those of a kind together: accountants take as long as there are kinds."""
    counts: dict[tuple[float, float], int] = {}
    for each in answers:
        key = each.noise_multiplier, each.sampling_rate
        counts[key] = counts.get(key, 0) + each.count
    return [Answers(noise_multiplier=noise, sampling_rate=rate, count=n) for (noise, rate), n in counts.items()]


def spent_epsilon(answers: Sequence[Answers], delta: float) -> float:
    """Epsilon at `delta` of all these answers. Raises BudgetError where there is too little noise to say."""
    return epsilon_of(summed(answers), delta)


def patients_digest(subjects: Collection[int]) -> str:
    """SHA-256 that stands for a set of training patients; it stays at the site."""
    return hashlib.sha256(json.dumps(sorted(set(subjects))).encode()).hexdigest()


def _require_within(budget: Budget, before: Sequence[Answers], more: Sequence[Answers]) -> None:
    together = summed([*before, *more])
    try:
        # The loose accountant takes a hundredth of the time, and what it allows the tight one does.
        if epsilon_of(together, budget.delta, "rdp") <= budget.epsilon:
            return
        epsilon = epsilon_of(together, budget.delta)
    except BudgetError as error:
        raise LedgerError(f"this site's privacy budget of epsilon {budget.epsilon:g}: {error}") from None
    if epsilon > budget.epsilon:
        raise LedgerError(
            f"this site's budget: expected at most epsilon {budget.epsilon:g} at delta {budget.delta:g} for all "
            f"runs together, this would make it {epsilon:.3f}"
        )


def _last_head(path: Path) -> str:
    """Hash of the ledger's last line as the audit log last heard of it; empty where it never did."""
    found = ""
    for line in _told(path):
        found = str(line["ledger"])
    return found


def _told(path: Path) -> Iterator[dict]:
    if not path.is_file():
        return
    with path.open() as file:
        for line in file:
            if '"event": "privacy ' in line and line.endswith("\n"):
                yield json.loads(line)
