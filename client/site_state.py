"""What a site keeps on its own disk from round to round of one run: named arrays, each written whole or not at all."""

import io
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from federation.files import write_whole

_STATE = "state"


class SiteStateError(ValueError):
    """State that is needed and not there; says what to do."""


@dataclass(frozen=True, kw_only=True)
class SiteState:
    """The state of one site in one run, in `folder`/state/`run`."""

    site: str
    folder: Path | None
    """The site's folder; None where it has none and can keep nothing."""
    run: str
    """Name of the run, drawn by the server; another run's state is never read."""

    @property
    def run_folder(self) -> Path:
        """Folder of this run, which ends with it. Raises SiteStateError where the site has none."""
        return self._path("keys of a round").parent

    def begin(self) -> None:
        """Forget what other runs left; what this one left before it was interrupted stays."""
        if self.folder is not None and (self.folder / _STATE).is_dir():
            for other in (self.folder / _STATE).iterdir():
                if other.name != self.run:
                    shutil.rmtree(other)

    def keep(self, name: str, values: np.ndarray) -> None:
        """Write an array; a crash leaves the one that was there before. Raises SiteStateError, StorageError."""
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        write_whole(self._path(name), buffer.getbuffer())

    def find(self, name: str) -> np.ndarray | None:
        """The array that was kept under a name, if any. Raises SiteStateError for a damaged file."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise SiteStateError(
                f"{self.site}: {path.name} in its state folder is damaged ({type(error).__name__}); "
                "delete the folder and start the run again"
            ) from None

    def keep_of_round(self, kind: str, server_round: int, values: np.ndarray) -> None:
        """Write what a round made of an array that goes from round to round; what it was before stays too.

        A server that crashed may ask for the same round again: `before_round` then gives what it gave the first time.
        """
        self.keep(f"{kind}-{server_round}", values)
        before = [number for number in self.numbers(kind) if number < server_round]
        self.drop(kind, but={f"{kind}-{number}" for number in (*before[-1:], server_round)})

    def before_round(self, kind: str, server_round: int) -> np.ndarray | None:
        """The array as the last round before this one left it, if any."""
        before = [number for number in self.numbers(kind) if number < server_round]
        return self.find(f"{kind}-{before[-1]}") if before else None

    def drop(self, kind: str, *, but: Collection[str]) -> None:
        """Forget the arrays named `kind`-number, all but some."""
        for number in self.numbers(kind):
            if (name := f"{kind}-{number}") not in but:
                self._path(name).unlink()

    def numbers(self, kind: str) -> list[int]:
        """The numbers of the arrays that are kept as `kind`-number, in order."""
        found = self._path(kind).parent.glob(f"{kind}-*.npy")
        return sorted(int(path.stem.removeprefix(f"{kind}-")) for path in found)

    def _path(self, name: str) -> Path:
        if self.folder is None:
            raise SiteStateError(
                f"{self.site}: expected a folder of the site, where these settings keep {name}, found none; start the "
                "SuperNode with --node-config 'folder=\"FOLDER\"'"
            )
        return self.folder / _STATE / self.run / f"{name}.npy"
