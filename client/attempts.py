"""What a site keeps on its disk of a round whose updates are masked: its secrets, until they are not needed.

A deployed site is a new process for every message. Files are readable by their owner alone and lie in the run's folder
of the site's state, so that they end with the run; whoever reads the disk while a round lasts can unmask its update.
"""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Records
from pydantic import Field

from client.site_state import SiteState
from federation.files import write_whole
from federation.freight import Item, digest_of, loaded, unloaded
from federation.secure.steps import Said, SiteKeys, UnmaskAnswer, read

_FOLDER, _UNMASKED, _LOCK = "masks", "unmasked.json", "lock"


class Secrets(Said):
    """What a site must know until it has sent its masked update."""

    mask_key: str
    """Private X25519 key of the pair masks, hexadecimal."""
    share_key: str
    """The same, of the sealed shares."""
    seed: str
    """Of the self mask."""


class Attempt(Said):
    """One try of a round, as far as it has come."""

    own: SiteKeys
    secrets: Secrets | None
    """None once the masked update is kept."""
    keys: tuple[SiteKeys, ...] = ()
    """Of all sites, once shares were given."""
    parcels: dict[str, str] = Field(default_factory=dict)
    """What was sealed for the neighbours."""
    own_share: str = ""
    """The site's own share of its seed."""
    members: tuple[str, ...] = ()
    """Who masks, once this site did."""
    terms: str = ""
    """What it worked on, as `terms_digest` says it."""
    held: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """By member, its shares that this site holds: of the self mask's seed, of the private mask key."""
    survivors: tuple[str, ...] = ()
    """Whom this site has signed for."""
    revealed: UnmaskAnswer | None = None
    """What it has revealed; the shares are then no longer held."""


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The attempts of one run that a site remembers."""

    state: SiteState

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this site from these files: two that are asked at once must not both answer anew."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # released when the file is closed
            yield

    def find(self, server_round: int, attempt: str) -> Attempt | None:
        """The attempt as it was kept last, if any. Raises SecureError for a damaged file."""
        path = self._path(server_round, attempt)
        return read(Attempt, path.read_text(), f"{self.state.site}, {path.name}") if path.is_file() else None

    def keep(self, attempt: Attempt) -> None:
        """Write an attempt; a crash leaves it as it was before."""
        path = self._path(attempt.own.round, attempt.own.attempt)
        write_whole(path, attempt.model_dump_json().encode(), is_private=True)

    def forget(self, is_over: Callable[[int, str], bool] = lambda server_round, attempt: True) -> None:
        """Remove the attempts of these rounds and names, all unless told otherwise."""
        for path in self._folder.glob("*-*"):
            number, _, name = path.name.partition("-")
            if is_over(int(number), name.partition(".")[0]):
                path.unlink()

    def keep_reply(self, server_round: int, attempt: str, content: RecordDict) -> None:
        """Write what is about to leave, so that whoever asks again gets the same bytes.

        Large arrays go into files of their own: Flower's form of a message copies them many times.
        """
        path = self._path(server_round, attempt).with_suffix(".reply")

        def keep(part: np.ndarray) -> str:
            digest = digest_of(part)
            write_whole(path.with_suffix(f".{digest}"), part.data, is_private=True)
            return digest

        light = unloaded(content, keep)
        write_whole(path, recorddict_to_proto(light).SerializeToString(), is_private=True)

    def find_reply(self, server_round: int, attempt: str) -> RecordDict | None:
        """What has left, or was about to; None where nothing was masked yet. Raises FreightError where it changed."""
        path = self._path(server_round, attempt).with_suffix(".reply")
        if not path.is_file():
            return None

        def fetch(item: Item) -> np.ndarray:
            part = np.fromfile(path.with_suffix(f".{item.digest}"), np.uint8)
            item.check(part)
            return part

        return loaded(recorddict_from_proto(Records.FromString(path.read_bytes())), fetch)

    def drop_reply(self, server_round: int, attempt: str) -> None:
        """Forget what has left: the server has it."""
        own = self._path(server_round, attempt)
        for path in self._folder.glob(f"{own.stem}.*"):
            if path != own:
                path.unlink()

    def unmasked(self, server_round: int) -> str | None:
        """Of which survivors this site has helped to unmask a round, as `note_unmasked` was told; None for none."""
        return self._all_unmasked().get(str(server_round))

    def note_unmasked(self, server_round: int, survivors: str) -> None:
        """Remember, for the rest of the run, of whom a round was unmasked."""
        known = {**self._all_unmasked(), str(server_round): survivors}
        write_whole(self._folder / _UNMASKED, json.dumps(known).encode(), is_private=True)

    def _all_unmasked(self) -> dict[str, str]:
        path = self._folder / _UNMASKED
        return json.loads(path.read_text()) if path.is_file() else {}

    def _path(self, server_round: int, attempt: str) -> Path:
        return self._folder / f"{server_round}-{attempt}.json"

    @property
    def _folder(self) -> Path:
        return self.state.run_folder / _FOLDER
