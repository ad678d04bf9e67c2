"""Code bundles at a site: what is in one, how it differs from the last approved, and which may run.

A Flower run is Python that the server sends, as a zip archive (FAB). A site runs the bundles that somebody there has
approved by their SHA-256, and nothing else.
"""

import difflib
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from federation.files import write_whole

APPROVED = "approved"
"""Folder of a site's kit with the bundles that may run, and the list of them."""
_LIST = "approved.json"
_MOST_BYTES = 64 * 2**20
"""A bundle of more, unpacked, is refused; this project's have less than one megabyte."""
_MOST_FILES = 2000


class BundleError(ValueError):
    """A bundle that cannot be read, or that may not run."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The files of a bundle, unpacked in memory."""

    sha256: str
    files: Mapping[str, bytes]
    """By path inside the bundle."""


def read_bundle(content: bytes) -> Bundle:
    """Unpack a bundle without writing anything.

    Raises BundleError for what is no zip archive, for paths that leave its folder or come twice, links, and sizes
    beyond what any bundle needs.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [each for each in archive.infolist() if not each.is_dir()]
            _check_entries(entries)
            files = {each.filename: archive.read(each) for each in entries}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BundleError(f"expected a bundle that `flwr build` made, cannot unpack it ({error})") from None
    return Bundle(sha256=hashlib.sha256(content).hexdigest(), files=files)


def difference(old: Bundle | None, new: Bundle) -> Iterator[str]:
    """What changed from one bundle to the next, as lines of a unified diff; without an old one everything is new."""
    before = {} if old is None else old.files
    for name in sorted({*before, *new.files}):
        left, right = _text(before.get(name, b"")), _text(new.files.get(name, b""))
        yield from difflib.unified_diff(
            left, right, f"approved/{name}" if name in before else "none", name if name in new.files else "none", n=2
        )


@dataclass(frozen=True, kw_only=True)
class Approvals:
    """The bundles that one site has approved, in the folder of its kit."""

    kit: Path

    def hashes(self) -> tuple[str, ...]:
        """SHA-256 of each, the last approved last; none where nothing was. Raises BundleError for a damaged list."""
        path = self.kit / APPROVED / _LIST
        if not path.exists():
            return ()
        try:
            return tuple(str(each["sha256"]) for each in json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: expected the list of approved bundles, cannot read it ({error})") from None

    def last(self) -> Bundle | None:
        """The bundle approved last, None before the first."""
        hashes = self.hashes()
        return read_bundle((self.kit / APPROVED / f"{hashes[-1]}.fab").read_bytes()) if hashes else None

    def approve(self, content: bytes) -> Bundle:
        """Let a bundle run from now on; approving one again changes nothing."""
        bundle, path = read_bundle(content), self.kit / APPROVED / _LIST
        if bundle.sha256 in self.hashes():
            return bundle
        entries = json.loads(path.read_text()) if path.exists() else []
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_whole(self.kit / APPROVED / f"{bundle.sha256}.fab", content)
        write_whole(
            path, (json.dumps([*entries, {"sha256": bundle.sha256, "approved": when}], indent=2) + "\n").encode()
        )
        return bundle

    def withdraw(self, sha256: str) -> None:
        """Let a bundle run no longer. Raises BundleError where it was not approved."""
        path = self.kit / APPROVED / _LIST
        if sha256 not in self.hashes():
            raise BundleError(f"{path}: expected an approved bundle, found none of {sha256}")
        left = [each for each in json.loads(path.read_text()) if each["sha256"] != sha256]
        write_whole(path, (json.dumps(left, indent=2) + "\n").encode())

    def require(self, content: bytes) -> str:
        """The SHA-256 of a bundle that may run. Raises BundleError for every other one."""
        found = hashlib.sha256(content).hexdigest()
        if found not in self.hashes():
            raise BundleError(
                f"the code bundle {found} is not approved at this site; `dipro-fed site approve BUNDLE` shows what is "
                "in one, and lets it run"
            )
        return found


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > _MOST_FILES or sum(each.file_size for each in entries) > _MOST_BYTES:
        raise BundleError(f"expected a bundle of at most {_MOST_FILES} files and {_MOST_BYTES >> 20} MB, found more")
    seen: set[str] = set()
    for each in entries:
        path = PurePosixPath(each.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in each.filename or each.filename != str(path):
            raise BundleError(f"expected paths inside the bundle, found {each.filename!r}")
        if each.filename in seen:
            raise BundleError(f"expected each path once, found {each.filename!r} again")
        if (each.external_attr >> 16) & 0o170000 == 0o120000:
            raise BundleError(f"expected files, found a link: {each.filename!r}")
        seen.add(each.filename)


def _text(content: bytes) -> list[str]:
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError:
        return [f"binary, SHA-256 {hashlib.sha256(content).hexdigest()}"]
