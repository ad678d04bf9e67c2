"""Arrays that wait for the end of a round: some in memory, the others in files."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

MEMORY_BYTES = 2**30
"""What may wait in memory, whatever the number of sites: eight replies of the full model."""


class Waiting:
    """Arrays of one round by site and name; what memory does not hold lies in files of `scratch`, which end with it."""

    def __init__(self, scratch: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self._folder = TemporaryDirectory(prefix=".replies_", dir=scratch)
        self._left = memory_bytes
        self._held: dict[tuple[str, str], np.ndarray] = {}

    def keep(self, site: str, name: str, values: np.ndarray) -> None:
        """Hold on to an array that nobody will change."""
        if values.nbytes <= self._left:
            self._left -= values.nbytes
            self._held[site, name] = values
        else:
            np.save(self._file(site, name), values)

    def take(self, site: str, name: str) -> np.ndarray:
        """The array, for reading, and no longer held here."""
        values = self._held.pop((site, name), None)
        if values is None:
            values = np.load(self._file(site, name), mmap_mode="r")
            self._file(site, name).unlink()  # the mapping stays readable
        else:
            self._left += values.nbytes
        return values

    def close(self) -> None:
        """Forget everything, files included."""
        self._held.clear()
        self._folder.cleanup()

    def _file(self, site: str, name: str) -> Path:
        # Sites' names are file names, as `client.records.SiteSpec` has it; a server must not rely on it.
        return Path(self._folder.name) / f"{hashlib.sha256(site.encode()).hexdigest()[:16]}.{name}.npy"
