"""Site-level differential privacy over the rounds of a run: how much noise, what it has cost, when it is over.

Every site is charged for every round, whether it was asked or not: who is drawn follows from the run's seed, which all
know. docs/site_privacy.md says what the guarantee is and what it does not cover.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federation.accounting import BudgetError, noise_for
from federation.run_folder import RunError
from federation.selection import Entries
from federation.settings import RunSettings
from federation.site_privacy import SitePrivacySettings, require_site_guarantee
from server.aggregator import SiteUpdate
from server.noised_mean import NoisedMean
from server.privacy_ledger import LEDGER, Charge, Ledger, spent

logger = logging.getLogger(__name__)


def noise_of(settings: RunSettings) -> float:
    """The noise multiplier of a run with site-level privacy, known before its first round.

    Raises BudgetError where no noise keeps the budget, or the given noise spends it in one round; ValueError where
    these settings give no guarantee.
    """
    require_site_guarantee(settings)
    privacy = settings.site_privacy
    if privacy.noise_multiplier == "solved":
        return noise_for(
            privacy.epsilon,
            privacy.delta,
            sampling_rate=1.0,
            count=settings.federation.rounds,
            accountant=privacy.accountant,
        )
    if (first := spent([privacy.noise_multiplier], privacy.delta, privacy.accountant)) > privacy.epsilon:
        raise BudgetError(
            f"site_privacy.noise_multiplier={privacy.noise_multiplier:g} spends {first:.2f} in the first round; "
            f"expected at most site_privacy.epsilon={privacy.epsilon:g}; use more noise, or noise_multiplier=solved"
        )
    return privacy.noise_multiplier


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a round's noise is made of: mean and count together tell as much as one answer with the noise of both."""

    mean: float
    """Noise multiplier of the mean."""
    count: float | None
    """Standard deviation of the noise over what a site adds to the count; None where none is made."""

    @classmethod
    def of(cls, privacy: SitePrivacySettings, noise: float) -> "Shares":
        """1 / noise^2 = 1 / mean^2 + 1 / count^2 (Andrew et al. 2021, theorem 1), of which the count has its share."""
        if not privacy.is_adaptive:
            return cls(mean=noise, count=None)
        share = privacy.quantile_share
        return cls(mean=noise / math.sqrt(1 - share), count=noise / math.sqrt(share))


