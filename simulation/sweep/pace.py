"""How long a sweep will go on, from what its runs have taken so far."""

from collections.abc import Iterable
from copy import deepcopy


class Pace:
    """Seconds that a unit of work takes, model by model.

    An epoch and a round of one step cost so differently that one pace for all would be hours off. A model that has not
    run yet goes at the pace of all the others together.
    """

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}
        """Work done, and the seconds of a process that it took."""

    def add(self, model: str, work: float, seconds: float) -> None:
        """So much more work of this model is done, in so many seconds of one process."""
        before, spent = self._spent.get(model, (0.0, 0.0))
        self._spent[model] = (before + work, spent + seconds)

    def copy(self) -> "Pace":
        """One that goes on from here by itself."""
        return deepcopy(self)

    def seconds_for(self, left: Iterable[tuple[str, float]]) -> float | None:
        """Seconds of one process for models and the work that is left of them; None before any work was done."""
        work, seconds = (sum(each) for each in zip(*self._spent.values(), strict=True)) if self._spent else (0.0, 0.0)
        if not work:
            return None
        paces = {model: spent / done for model, (done, spent) in self._spent.items() if done}
        return sum(amount * paces.get(model, seconds / work) for model, amount in left)
