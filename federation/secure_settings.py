"""The settings of secure aggregation, and which other settings of a run leave the server nothing but the sum."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from federation.sections import CommunicationSettings, FederationSettings, Section, StrategySettings

SUMMABLE = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold")
"""Strategies that need the weighted mean of the updates alone."""
_LEAST_SITES = 2


class SecureAggregationSettings(Section):
    """The server learns the sum of the sites' updates and none of them alone; docs/secure_aggregation.md has limits."""

    enabled: bool = False
    """Mask every update so that the masks cancel in the sum. Needs `strategy.norm_factor=0`: nobody sees one update."""
    threshold: Literal["two_thirds"] | Annotated[int, Field(ge=_LEAST_SITES)] = "two_thirds"
    """Sites of a round that must be left for its sum to be learned; above two thirds, or a number above half."""
    neighbours: Literal["all"] | Annotated[int, Field(ge=4, multiple_of=2)] = "all"
    """Sites that each shares masks with: `all` bears any loss down to the threshold, an even number saves time."""
    largest_change: Annotated[float, Field(gt=0)] = 4.0
    """Largest change of a parameter in a round, in 2^30 steps; a site that changes one by more sends nothing."""

    def least_sites(self, num_asked: int) -> int:
        """Sites of a round, of so many asked, whose sum alone may be learned."""
        return 2 * num_asked // 3 + 1 if self.threshold == "two_thirds" else self.threshold

    def described(self, num_asked: int) -> dict[str, object]:
        """What run.json says of it: of how many sites at least the server saw the sum, and that it saw nothing else."""
        least = self.least_sites(num_asked)
        return {
            "least_sites": least,
            "hidden": f"updates of single sites: the server saw the sum of {least} sites or more in every round",
        }

    def share_threshold(self, num_holders: int, num_sites: int, num_asked: int) -> int:
        """Shares that give a secret back, of one at each of `num_holders` sites.

        Where all sites of the round hold one: the threshold of the round. Where some do: above two thirds of these, so
        that the holders are hardly ever in league with the server though a third of all sites is.
        """
        return self.least_sites(num_asked) if num_holders >= num_sites else 2 * num_holders // 3 + 1


def check_secure(
    secure: SecureAggregationSettings,
    federation: FederationSettings,
    strategy: StrategySettings,
    communication: CommunicationSettings,
) -> None:
    """Raises ValueError, with every reason, where a run's settings and secure aggregation contradict each other."""
    if secure.enabled and (problems := list(_problems(secure, federation, strategy, communication))):
        raise ValueError("; ".join(f"secure_aggregation: {each}" for each in problems))


def _problems(
    secure: SecureAggregationSettings,
    federation: FederationSettings,
    strategy: StrategySettings,
    communication: CommunicationSettings,
) -> Iterator[str]:
    asked = federation.sites_a_round
    least = secure.least_sites(asked)
    if asked < _LEAST_SITES:
        yield f"the sum of one site is its update; expected {_LEAST_SITES} sites a round or more, found {asked}"
    if least > asked:
        yield f"expected a threshold of at most the {asked} sites of a round, found {least}"
    if 2 * least <= asked:
        yield (
            f"expected a threshold above half of the {asked} sites of a round, found {least}: two sets of sites could "
            "be unmasked, and their difference tells of single sites"
        )
    if federation.quorum != "all" and federation.quorum < least:
        yield f"below {least} sites nothing can be unmasked; expected federation.quorum of {least} or more, " + (
            f"found {federation.quorum}"
        )
    if strategy.name not in SUMMABLE:
        yield (
            f"strategy.name={strategy.name} looks at single updates, which stay hidden; expected one of "
            f"{', '.join(SUMMABLE)}"
        )
    if strategy.norm_factor:
        yield (
            "strategy.norm_factor compares the lengths of single updates, which stay hidden; expected 0, found "
            f"{strategy.norm_factor:g}"
        )
    if communication.codec not in ("fp32", "trained"):
        yield (
            f"communication.codec={communication.codec} rounds what a site sends, and a masked number that is rounded "
            "cannot be unmasked; expected fp32 or trained"
        )
