"""What the rounds of a private run have spent, told by the steps that the sites say are in their ledgers."""

from collections.abc import Mapping
from typing import Any

from federation.accounting import epsilon_of
from federation.settings import RunSettings
from server.rounds import Round


class Private:
    """By site, what its patients have spent in this run; what other runs spent only the site knows."""

    def __init__(self, settings: RunSettings, earlier: Mapping[str, Any]) -> None:
        """`earlier` is what `plain` gave, where a run goes on; of a run without privacy nothing is kept."""
        self._privacy, self._federation = settings.patient_privacy, settings.federation
        self.sites: dict[str, int] = {site: each["steps"] for site, each in earlier.get("sites", {}).items()}
        """Steps so far."""
        self._known: dict[int, float] = {}
        """Epsilon by number of steps."""

    def take(self, finished: Round) -> None:
        """Note what a round's replies say."""
        if self._privacy.enabled:
            self.sites |= {reply.site: reply.private_steps for reply in finished.trained}

    def epsilons(self) -> dict[str, float]:
        """By site, at the run's delta; empty of a run without privacy. Raises BudgetError for far too little noise."""
        if not self.sites:
            return {}
        noise = self._privacy.noise(self._federation)
        return {site: round(self._epsilon(noise, steps), 4) for site, steps in sorted(self.sites.items())}

    def _epsilon(self, noise: float, steps: int) -> float:
        if steps not in self._known:  # sites mostly made as many
            answers = [*self._privacy.statistics_answers(), self._privacy.answers(noise, steps)]
            self._known[steps] = epsilon_of(answers, self._privacy.delta, self._privacy.accountant)
        return self._known[steps]

    def plain(self) -> dict[str, Any]:
        """For run.json and the audit log."""
        epsilons = self.epsilons()
        return {
            "delta": self._privacy.delta,
            "budget": self._privacy.epsilon,
            "statistics": self._privacy.statistics,
            "sites": {site: {"steps": self.sites[site], "epsilon": epsilon} for site, epsilon in epsilons.items()},
        }
