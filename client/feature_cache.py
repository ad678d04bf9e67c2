"""Features of a frozen image network on disk, beside the cohort: whole and right, or computed again.

`COHORT/features/<name>.npy` holds them, `<name>.json` says what they were computed from and the file's checksum. The
header is written last, and both files take their place by a rename, so an interrupted computation leaves nothing
that looks whole.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from client.cohort import sha256_of

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 60.0


class FeatureCacheError(ValueError):
    """Features that cannot be kept; says where and what to do."""


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What the features of a cohort's radiographs depend on: features of equal keys are the same."""

    depth: int
    """Of the residual network."""
    crop_pixels: int
    precision: str
    """Number format of its convolutions; the features themselves are float32."""
    weights_sha256: str
    """Of the residual network's weights and batch statistics."""
    regions_sha256: str
    """Of the cohort's regions, from its manifest."""
    shape: tuple[int, int, int]
    """Images of the cohort, regions, features."""

    @property
    def name(self) -> str:
        """Networks of one cohort lie side by side; so runs with several of them do not drive one another out."""
        return f"resnet{self.depth}_{self.crop_pixels}px_{self.precision}_{self.weights_sha256[:12]}"

    def header(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape), "dtype": "float32"}


def cached(folder: Path, key: FeatureKey, compute: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """float32 `key.shape`, memory-mapped: from the folder where it holds them whole, else computed and kept there.

    `compute` gives the features block by block, in the order of the images. Of several processes that need them at
    once one computes and the others wait. What lies there but does not fit is named in a warning and replaced.

    Raises FeatureCacheError where the folder cannot be written.
    """
    path = folder / f"{key.name}.npy"
    if _faults(path, key):
        try:
            with _locked(path):
                _compute_unless_whole(path, key, compute)
        except OSError as error:
            raise FeatureCacheError(
                f"{folder}: cannot keep the features of the frozen ResNet there ({error.strerror or error}); they take "
                f"{_num_bytes(key) / 1e9:.2f} GB beside the cohort: make the folder writable and free the room, or "
                "copy the cohort to where there is both"
            ) from None
    return np.load(path, mmap_mode="r")


def _compute_unless_whole(path: Path, key: FeatureKey, compute: Callable[[], Iterator[np.ndarray]]) -> None:
    # Looked at again under the lock: another process may have computed them meanwhile.
    faults = _faults(path, key)
    if not faults:
        return
    if path.exists() or _header_of(path).exists():
        logger.warning("%s: computing these features again, because %s", path, "; ".join(faults))
    for other in sorted(set(path.parent.glob("*.npy")) - {path}):
        logger.warning(
            "%s: not for this run, because %s; delete it where no other run needs it",
            other,
            "; ".join(_differences(other, key)),
        )
    _write(path, key, compute())


def _faults(path: Path, key: FeatureKey) -> list[str]:
    """What keeps the features in a file from being used; empty where they are whole and right."""
    if not path.is_file():
        return ["the file is missing"]
    differences = _differences(path, key)
    if differences:
        return differences
    found, expected = path.stat(), json.loads(_header_of(path).read_text())
    if _sha256(path, found.st_ino, found.st_size, found.st_mtime_ns) != expected.get("sha256"):
        return ["its checksum is not that of its header, so the file was changed or damaged"]
    return []


def _differences(path: Path, key: FeatureKey) -> list[str]:
    """How the header of a file differs from the one that these features have."""
    try:
        found = json.loads(_header_of(path).read_text())
    except FileNotFoundError:
        return ["it has no header, so its computation was interrupted"]
    except ValueError:
        return ["its header is not JSON"]
    if not isinstance(found, dict):
        return ["its header is not an object"]
    return [
        f"its {name} is {found.get(name)}, not {value}"
        for name, value in key.header().items()
        if found.get(name) != value
    ]


@lru_cache(maxsize=64)
def _sha256(path: Path, inode: int, size: int, modified_ns: int) -> str:
    """The checksum of a file as it is now: read once in a process, and again where the file has changed."""
    del inode, size, modified_ns
    return sha256_of(path)


def _write(path: Path, key: FeatureKey, blocks: Iterator[np.ndarray]) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < _num_bytes(key):
        raise OSError(f"{free / 1e9:.2f} GB are free")
    with _appearing(path) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": key.shape}
        )
        for block in _reported(blocks, path, key.shape[0]):
            file.write(np.ascontiguousarray(block, "<f4").data)
    header = {**key.header(), "sha256": sha256_of(path)}
    with _appearing(_header_of(path)) as file:
        file.write((json.dumps(header, indent=2) + "\n").encode())


def _reported(blocks: Iterator[np.ndarray], path: Path, total: int) -> Iterator[np.ndarray]:
    """The same blocks; the log hears now and then how far they are."""
    logger.info("%s: computing the features of %d radiographs, once for all runs with this ResNet", path, total)
    start = last = time.monotonic()
    done = 0
    for block in blocks:
        yield block
        done, now = done + len(block), time.monotonic()
        if now - last > _SECONDS_BETWEEN_REPORTS:
            last, minutes = now, (now - start) * (total - done) / done / 60
            logger.info("%s: %d of %d radiographs, %.0f minutes to go", path, done, total, minutes)
    logger.info("%s: done after %.0f s", path, time.monotonic() - start)


@contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place when all of it is on the disk, and leaves nothing where writing fails."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold these features against other processes; the system lets go where this one ends, however it ends."""
    path.parent.mkdir(exist_ok=True)
    with path.with_suffix(".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for another process that computes these features", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _header_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _num_bytes(key: FeatureKey) -> int:
    return 4 * int(np.prod(key.shape))
