"""A site's half of secure aggregation: what it answers in every step, and what it refuses.

Nothing here trusts the server. A site masks its update in one attempt once, signs for one set of survivors, and reveals
of every other site either a share of its self mask or a share of its mask key, never both; and only when as many sites
as the threshold have signed for the same set (Bonawitz et al. 2017, figure 4, with its consistency check).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import RecordDict

from client.attempts import Attempt, Attempts, Secrets
from federation.secure.errors import SecureError
from federation.secure.identity import Identity, check_signature
from federation.secure.keys import commitment, new_key, pair_mask_seed, public_key, seal, self_mask_seed, unseal
from federation.secure.neighbours import holders_of, neighbours_of
from federation.secure.shamir import SHARE_BYTES, split
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
    sign_keys,
    survivors_statement,
)
from federation.secure.words import Words
from federation.secure_settings import SecureAggregationSettings


@dataclass(frozen=True, kw_only=True)
class Masking:
    """One site in one run whose updates are masked."""

    site: str
    attempts: Attempts
    identity: Identity
    settings: SecureAggregationSettings
    num_asked: int
    """Sites that a round of the run asks, by its settings."""

    @property
    def _least(self) -> int:
        return self.settings.least_sites(self.num_asked)

    def answer(self, step: Step) -> Said:
        """What this site says to one step; asked again, it says the same. Raises SecureError for what it refuses."""
        with self.attempts.locked():
            if isinstance(step, KeysStep):
                return self._keys(step)
            if isinstance(step, SharesStep):
                return self._shares(step)
            return self._confirm(step) if isinstance(step, ConfirmStep) else self._unmask(step)

    def mask(self, step: MaskStep, words: Words, terms: str) -> None:
        """Mask an update, in place: its self mask, and one for every neighbour that masks too.

        `terms` is the digest of what this site worked on, for which it will sign.

        What leaves must be what `keep_reply` gives: one mask over two updates would show their difference.
        """
        attempt = self._found(step)
        if attempt.secrets is None or not attempt.keys:
            raise self._refused("an update that is masked after shares were given, once", "another order")
        digest, peers = digest_of(attempt.keys), self._peers(attempt, step.members)
        held = {peer.site: self._opened(attempt, peer, step.parcels, digest) for peer in peers}
        words.add_mask(self_mask_seed(bytes.fromhex(attempt.secrets.seed), digest))
        for peer in peers:
            sites = (self.site, peer.site)
            own, theirs = bytes.fromhex(attempt.secrets.mask_key), bytes.fromhex(peer.mask_key)
            words.add_mask(pair_mask_seed(own, theirs, digest, sites), subtract=peer.site < self.site)
        masked = {"members": tuple(sorted(step.members)), "held": held, "terms": terms}
        self.attempts.keep(attempt.model_copy(update=masked))

    def keep_reply(self, step: MaskStep, content: RecordDict) -> RecordDict:
        """Write down what leaves and forget the secrets behind its masks; what left before, where something did."""
        with self.attempts.locked():
            before = self.find_reply(step)
            if before is not None:
                return before
            self.attempts.keep_reply(step.round, step.attempt, content)
            self._forget_secrets(step)
        return content

    def find_reply(self, step: MaskStep) -> RecordDict | None:
        """What this site has sent already in this attempt, or was about to when its process ended."""
        before = self.attempts.find_reply(step.round, step.attempt)
        if before is not None:
            self._forget_secrets(step)
        return before

    def _forget_secrets(self, step: MaskStep) -> None:
        self.attempts.keep(self._found(step).model_copy(update={"secrets": None}))

    def _keys(self, step: KeysStep) -> SiteKeys:
        found = self.attempts.find(step.round, step.attempt)
        if found is not None:
            return found.own
        # The round before may still wait to be unmasked; every other attempt is over.
        self.attempts.forget(lambda number, _: number != step.round - 1)
        secret = Secrets(mask_key=new_key().hex(), share_key=new_key().hex(), seed=new_key().hex())
        unsigned = SiteKeys(
            site=self.site,
            run=self.attempts.state.run,
            round=step.round,
            attempt=step.attempt,
            mask_key=public_key(bytes.fromhex(secret.mask_key)).hex(),
            share_key=public_key(bytes.fromhex(secret.share_key)).hex(),
            commitment=commitment(bytes.fromhex(secret.seed)).hex(),
            certificate="",
            signature="",
        )
        own = sign_keys(self.identity, unsigned)
        self.attempts.keep(Attempt(own=own, secrets=secret))
        return own

    def _shares(self, step: SharesStep) -> SharesAnswer:
        attempt = self._found(step)
        self._check_keys(attempt, step)
        if attempt.keys:
            if digest_of(attempt.keys) != digest_of(step.keys):
                raise self._refused("the sites that it gave shares to before", "others")
            return SharesAnswer(parcels=attempt.parcels)
        assert attempt.secrets is not None, "secrets go when an update is masked, which needs these keys"
        digest, by_site = digest_of(step.keys), {each.site: each for each in step.keys}
        neighbours = neighbours_of(by_site, self.settings.neighbours, digest)
        holders = holders_of(self.site, neighbours)
        threshold = self.settings.share_threshold(len(holders), len(by_site), self.num_asked)
        seed, mask_key = bytes.fromhex(attempt.secrets.seed), bytes.fromhex(attempt.secrets.mask_key)
        of_seed, of_key = split(seed, len(holders), threshold), split(mask_key, len(holders), threshold)
        share_key = bytes.fromhex(attempt.secrets.share_key)
        parcels = {
            peer: seal(
                of_seed[place - 1] + of_key[place - 1],
                share_key,
                bytes.fromhex(by_site[peer].share_key),
                digest,
                (self.site, peer),
            ).hex()
            for peer, place in holders.items()
            if peer != self.site
        }
        own_share = of_seed[holders[self.site] - 1].hex()
        self.attempts.keep(attempt.model_copy(update={"keys": step.keys, "parcels": parcels, "own_share": own_share}))
        return SharesAnswer(parcels=parcels)

    def _check_keys(self, attempt: Attempt, step: SharesStep) -> None:
        """Raises SecureError unless these are signed keys of enough different sites of this project, this one's own."""
        names = [each.site for each in step.keys]
        if len(set(names)) != len(names) or not self._least <= len(names) <= self.num_asked:
            raise self._refused(
                f"keys of {self._least} to {self.num_asked} different sites", f"{len(set(names))} in {len(names)} keys"
            )
        if attempt.own not in step.keys:
            raise self._refused("its own keys among those of the round", "none, or others in its name")
        for each in step.keys:
            self.identity.check_certificate(each.site, bytes.fromhex(each.certificate))
            each.check(self.attempts.state.run, step.round, step.attempt)
        if len({key for each in step.keys for key in (each.mask_key, each.share_key)}) < 2 * len(names):
            raise self._refused("different keys of every site", "some that are the same")

    def _peers(self, attempt: Attempt, members: Sequence[str]) -> list[SiteKeys]:
        """The neighbours that mask too. Raises SecureError where these cannot be the members of this round."""
        by_site = {each.site: each for each in attempt.keys}
        if not self._is_set(members, by_site):
            raise self._refused(f"{self._least} or more of the round's sites to mask, itself among them", "others")
        neighbours = neighbours_of(by_site, self.settings.neighbours, digest_of(attempt.keys))
        return [by_site[peer] for peer in neighbours[self.site] if peer in members]

    def _is_set(self, sites: Sequence[str], among: Mapping[str, object] | Sequence[str]) -> bool:
        """Whether these are enough different sites of `among`, this one too."""
        return len(set(sites)) == len(sites) >= self._least and {self.site} <= set(sites) <= set(among)

    def _opened(self, attempt: Attempt, peer: SiteKeys, parcels: Mapping[str, str], digest: bytes) -> tuple[str, str]:
        """A neighbour's shares that it sealed for this site."""
        assert attempt.secrets is not None, "checked before"
        if peer.site not in parcels:
            raise self._refused(f"shares of {peer.site}, which masks too", "none")
        own, theirs = bytes.fromhex(attempt.secrets.share_key), bytes.fromhex(peer.share_key)
        shares = unseal(bytes.fromhex(parcels[peer.site]), own, theirs, digest, (peer.site, self.site))
        if len(shares) != 2 * SHARE_BYTES:
            raise SecureError(f"{peer.site}: expected two shares of {SHARE_BYTES} bytes, found {len(shares)} bytes")
        return shares[:SHARE_BYTES].hex(), shares[SHARE_BYTES:].hex()

    def _confirm(self, step: ConfirmStep) -> ConfirmAnswer:
        attempt, survivors = self._found(step), tuple(sorted(step.survivors))
        if attempt.secrets is not None or not self._is_set(step.survivors, attempt.members):
            raise self._refused(
                f"{self._least} or more of those that masked, itself among them, as survivors", "another set"
            )
        if attempt.survivors not in ((), survivors):
            raise self._refused("the survivors that it signed for before", "others")
        self._check_unmasked(step.round, survivors)
        self.attempts.keep(attempt.model_copy(update={"survivors": survivors}))
        statement = survivors_statement(digest_of(attempt.keys), attempt.members, survivors, attempt.terms)
        return ConfirmAnswer(signature=self.identity.sign(statement).hex())

    def _unmask(self, step: UnmaskStep) -> UnmaskAnswer:
        attempt = self._found(step)
        if not attempt.survivors:
            raise self._refused("to be asked for shares after it signed for the survivors", "another order")
        self._check_signatures(attempt, step.signatures)
        if attempt.revealed is not None:
            return attempt.revealed
        self._check_unmasked(step.round, attempt.survivors)
        survivors = set(attempt.survivors)
        revealed = UnmaskAnswer(
            self_masks={self.site: attempt.own_share}
            | {site: shares[0] for site, shares in attempt.held.items() if site in survivors},
            mask_keys={site: shares[1] for site, shares in attempt.held.items() if site not in survivors},
        )
        self.attempts.note_unmasked(step.round, _named(attempt.survivors))
        self.attempts.keep(attempt.model_copy(update={"revealed": revealed, "held": {}, "own_share": ""}))
        self.attempts.drop_reply(step.round, step.attempt)
        return revealed

    def _check_signatures(self, attempt: Attempt, signatures: Mapping[str, str]) -> None:
        """Raises SecureError unless enough survivors signed for the set that this site signed for."""
        if not set(signatures) <= set(attempt.survivors) or len(signatures) < self._least:
            raise self._refused(
                f"signatures of {self._least} or more survivors", f"{len(signatures)}, or of others than survivors"
            )
        by_site = {each.site: each for each in attempt.keys}
        statement = survivors_statement(digest_of(attempt.keys), attempt.members, attempt.survivors, attempt.terms)
        for site, signature in signatures.items():
            check_signature(site, bytes.fromhex(by_site[site].certificate), statement, bytes.fromhex(signature))

    def _check_unmasked(self, server_round: int, survivors: Sequence[str]) -> None:
        """A round that is tried again must have the same survivors: two sums of it would differ by single updates."""
        if self.attempts.unmasked(server_round) not in (None, _named(survivors)):
            raise self._refused(f"the sites that round {server_round} was unmasked of before", "others")

    def _found(self, step: Step | MaskStep) -> Attempt:
        found = self.attempts.find(step.round, step.attempt)
        if found is None:
            raise self._refused(
                f"an attempt that it made keys for, found round {step.round}, attempt {step.attempt[:8]}", "none such"
            )
        return found

    def _refused(self, expected: str, found: str) -> SecureError:
        return SecureError(f"{self.site}: expected {expected}, found {found}")


def _named(survivors: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(survivors)).encode()).hexdigest()
