"""The server's half of secure aggregation: one attempt at the sum of one round, from keys to the sum.

It passes on what sites say to each other, adds masked updates as they come, and at the end takes away the masks that do
not cancel: every survivor's self mask, and what survivors share with members that were lost. Nothing here asks anybody
(server/masked_rounds.py does).
"""

import secrets
from collections.abc import Callable, Iterator, Mapping

from federation.secure.errors import SecureError
from federation.secure.identity import check_signature
from federation.secure.keys import commitment, pair_mask_seed, public_key, self_mask_seed
from federation.secure.neighbours import holders_of, neighbours_of
from federation.secure.shamir import combine
from federation.secure.steps import (
    ConfirmAnswer,
    ConfirmStep,
    KeysStep,
    MaskStep,
    Said,
    SharesAnswer,
    SharesStep,
    SiteKeys,
    Step,
    UnmaskAnswer,
    UnmaskStep,
    digest_of,
    survivors_statement,
)
from federation.secure.words import Words
from federation.secure_settings import SecureAggregationSettings

ANSWERS: Mapping[str, type[Said]] = {
    "keys": SiteKeys,
    "shares": SharesAnswer,
    "confirm": ConfirmAnswer,
    "unmask": UnmaskAnswer,
}
"""What sites answer, by step."""


