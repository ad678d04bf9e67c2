"""Flower's strategies by name: their parameters, what each one needs of a federation, how it is made.

`server/aggregator.py` runs their arithmetic; docs/strategies.md explains the parameters and lists what to know of
Flower 1.41.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from federation.messages import WEIGHT_KEY

LOSS_KEY = "loss/total"
"""Key of a reply's mean training loss, which QFedAvg reads."""

Parameters = Mapping[str, float]


class StrategyError(ValueError):
    """A strategy whose settings make no sense, or replies that it cannot aggregate; says what to change."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number that a strategy is made with."""

    keyword: str
    """Flower's name for it."""
    default: float | None
    """None where it must be given."""
    least: float
    below: float
    least_allowed: bool = True
    """Whether `least` itself may be given."""
    whole: bool = False
    """Whether it counts something."""

    def check(self, where: str, value: float) -> None:
        fits = (self.least <= value if self.least_allowed else self.least < value) and value < self.below
        if not fits or (self.whole and value != int(value)):
            start = f"{'at least' if self.least_allowed else 'above'} {self.least:g}"
            end = f" and below {self.below:g}" if math.isfinite(self.below) else ""
            raise StrategyError(
                f"{where}: expected a {'whole ' if self.whole else ''}number {start}{end}, found {value}"
            )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A strategy of Flower's: its class, parameters and needs."""

    flower: type[FedAvg]
    parameters: Mapping[str, Parameter]
    least_sites: Callable[[Parameters], int] = lambda parameters: 1
    """Replies that a round must have for the arithmetic to mean what it says."""
    of_mean: bool = False
    """Whether it needs the weighted mean of the replies alone: it may be given as one reply, summed as they come."""
    is_mean: bool = False
    """Whether that mean is the next model: summed as the replies came, there is nothing left to do."""
    robust: bool = False
    """Whether it bears malicious sites; running statistics then are the median of the sites', else their mean."""


def _rate(keyword: str, default: float | None) -> Parameter:
    return Parameter(keyword=keyword, default=default, least=0, below=float("inf"), least_allowed=False)


def _decay(keyword: str, default: float) -> Parameter:
    return Parameter(keyword=keyword, default=default, least=0, below=1)


def _adaptive(flower: type[FedAvg], rate: float, *, decays: bool = True) -> Kind:
    """Defaults are Flower's."""
    parameters = {"server_rate": _rate("eta", rate), "tau": _rate("tau", 1e-3)}
    if decays:
        parameters |= {"beta_1": _decay("beta_1", 0.9), "beta_2": _decay("beta_2", 0.99)}
    return Kind(flower=flower, parameters=parameters, of_mean=True)


_MALICIOUS = Parameter(keyword="num_malicious_nodes", default=1, least=0, below=float("inf"), whole=True)
_SELECTED = Parameter(keyword="num_nodes_to_select", default=None, least=1, below=float("inf"), whole=True)

