"""What a model scores on one split of one site, in numbers that may leave the site."""

from collections.abc import Mapping
from dataclasses import dataclass

from federation.run_folder import Measurement


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """Losses and metrics of a model on one split of one site; a metric that is undefined is None."""

    num_samples: int
    losses: Mapping[str, float]
    """The objective (`total`) and its parts, means over samples; empty where they do not leave the site."""
    metrics: Mapping[str, float | None]

    def measured(self, *, step: int, site: str, split: str, seconds: float) -> Measurement:
        """The line of a run's history that says this."""
        return Measurement(
            step=step,
            site=site,
            split=split,
            loss=self.losses.get("total"),
            parts={name: value for name, value in self.losses.items() if name != "total"},
            metrics=self.metrics,
            num_samples=self.num_samples,
            seconds=seconds,
        )