class Ceremony:
    """One attempt: its steps are asked and taken in the order of `ANSWERS`, with masked updates before `confirm`."""

    def __init__(self, settings: SecureAggregationSettings, run: str, server_round: int, num_asked: int) -> None:
        """`num_asked` sites are asked in a round of the run, by its settings."""
        self._settings, self._run, self._num_asked = settings, run, num_asked
        self.round, self.attempt = server_round, secrets.token_hex(16)
        self.least = settings.least_sites(num_asked)
        """Sites that must be left."""
        self.terms = ""
        """What the sites worked on, as `terms_digest` says it; known before they confirm."""
        self._keys: dict[str, SiteKeys] = {}
        self._parcels: dict[str, Mapping[str, str]] = {}
        self._total: Words | None = None
        self._survivors: list[str] = []
        self._signatures: dict[str, str] = {}
        self._answers: dict[str, UnmaskAnswer] = {}

    @property
    def members(self) -> list[str]:
        """The sites that gave shares, in order."""
        return sorted(self._parcels)

    @property
    def survivors(self) -> list[str]:
        """The sites whose masked updates are in the sum, in order."""
        return sorted(self._survivors)

    def ask(self, step: str) -> Step:
        """The question of a step. Raises SecureError, and nobody is to reveal anything, where too few are left."""
        questions: Mapping[str, Callable[[], Step]] = {
            "keys": lambda: KeysStep(round=self.round, attempt=self.attempt),
            "shares": self._ask_shares,
            "confirm": self._ask_confirm,
            "unmask": self._ask_unmask,
        }
        return questions[step]()

    def take(self, site: str, answer: Said) -> None:
        """A site's answer. Raises SecureError, naming the site, for one that is not what it must be."""
        if isinstance(answer, SiteKeys):
            self._take_keys(site, answer)
        elif isinstance(answer, SharesAnswer):
            self._take_shares(site, answer)
        elif isinstance(answer, ConfirmAnswer):
            self._take_confirm(site, answer)
        else:
            assert isinstance(answer, UnmaskAnswer), "no other kind is left"
            self._take_unmask(site, answer)

    def _take_keys(self, site: str, keys: SiteKeys) -> None:
        """A site's keys, signed. Whether the project vouches for the signer is for the other sites to check."""
        if keys.site != site:
            raise SecureError(f"{site}: expected its own keys, found those of {keys.site}")
        keys.check(self._run, self.round, self.attempt)
        self._keys[site] = keys

    def _ask_shares(self) -> SharesStep:
        keys = tuple(self._keys[site] for site in sorted(self._keys))
        self._digest = digest_of(keys)
        self._neighbours = neighbours_of(self._keys, self._settings.neighbours, self._digest)
        return SharesStep(round=self.round, attempt=self.attempt, keys=keys)

    def _take_shares(self, site: str, shares: SharesAnswer) -> None:
        if set(shares.parcels) != set(self._neighbours[site]):
            raise SecureError(f"{site}: expected shares for its {len(self._neighbours[site])} neighbours, found others")
        self._parcels[site] = shares.parcels

    def ask_mask(self, site: str) -> MaskStep:
        """What a site masks its update with."""
        parcels = {peer: self._parcels[peer][site] for peer in self._neighbours[site] if peer in self._parcels}
        return MaskStep(round=self.round, attempt=self.attempt, members=tuple(self.members), parcels=parcels)

    def take_masked(self, site: str, words: Words) -> None:
        """A masked update: it is added at once, and never looked at alone."""
        if self._total is None:
            self._total = words.copy()
        else:
            self._total.add(words)
        self._survivors.append(site)

    def _ask_confirm(self) -> ConfirmStep:
        self._require(len(self._survivors), "masked updates")
        return ConfirmStep(round=self.round, attempt=self.attempt, survivors=tuple(self.survivors))

    def _take_confirm(self, site: str, answer: ConfirmAnswer) -> None:
        statement = survivors_statement(self._digest, self.members, self.survivors, self.terms)
        certificate = bytes.fromhex(self._keys[site].certificate)
        check_signature(site, certificate, statement, bytes.fromhex(answer.signature))
        self._signatures[site] = answer.signature

    def _ask_unmask(self) -> UnmaskStep:
        self._require(len(self._signatures), "signatures")
        return UnmaskStep(round=self.round, attempt=self.attempt, signatures=self._signatures)

    def _take_unmask(self, site: str, answer: UnmaskAnswer) -> None:
        members, survivors = {site, *self._neighbours[site]} & set(self.members), set(self._survivors)
        if set(answer.self_masks) != members & survivors or set(answer.mask_keys) != members - survivors:
            raise SecureError(f"{site}: expected a share of every neighbour that masked, found others")
        self._answers[site] = answer

    def sum(self) -> Words:
        """The sum of the survivors' updates, exact. Raises SecureError where it cannot be unmasked."""
        self._require(len(self._answers), "shares")
        assert self._total is not None, "there are survivors"
        for site in self.survivors:
            self._total.add_mask(self_mask_seed(self._seed(site), self._digest), subtract=True)
        for lost in sorted(set(self.members) - set(self._survivors)):
            private = self._mask_key(lost)
            for peer in (each for each in self._neighbours[lost] if each in self._survivors):
                theirs = bytes.fromhex(self._keys[peer].mask_key)
                seed = pair_mask_seed(private, theirs, self._digest, (lost, peer))
                # The peer took it away where the lost site's name comes first.
                self._total.add_mask(seed, subtract=not lost < peer)
        return self._total

    def _seed(self, site: str) -> bytes:
        shares = {holder: bytes.fromhex(a.self_masks[site]) for holder, a in self._holding(site)}
        return self._rebuilt(site, shares, self._keys[site].commitment, commitment)

    def _mask_key(self, site: str) -> bytes:
        shares = {holder: bytes.fromhex(a.mask_keys[site]) for holder, a in self._holding(site)}
        return self._rebuilt(site, shares, self._keys[site].mask_key, public_key)

    def _holding(self, site: str) -> Iterator[tuple[str, UnmaskAnswer]]:
        """Who holds a share of a site's secrets and has answered."""
        holders = holders_of(site, self._neighbours)
        return ((holder, self._answers[holder]) for holder in holders if holder in self._answers)

    def _rebuilt(self, site: str, shares: Mapping[str, bytes], public: str, shown: Callable[[bytes], bytes]) -> bytes:
        """A secret that is the one which the site showed before, by what `shown` makes of it."""
        holders = holders_of(site, self._neighbours)
        threshold = self._settings.share_threshold(len(holders), len(self._keys), self._num_asked)
        try:
            secret = combine({holders[holder]: share for holder, share in shares.items()}, threshold)
        except SecureError as error:
            raise SecureError(f"the mask of {site} cannot be taken away: {error}") from None
        if shown(secret).hex() != public:
            raise SecureError(
                f"the mask of {site} cannot be taken away: the shares of {', '.join(sorted(shares))} do not give its "
                "secret back; one of them, or the site itself, sent another share"
            )
        return secret

    def _require(self, found: int, what: str) -> None:
        if found < self.least:
            raise SecureError(f"round {self.round}: expected {what} of {self.least} sites or more, {found} came")
