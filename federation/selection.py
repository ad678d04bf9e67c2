"""Which entries of a model's flat array are trained, are batch norm, or are its running statistics."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from torch import nn

# Private to the package: one definition of what is flattened, in which order, and of what rests.
from federation.weights import _floating, _frozen


class SelectionError(ValueError):
    """Entries that do not belong to the array they are used with; says how they differ."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Some entries of a flat array, as runs: a model of 31 million weights has a few hundred of them."""

    total: int
    """Length of the flat array."""
    runs: tuple[tuple[int, int], ...]
    """First entry and the one after the last of every run; increasing, neither empty nor touching."""

    def __post_init__(self) -> None:
        ends = [-1] + [end for _, end in self.runs]
        fits = all(last < start < end for last, (start, end) in zip(ends, self.runs, strict=False))
        if not fits or ends[-1] > self.total:
            raise SelectionError(
                f"expected increasing runs that do not touch below {self.total}, found {self.runs[:9]}"
            )

    @classmethod
    def of(cls, mask: np.ndarray) -> "Entries":
        """Those where a bool array is true."""
        edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
        runs = tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))
        return cls(total=mask.size, runs=runs)

    @cached_property
    def size(self) -> int:
        """How many there are."""
        return sum(end - start for start, end in self.runs)

    def mask(self) -> np.ndarray:
        """bool [total]: true at these entries."""
        chosen = np.zeros(self.total, dtype=bool)
        for start, end in self.runs:
            chosen[start:end] = True
        return chosen

    def take(self, flat: np.ndarray) -> np.ndarray:
        """[size]: these entries of an array, as a copy."""
        self._check(flat, self.total)
        return np.concatenate([flat[start:end] for start, end in self.runs] or [flat[:0]])

    def put(self, flat: np.ndarray, values: np.ndarray) -> None:
        """Write values to these entries of an array, in place; the others keep their bits."""
        self._check(flat, self.total)
        self._check(values, self.size)
        for part, (start, end) in zip(self._parts(), self.runs, strict=True):
            flat[start:end] = values[part]

    def both(self, other: "Entries") -> "Entries":
        """Those that are in both."""
        return self._where(other, lambda ours, theirs: ours and theirs)

    def either(self, other: "Entries") -> "Entries":
        """Those that are in either."""
        return self._where(other, lambda ours, theirs: ours or theirs)

    def without(self, other: "Entries") -> "Entries":
        """Those that the other has not."""
        return self._where(other, lambda ours, theirs: ours and not theirs)

    def _where(self, other: "Entries", is_in: Callable[[bool, bool], bool]) -> "Entries":
        """By the ends of both sides' runs: a few hundred steps, however many entries there are."""
        if self.total != other.total:
            raise SelectionError(f"expected entries of an array [{self.total}], found those of one [{other.total}]")
        edges = sorted({0, self.total, *(edge for run in (*self.runs, *other.runs) for edge in run)})
        runs: list[tuple[int, int]] = []
        for start, end in pairwise(edges):
            if is_in(self._holds(start), other._holds(start)):
                touches = runs and runs[-1][1] == start
                runs[-1:] = [(runs[-1][0], end)] if touches else [*runs[-1:], (start, end)]
        return Entries(total=self.total, runs=tuple(runs))

    def _holds(self, entry: int) -> bool:
        place = bisect_right(self.runs, entry, key=lambda run: run[0])
        return place > 0 and entry < self.runs[place - 1][1]

    def _parts(self) -> Iterator[slice]:
        """Where each run lies in the array that `take` gives."""
        begin = 0
        for start, end in self.runs:
            yield slice(begin, begin + end - start)
            begin += end - start

    @staticmethod
    def _check(array: np.ndarray, size: int) -> None:
        if array.shape != (size,):
            raise SelectionError(f"expected an array [{size}], found {list(array.shape)}")


@dataclass(frozen=True, kw_only=True)
class ModelEntries:
    """What the entries of a model's flat array are; found once, the same at the server and at every site."""

    trained: Entries
    """What local work changes and therefore travels: all but modules whose every parameter is frozen."""
    parameters: Entries
    """Parameters with a gradient; corrections of gradients and proximal terms apply to these alone."""
    means: Entries
    """Running means of batch norms."""
    variances: Entries
    """Running variances of batch norms, in the order of `means`: entry i of the one belongs to entry i of the other."""
    batch_norm: Entries
    """Scale, shift, running mean and running variance of every batch norm: what FedBN leaves at the site
    (Li et al. 2021, arXiv 2102.07623)."""

    @property
    def statistics(self) -> Entries:
        """Running means and variances."""
        return self.means.either(self.variances)


def model_entries(model: nn.Module) -> ModelEntries:
    """The entries of `flatten_weights(model)` by what they are."""
    sizes, frozen = {name: tensor.numel() for name, tensor in _floating(model).items()}, _frozen(model)
    gradients = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    inside = {f"{norm}." if norm else "" for norm in norms}
    batch_norm = {name for name in sizes if name.removesuffix(name.rpartition(".")[2]) in inside}
    return ModelEntries(
        trained=_entries(sizes, set(sizes) - frozen),
        parameters=_entries(sizes, gradients),
        means=_entries(sizes, {name for name in batch_norm if name.endswith("running_mean")}),
        variances=_entries(sizes, {name for name in batch_norm if name.endswith("running_var")}),
        batch_norm=_entries(sizes, batch_norm),
    )


def module_entries(model: nn.Module, name: str) -> Entries:
    """The entries of `flatten_weights(model)` of one module, by its name."""
    sizes = {tensor: value.numel() for tensor, value in _floating(model).items()}
    return _entries(sizes, {tensor for tensor in sizes if tensor.startswith(f"{name}.")})


def trainable_mask(model: nn.Module) -> np.ndarray:
    """bool [number]: true where `flatten_weights(model)` holds what local work changes."""
    return model_entries(model).trained.mask()


def _entries(sizes: Mapping[str, int], names: set[str]) -> Entries:
    runs: list[tuple[int, int]] = []
    start = 0
    for name, size in sizes.items():
        end = start + size
        if name in names and start < end:
            touches = runs and runs[-1][1] == start
            runs[-1:] = [(runs[-1][0], end)] if touches else [*runs[-1:], (start, end)]
        start = end
    return Entries(total=start, runs=tuple(runs))
