"""Writing a cohort so that it appears whole or not at all.

Everything is written into a sibling folder `<out>.partial`; the manifest comes last, then one rename makes the cohort
appear. A preparation that is killed leaves the partial folder only, which has no manifest and is removed by the next.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from client.cohort import COHORT_FILES, FEATURE_FOLDER, MANIFEST, SCHEMA_VERSION, TABLES, Windows, sha256_of
from client.prepare.rejections import PrepareError

SOFTWARE = ("dipro-fed", "duckdb", "numpy", "pandas", "pillow", "pyarrow")
"""Packages whose versions a manifest names, because they could change its numbers."""

_COMPRESSION = "zstd"


@contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` to write a cohort into; it becomes `out` when the block ends without an error.

    What an interrupted preparation left behind is removed. An existing cohort at `out` is refused, or with
    `overwrite` replaced at the very end; a folder that holds anything but (parts of) a cohort is always refused.
    """
    _check_target(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    with _locked(partial):
        _empty(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _appear(partial, out)


def write_table(folder: Path, name: str, frame: pd.DataFrame) -> int:
    """Write `<name>.parquet` with exactly the cohort's columns and types; returns its number of rows."""
    schema = TABLES[name]
    table = pa.Table.from_pandas(frame.loc[:, schema.names], schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(), folder / f"{name}.parquet", compression=_COMPRESSION)
    return table.num_rows


@contextmanager
def table_writer(folder: Path, name: str) -> Iterator[pq.ParquetWriter]:
    """A writer of `<name>.parquet` for tables that are written in parts."""
    with pq.ParquetWriter(folder / f"{name}.parquet", TABLES[name], compression=_COMPRESSION) as writer:
        yield writer


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON a person can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(
    folder: Path, *, profile: str, profile_digest: str, windows: Windows, counts: Mapping[str, int]
) -> None:
    """Write the manifest of a folder that is complete but for it: what it was made with, and each file's checksum.

    It names no path and no clock time: equal files, profile and software give an equal manifest.
    """
    files = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in COHORT_FILES
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "profile": profile,
        "profile_digest": profile_digest,
        "windows": asdict(windows),
        "counts": dict(counts),
        "software": {name: version(name) for name in SOFTWARE},
        "files": files,
    }
    # Written under another name first, so that there is no moment with half a manifest.
    draft = folder / f"{MANIFEST}.draft"
    write_json(draft, content)
    draft.replace(folder / MANIFEST)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise PrepareError(f"{out}: expected a new folder for the cohort, found a file; choose another path")
    names = {path.name for path in out.iterdir()}
    foreign = sorted(names - {*COHORT_FILES, MANIFEST, FEATURE_FOLDER})
    if foreign:
        raise PrepareError(f"{out}: expected a new folder for the cohort, found {foreign[0]}; choose another path")
    if MANIFEST in names and not overwrite:
        raise PrepareError(f"{out}: there is a prepared cohort already; choose another path or ask for --overwrite")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the partial folder against a second preparation; the system lets go of it when the process ends."""
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PrepareError(f"{partial}: another preparation is writing this cohort; wait for it") from None
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _appear(partial: Path, out: Path) -> None:
    if not (partial / MANIFEST).is_file():
        raise AssertionError("a cohort appears only with its manifest")
    replaced = out.with_name(f"{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)
