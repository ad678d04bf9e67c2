"""What a reply must be before it is aggregated; one that is not is refused by name and reason, the rest go on.

Two steps, so that replies can be judged as they come: `Guard.problem` looks at one reply by itself, `outlying_norms` at
the sizes of a whole round's updates. docs/strategies.md says what each guard can and cannot see.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from federation.selection import Entries, ModelEntries
from federation.weights import all_finite

LEAST_FOR_MEDIAN = 3
"""Replies that a median needs to mean anything: of two, the larger is never more than twice the middle."""

_AT_ONCE = 1 << 18
"""Entries that are squared together in single precision, few enough to be exact to 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A site's reply to `train`, as it came."""

    site: str
    """Name of the site that was asked, by its node; never what the reply calls itself."""
    server_round: int
    """Round that the reply says it belongs to."""
    code_digest: str
    """Digest of the code that the site ran."""
    layout_digest: str
    """Digest of the names and shapes that its weights mean."""
    agreement_digest: str
    """Digest of the agreement that its values and class weights followed."""
    num_samples: int
    """Training samples that it says it learned from."""
    array_names: tuple[str, ...]
    """Names of the arrays in the reply."""
    weights: np.ndarray
    """The decoded weights."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What the replies of one round must be."""

    server_round: int
    code_digest: str
    layout_digest: str
    agreement_digest: str
    num_samples: Mapping[str, int]
    """Registered training samples of the sites that were asked, by name."""
    reference: np.ndarray
    """float32 [number]: the global model that the round began with."""
    array_names: tuple[str, ...] = ("weights",)
    groups: Mapping[str, Entries] = field(default_factory=dict)
    """Entries whose norm is taken together, by a name for people; empty: all together."""
    variances: Entries | None = None
    """Entries that cannot be negative."""

    def problem(self, reply: Submission, accepted: Iterable[str] = ()) -> str | None:
        """Why this reply cannot be used, or None; `accepted` names the sites whose reply to this round is in use."""
        return self._other_round(reply, accepted) or (
            self._other_code(reply) or self._other_weights(reply) or self._other_count(reply)
        )

    def problem_around(self, reply: Submission, accepted: Iterable[str] = ()) -> str | None:
        """The same of everything but the weights, where these are masked."""
        return self._other_round(reply, accepted) or self._other_code(reply) or self._other_count(reply)

    def norms(self, reply: Submission) -> dict[str, float]:
        """Length of the update, reply minus reference, over each group."""
        if not self.groups:
            return {"update": _distance(reply.weights, self.reference, ((0, self.reference.size),))}
        return {name: _distance(reply.weights, self.reference, each.runs) for name, each in self.groups.items()}

    def _other_round(self, reply: Submission, accepted: Iterable[str]) -> str | None:
        if reply.site not in self.num_samples:
            return f"expected a reply of {', '.join(sorted(self.num_samples))}, found one of {reply.site}"
        if reply.server_round != self.server_round:
            return f"expected a reply to round {self.server_round}, found one to round {reply.server_round}"
        if reply.site in accepted:
            return f"expected one reply to round {self.server_round}, found another"
        return None

    def _other_code(self, reply: Submission) -> str | None:
        if reply.code_digest != self.code_digest:
            return f"expected code {_short(self.code_digest)}, found {_short(reply.code_digest)}; update the site"
        if reply.layout_digest != self.layout_digest:
            return (
                f"expected weights of layout {_short(self.layout_digest)}, found {_short(reply.layout_digest)}; "
                "give the site the run's model settings"
            )
        if reply.agreement_digest != self.agreement_digest:
            return (
                f"expected the normalisation and class weights of agreement {_short(self.agreement_digest)}, found "
                f"{_short(reply.agreement_digest)}; start the run again, so that the sites agree anew"
            )
        return None

    def _other_weights(self, reply: Submission) -> str | None:
        weights, expected = reply.weights, self.reference
        if reply.array_names != self.array_names:
            return f"expected arrays {list(self.array_names)}, found {list(reply.array_names)}"
        if weights.dtype != expected.dtype:
            return f"expected weights as {expected.dtype}, found {weights.dtype}"
        if weights.shape != expected.shape:
            return f"expected weights of shape {list(expected.shape)}, found {list(weights.shape)}"
        if not all_finite(weights):
            return f"expected finite weights, found {int((~np.isfinite(weights)).sum())} that are not"
        if self.variances is not None and (below := int((self.variances.take(weights) < 0).sum())):
            return f"expected running variances of zero or more, found {below} below"
        return None

    def _other_count(self, reply: Submission) -> str | None:
        registered = self.num_samples[reply.site]
        if reply.num_samples != registered:
            return f"expected {registered} training samples, as registered, found {reply.num_samples}"
        return None


def norm_groups(entries: ModelEntries) -> dict[str, Entries]:
    """Trained parameters and running statistics apart: the one's units would hide the other's."""
    groups = {
        "parameters": entries.trained.without(entries.statistics),
        "running statistics": entries.trained.both(entries.statistics),
    }
    return {name: each for name, each in groups.items() if each.size}


def outlying_norms(norms: Mapping[str, Mapping[str, float]], factor: float) -> dict[str, str]:
    """Reasons, by site, against updates longer than `factor` times the round's median in any group.

    `norms` holds, by site, what `Guard.norms` says. The median lies among honest sites as long as more than half of the
    replies are honest. Fewer than three replies are not judged, nor is a group whose median is zero: more than half
    changed nothing there, and nothing is in proportion to nothing.
    """
    if factor < 1:
        raise ValueError(f"expected a factor of 1 or more for the norm guard, found {factor}; 10 is the default")
    if len(norms) < LEAST_FOR_MEDIAN:
        return {}
    reasons: dict[str, str] = {}
    for group in next(iter(norms.values())):
        median = float(np.median([each[group] for each in norms.values()]))
        for site, each in norms.items():
            if 0 < factor * median < each[group]:
                reasons.setdefault(
                    site,
                    f"expected an update ({group}) of at most {factor:g} times the round's median norm {median:.4g}, "
                    f"found {each[group]:.4g}",
                )
    return reasons


def surely_ordinary(norms: Mapping[str, Mapping[str, float]], num_sites: int, factor: float) -> set[str]:
    """Sites that `outlying_norms` will accept whatever else comes: of `num_sites` replies `norms` holds those so far.

    The median can fall no lower than to where it would be if all that are missing had changed nothing.
    """
    missing = [0.0] * (num_sites - len(norms))
    sure = set(norms)
    for group in next(iter(norms.values()), {}):
        least = float(np.median([*(each[group] for each in norms.values()), *missing]))
        sure -= {site for site, each in norms.items() if each[group] > factor * least}
    return sure


def _distance(weights: np.ndarray, reference: np.ndarray, runs: Iterable[tuple[int, int]]) -> float:
    """Euclidean: parts in single precision, exact to 1e-6 in half the time, their sum in double."""
    squares, ours, theirs = 0.0, torch.from_dlpack(weights), torch.from_dlpack(reference)
    for start, end in runs:
        for first in range(start, end, _AT_ONCE):
            part = slice(first, min(first + _AT_ONCE, end))
            change = ours[part] - theirs[part]
            square = float(torch.dot(change, change))
            # The square of a float32 may overflow.
            squares += square if math.isfinite(square) else float(torch.linalg.vector_norm(change.double())) ** 2
    return float(np.sqrt(squares))


def _short(digest: str) -> str:
    return digest[:12] or "none"
