"""The settings of site-level differential privacy at the server, and which settings it cannot go with."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from federation.sections import Section

if TYPE_CHECKING:
    from federation.settings import RunSettings

MOST_DELTA = 0.01
"""Of all sites together: (epsilon, delta) allows a mechanism that with chance delta tells everything of a site."""

_CANNOT = {
    "scaffold": "sends control variates beside the weights, which nothing bounds",
    "qfedavg": "weighs sites by their losses, which nothing bounds",
    "fedmedian": "needs every site's own update",
    "fedtrimmedavg": "needs every site's own update",
    "krum": "needs every site's own update",
    "multikrum": "needs every site's own update",
    "bulyan": "needs every site's own update",
}
"""Strategies that take more of the sites than a sum of clipped updates, and what that is."""


class SitePrivacySettings(Section):
    """Whether the models of a run hide what any one whole site brought; docs/site_privacy.md says from whom."""

    enabled: bool = False
    """Shorten every site's update and noise their mean at the server, which sees them plain (McMahan et al. 2018):
    whoever sees all models of the run can hardly tell what any one site sent. A handful of hospitals need so much noise
    that little is learned. Not covered: statistics of joining, numbers of samples, metrics of validation patients."""
    epsilon: Annotated[float, Field(gt=0)] = 8.0
    """What the run may spend of each site's privacy; smaller hides more. The run ends before it would spend more."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Chance that epsilon does not hold; times the number of sites at most 0.01."""
    noise_multiplier: Literal["solved"] | Annotated[float, Field(gt=0)] = "solved"
    """Standard deviation of the noise over the longest update; `solved` is the least with which all rounds keep
    epsilon. With adaptive clipping that of the mean and the count together: each has a little more."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Longest update of a site; longer ones are shortened to it. With adaptive clipping that of the first round."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` moves `clip` from round to round to a quantile of the updates' lengths (Andrew et al. 2021), which it
    knows from a noised count; for some dozens of sites and more."""
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """adaptive: share of the sites whose updates shall not be shortened."""
    quantile_rate: Annotated[float, Field(gt=0)] = 0.2
    """adaptive: how fast `clip` moves: a round multiplies it by exp(rate x (quantile - share within the clip))."""
    quantile_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """adaptive: part of what a round spends that goes into the count, of 1 / noise_multiplier squared."""
    weights: Literal["equal", "capped"] = "equal"
    """Each site counts the same; or `capped`: by its training samples, those of `samples_cap` and more the same."""
    samples_cap: Annotated[int, Field(ge=1)] = 1000
    """capped: training samples from which on a site has the full weight."""
    accountant: Literal["prv", "rdp"] = "prv"
    """prv composes numerically and is tight; rdp is looser. Neither counts on sites being drawn: all know who is."""

    @property
    def is_adaptive(self) -> bool:
        """Whether the clip follows the updates."""
        return self.clipping == "adaptive"


def require_site_guarantee(settings: "RunSettings") -> None:
    """Raises ValueError, naming the setting and why, where these settings would give no guarantee."""
    privacy, name, training = settings.site_privacy, settings.strategy.name, settings.training
    if not privacy.enabled:
        return
    faults = (
        (name in _CANNOT, f"a strategy of the mean, because {name} {_CANNOT.get(name)}", f"strategy.name={name}"),
        (
            training.batch_norm != "frozen",
            "training.batch_norm=frozen, because nothing bounds the running statistics of a site",
            f"training.batch_norm={training.batch_norm}",
        ),
        (
            settings.strategy.recalibrate,
            "strategy.recalibrate=false, because nothing bounds the running statistics of a site",
            "strategy.recalibrate=true",
        ),
        (
            settings.personal.method != "none",
            "personal.method=none, because a personal model is trained without noise and its scores leave the site",
            f"personal.method={settings.personal.method}",
        ),
        (
            settings.secure_aggregation.enabled,
            "secure_aggregation.enabled=false, because a site's update is shortened where it can be seen",
            "secure_aggregation.enabled=true",
        ),
        (
            privacy.delta * settings.federation.num_sites > MOST_DELTA,
            f"site_privacy.delta x federation.num_sites of at most {MOST_DELTA:g}, because with chance delta "
            "everything of a site may show",
            f"{privacy.delta:g} x {settings.federation.num_sites}",
        ),
    )
    if found := next(((expected, value) for is_fault, expected, value in faults if is_fault), None):
        raise ValueError(f"site_privacy.enabled=true: expected {found[0]}; found {found[1]}")