STRATEGIES: Mapping[str, Kind] = {
    "fedavg": Kind(flower=FedAvg, parameters={}, of_mean=True, is_mean=True),
    "fedprox": Kind(flower=FedProx, parameters={"mu": _rate("proximal_mu", None)}, of_mean=True, is_mean=True),
    "fedavgm": Kind(
        flower=FedAvgM,
        parameters={"server_rate": _rate("server_learning_rate", 1.0), "momentum": _decay("server_momentum", 0.9)},
        of_mean=True,
    ),
    "fedadam": _adaptive(FedAdam, 0.1),
    "fedyogi": _adaptive(FedYogi, 0.01),
    "fedadagrad": _adaptive(FedAdagrad, 0.1, decays=False),
    "qfedavg": Kind(
        flower=QFedAvg,
        parameters={
            "q": Parameter(keyword="q", default=0.1, least=0, below=float("inf")),
            "client_rate": _rate("client_learning_rate", None),
        },
    ),
    "fedmedian": Kind(flower=FedMedian, parameters={}, least_sites=lambda _: 3, robust=True),
    "fedtrimmedavg": Kind(
        flower=FedTrimmedAvg,
        parameters={"beta": Parameter(keyword="beta", default=0.2, least=0, below=0.5, least_allowed=False)},
        least_sites=lambda parameters: _least_trimmed(parameters["beta"]),
        robust=True,
    ),
    "krum": Kind(
        flower=Krum,
        parameters={"num_malicious": _MALICIOUS},
        least_sites=lambda parameters: 2 * int(parameters["num_malicious"]) + 3,
        robust=True,
    ),
    "multikrum": Kind(
        flower=MultiKrum,
        parameters={"num_malicious": _MALICIOUS, "num_selected": _SELECTED},
        least_sites=lambda parameters: max(
            2 * int(parameters["num_malicious"]) + 3,
            int(parameters["num_malicious"]) + int(parameters["num_selected"]),
        ),
        robust=True,
    ),
    "bulyan": Kind(
        flower=Bulyan,
        parameters={"num_malicious": _MALICIOUS},
        least_sites=lambda parameters: 4 * int(parameters["num_malicious"]) + 3,
        robust=True,
    ),
    # Its correction is at the sites; the server's step is that of a mean.
    "scaffold": Kind(flower=FedAvgM, parameters={"server_rate": _rate("server_learning_rate", 1.0)}, of_mean=True),
}
"""Every strategy that the settings may name; docs/strategies.md explains the parameters."""


def make_strategy(name: str, parameters: Parameters, *, num_sites: int) -> FedAvg:
    """Flower's strategy of a name for a federation of so many sites.

    Its aggregation reads one array a reply, the count `num-examples` and, in QFedAvg, the loss `loss/total`. Raises
    StrategyError for another name, a parameter that is unknown, missing or out of range, and for too few sites.
    """
    complete = complete_parameters(name, parameters)
    least = STRATEGIES[name].least_sites(complete)
    if num_sites < least:
        given = ", ".join(f"{key}={value:g}" for key, value in complete.items()) or "any settings"
        raise StrategyError(
            f"{name} with {given} needs {least} sites or more, the federation has {num_sites}; "
            "let more sites take part, expect fewer malicious ones, or choose another strategy"
        )
    known = STRATEGIES[name].parameters
    keywords: dict[str, Any] = {"train_loss_key": LOSS_KEY} if name == "qfedavg" else {}
    for key, value in complete.items():
        keywords[known[key].keyword] = int(value) if known[key].whole else value
    strategy = STRATEGIES[name].flower(weighted_by_key=WEIGHT_KEY, **keywords)
    # With nobody to sample, `configure_train` does nothing but keep the weights that the strategy steps from.
    strategy.fraction_train = 0.0
    return strategy


def complete_parameters(name: str, parameters: Parameters) -> dict[str, float]:
    """The parameters with defaults where none are given. Raises StrategyError."""
    if name not in STRATEGIES:
        raise StrategyError(f"expected a strategy of {', '.join(STRATEGIES)}, found {name!r}")
    known = STRATEGIES[name].parameters
    if unknown := sorted(set(parameters) - set(known)):
        raise StrategyError(f"{name}: expected parameters of {sorted(known)}, found {unknown}")
    complete: dict[str, float] = {}
    for key, parameter in known.items():
        value = parameters.get(key, parameter.default)
        if value is None:
            raise StrategyError(f"{name}: expected a value for {key}, found none; it has no default")
        parameter.check(f"{name}, {key}", value)
        complete[key] = value
    return complete


def least_replies(name: str, parameters: Parameters) -> int:
    """Replies that a round must have; Flower's Krum computes nonsense below this, its Bulyan returns nothing."""
    return STRATEGIES[name].least_sites(complete_parameters(name, parameters))


def _least_trimmed(beta: float) -> int:
    """The fewest replies of which one is cut off at either end: Flower cuts int(beta * replies)."""
    least = math.ceil(1 / beta)
    return least if int(beta * least) >= 1 else least + 1