class SitePrivacy:
    """The privacy of one run's sites: clip, noise and charges."""

    def __init__(
        self, settings: RunSettings, noise: float, num_samples: Mapping[str, int], released: Entries, folder: Path
    ) -> None:
        """`noise` is what `noise_of` gave; `num_samples` are all sites' training samples, by name; of a site's weights
        `released` alone is let through. The ledger is in `folder`; raises AuditError where that is not whole."""
        self._settings, self._noise, self._released = settings.site_privacy, noise, released
        self._num_samples, self._num_asked = num_samples, settings.federation.sites_a_round
        self._ledger, self.clip = Ledger(folder), settings.site_privacy.clip
        self.ended = ""
        """Where the budget ended the run before its rounds were over: when, and why."""

    def affordable(self, rounds: int) -> int:
        """How many further rounds, at most `rounds`, the budget pays for."""
        enough, too_many = 0, rounds + 1
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            enough, too_many = (middle, too_many) if self._pays_for(middle) else (enough, middle)
        return enough

    def mean(self, reference: np.ndarray, number: int) -> "PrivateMean":
        """What takes the updates of a round in."""
        return PrivateMean(self, NoisedMean(reference, self._released, self.clip), number)

    def weight(self, site: str) -> float:
        """How much a site's update counts, at most 1."""
        if self._settings.weights == "equal":
            return 1.0
        return min(self._num_samples[site], self._settings.samples_cap) / self._settings.samples_cap

    def release(self, mean: NoisedMean, number: int) -> SiteUpdate:
        """The noised mean of a round, which is charged first: whatever ends the process, what was seen is paid for."""
        noise, epsilon, clip = self._noise, self._epsilon(1), self.clip
        self._ledger.charge(Charge(round=number, noise_multiplier=noise, clip=clip, epsilon=epsilon))
        shares = Shares.of(self._settings, noise)
        update = mean.noised(shares.mean, self._total_weight())
        if shares.count is not None:
            share = mean.noised_share(shares.count, self._num_asked)
            self.clip *= math.exp(-self._settings.quantile_rate * (share - self._settings.quantile))
        return update

    def end(self, last: int, rounds: int) -> None:
        """Note that the budget ended the run."""
        self.ended = (
            f"after round {last} of {rounds}: another one would spend more of the sites' privacy than "
            f"site_privacy.epsilon={self._settings.epsilon:g} at delta {self._settings.delta:g}"
        )

    def last_charge(self) -> dict[str, float]:
        """Of the last round, for people and the audit log."""
        last = self._ledger.charges[-1]
        settings, epsilon = self._settings, round(last.epsilon, 4)
        return {"epsilon": epsilon, "delta": settings.delta, "budget": settings.epsilon, "clip": last.clip}

    def report(self) -> dict[str, Any]:
        """For run.json: what was spent, by round, and of what budget."""
        charges = self._ledger.charges
        return {
            "epsilon": round(charges[-1].epsilon, 4) if charges else 0.0,
            "delta": self._settings.delta,
            "budget": self._settings.epsilon,
            "noise_multiplier": round(self._noise, 6),
            "noise_to_update": round(self.noise_to_update(), 2),
            "by_round": [[each.round, round(each.epsilon, 4), round(each.clip, 6)] for each in charges],
            **({"ended": self.ended} if self.ended else {}),
        }

    def noise_to_update(self) -> float:
        """How many times as long as the mean of the updates can be the noise of a round is, as a root mean square."""
        return Shares.of(self._settings, self._noise).mean * math.sqrt(self._released.size) / self._total_weight()

    def warn(self) -> None:
        """Say what the noise means for so many sites."""
        logger.warning(
            "site-level privacy: with %d sites a round's noise is %.3g times as long as their mean update can be; "
            "docs/site_privacy.md shows what is then left of a model",
            self._num_asked,
            self.noise_to_update(),
        )

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs: the clip, and how many charges the ledger must hold at least."""
        return {"clip": np.array(self.clip), "charges": np.array(len(self._ledger.charges))}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave. Raises RunError where the ledger has forgotten charges."""
        expected, found = int(state["charges"]), len(self._ledger.charges)
        if found < expected:
            raise RunError(
                f"{LEDGER}: expected {expected} charges or more, as the run's last checkpoint knows, found {found}; "
                "restore the file, or begin a new run in another folder"
            )
        self.clip = float(state["clip"])

    def _pays_for(self, more: int) -> bool:
        try:
            return self._epsilon(more) <= self._settings.epsilon
        except BudgetError:  # of so many rounds nothing finite can be said
            return False

    def _epsilon(self, more: int) -> float:
        """Spent after so many further rounds."""
        noises = [each.noise_multiplier for each in self._ledger.charges] + [self._noise] * more
        return spent(noises, self._settings.delta, self._settings.accountant)

    def _total_weight(self) -> float:
        """Of the sites that are asked in a round, in the mean over who is drawn."""
        everyone = sum(self.weight(site) for site in self._num_samples)
        return everyone * self._num_asked / len(self._num_samples)


class PrivateMean:
    """The mean of one round's updates, which is seen noised and charged or not at all."""

    def __init__(self, privacy: SitePrivacy, mean: NoisedMean, number: int) -> None:
        self._privacy, self._mean, self._number = privacy, mean, number

    def add(self, update: SiteUpdate) -> None:
        """Take a site's update in."""
        self._mean.add(update, self._privacy.weight(update.site))

    def update(self) -> SiteUpdate:
        """The noised mean as the update of one site; once, because each time it is charged."""
        return self._privacy.release(self._mean, self._number)
