"""What the server sends of its model: all of it, or to sites that hold the last version what has changed since."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from federation.codecs import Codec
from federation.messages import WHOLE


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A model as one site is sent it."""

    weights: np.ndarray
    """float32 [number] for the base WHOLE, else uint8: a payload, or nothing where the site has the version."""
    version: int
    base: int


@dataclass(kw_only=True)
class Broadcast:
    """The versions of one run's model, and who holds which.

    With a codec sites keep the model that they were last sent. What the codec leaves out of a change is added to the
    next one, so that nothing is lost; the model of the run is then what the sites hold, never a more exact one.
    """

    codec: Codec | None
    """None sends the whole model each time, and sites keep nothing."""
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """float32 [number]: the model that was published last."""
    version: int = 0
    _payload: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    _residual: np.ndarray | None = None
    _holders: dict[str, int] = field(default_factory=dict)

    def publish(self, weights: np.ndarray) -> np.ndarray:
        """Make the next version of these weights, and return it: what every site reads. Raises CodecError."""
        if self.codec is None or not self.version:
            self.weights = weights
        else:
            payload, self._residual = self.codec.encode(weights, self.weights, self._residual)
            self._payload, self.weights = payload.to_array(), self.codec.decode(payload, self.weights)
        self.version += 1
        return self.weights

    def publish_whole(self, weights: np.ndarray) -> None:
        """Make these very weights the next version, such as those of an earlier round; every site gets all of them."""
        if np.array_equal(weights, self.weights):
            return
        self.weights, self._residual = weights, None
        self.version += 1
        self._holders.clear()

    def parcel(self, site: str) -> Parcel:
        """What a site must be sent so that it has the last version."""
        held = self._holders.get(site, WHOLE)
        if self.codec is not None and held == self.version:
            return Parcel(weights=np.zeros(0, np.uint8), version=self.version, base=self.version)
        if self.codec is not None and held == self.version - 1:
            return Parcel(weights=self._payload, version=self.version, base=held)
        return Parcel(weights=self.weights, version=self.version, base=WHOLE)

    def is_held_by(self, site: str) -> None:
        """A site has answered, so it holds the last version."""
        self._holders[site] = self.version

    def is_lost_by(self, site: str) -> None:
        """A site failed or did not answer: what it holds is not known, so that the next time it gets all."""
        self._holders.pop(site, None)

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs beside the model."""
        found = {"version": np.array(self.version)}
        return found if self._residual is None else found | {"residual": self._residual}

    def restore(self, weights: np.ndarray, state: Mapping[str, np.ndarray]) -> None:
        """Go on from the weights that were published last and from what `state` gave; every site gets all of them."""
        self.weights, self.version = weights, int(state["version"])
        self._residual = state.get("residual")
        self._holders.clear()
