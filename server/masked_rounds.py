"""The visits to the sites in which a round's masks are made and taken away, around the one in which they train.

Keys and shares of a round are made in the visits that end the round before, where its sites are the same; so a round
takes two light visits beside its training. A run that goes on after a crash makes them anew.
"""

from collections.abc import Mapping
from typing import Literal

from federation.masked_log import MASKING, UNMASKED
from federation.messages import MessageError
from federation.secure.errors import SecureError
from federation.secure.messages import MASKS, MasksQuestion, MasksReply
from federation.secure.steps import MaskStep
from federation.secure.words import Words
from server.ceremony import ANSWERS, Ceremony
from server.exchange import Refusals
from server.joining import Federation

_Work = tuple[Ceremony, Literal["keys", "shares", "confirm", "unmask"]]
"""An attempt, and the step of it that is asked."""


class MaskedRounds:
    """Secure aggregation over the rounds of one run."""

    def __init__(self, federation: Federation, run: str) -> None:
        """`run` is the name under which the sites keep what they remember."""
        self._federation, self._run = federation, run
        self._ceremony: Ceremony | None = None
        self._next: Ceremony | None = None
        """Of the round after, where its keys are on their way."""

    @property
    def ceremony(self) -> Ceremony:
        """Of the round at work."""
        assert self._ceremony is not None, "a round is prepared before it trains"
        return self._ceremony

    def prepare(self, number: int, asked: Mapping[int, str], refusals: Refusals, quorum: int) -> dict[int, str]:
        """Let the sites of a round make keys and give shares; those that did, which may train.

        Others are noted in `refusals`. Raises MessageError where fewer than the quorum are left.
        """
        self._ceremony, self._next = self._next, None
        if self._ceremony is None or not self._is_of(self._ceremony, number, asked):
            self._ceremony = self._fresh(number)
            asked = self._visit(asked, [(self._ceremony, "keys")], refusals, quorum)
            refusals.require(quorum, len(asked))
            asked = self._visit(asked, [(self._ceremony, "shares")], refusals, quorum)
            refusals.require(quorum, len(asked))
        return dict(asked)

    def finish(self, terms: str, following: Mapping[int, str]) -> Words:
        """Let the survivors sign who they are and reveal what the sum needs; the sum.

        `terms` is the digest of what they worked on, `following` are the sites of the next round, none after the last.
        Raises MessageError, and no mask of anybody is revealed, where fewer masked updates came than the threshold.
        """
        ceremony, refusals = self.ceremony, Refusals(what=f"round {self.ceremony.round}, unmasking")
        ceremony.terms = terms
        left = {node: site for node, site in self._federation.nodes.items() if site in ceremony.survivors}
        self._next = self._fresh(ceremony.round + 1) if following else None
        try:
            left = self._visit(left, [(ceremony, "confirm"), *self._with_next("keys", left, following)], refusals)
            left = self._visit(left, [(ceremony, "unmask"), *self._with_next("shares", left, following)], refusals)
            total = ceremony.sum()
        except SecureError as error:
            reasons = "".join(f"; {site}{reason}" for site, reason in sorted(refusals.reasons.items()))
            raise MessageError(f"{refusals.what}: {error}{reasons}") from None
        said = {"members": ceremony.members, "survivors": ceremony.survivors, "revealed_by": sorted(left.values())}
        self._federation.exchange.note(UNMASKED, round=ceremony.round, attempt=ceremony.attempt, **said)
        return total

    def _with_next(
        self, step: Literal["keys", "shares"], left: Mapping[int, str], following: Mapping[int, str]
    ) -> list[_Work]:
        """The same step of the next round, as long as all of its sites are there."""
        if self._next is None or not set(following) <= set(left):
            self._next = None
            return []
        return [(self._next, step)]

    def _is_of(self, ceremony: Ceremony, number: int, asked: Mapping[int, str]) -> bool:
        return (ceremony.round, ceremony.members) == (number, sorted(asked.values()))

    def _fresh(self, number: int) -> Ceremony:
        settings = self._federation.settings
        return Ceremony(settings.secure_aggregation, self._run, number, settings.federation.sites_a_round)

    def _visit(
        self, nodes: Mapping[int, str], work: list[_Work], refusals: Refusals, enough: int | None = None
    ) -> dict[int, str]:
        """Ask these sites and take their answers in; those whose answers are what they must be."""
        ceremony, step = work[0]
        for each in (begun for begun, name in work if name == "keys"):
            self._federation.exchange.note(MASKING, round=each.round, attempt=each.attempt)
        steps = tuple(each.ask(name) for each, name in work)
        record = MasksQuestion(run=self._run, steps=steps).record()
        visit = Refusals(what=f"round {ceremony.round}, {step}", reasons=refusals.reasons)
        left: set[str] = set()
        least = ceremony.least if enough is None else enough
        exchange = self._federation.exchange
        for reply, _ in exchange.replies(lambda site: record, MASKS, nodes, MasksReply, visit, enough=least):
            try:
                self._take(reply, work)
            except SecureError as error:
                refusals.reasons[reply.site] = f": {error}"
            else:
                left.add(reply.site)
        return {node: site for node, site in nodes.items() if site in left}

    @staticmethod
    def _take(reply: MasksReply, work: list[_Work]) -> None:
        answers = reply.read([ANSWERS[name] for _, name in work])
        for (ceremony, _), answer in zip(work, answers, strict=True):
            ceremony.take(reply.site, answer)

    def mask_step(self, site: str) -> MaskStep:
        """What a site masks its update with."""
        return self.ceremony.ask_mask(site)
