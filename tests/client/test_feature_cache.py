"""Features on disk are whole and right or computed again, whoever stops, damages or shares them."""

import json
import logging
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from client.feature_cache import FeatureCacheError, FeatureKey, cached

KEY = FeatureKey(
    depth=10, crop_pixels=16, precision="fp32", weights_sha256="a" * 64, regions_sha256="b" * 64, shape=(7, 10, 512)
)
WHOLE = np.random.default_rng(0).normal(size=KEY.shape).astype(np.float32)
OTHERS_WAIT_SECONDS = 60


class Computing:
    """The features in blocks of three images, counted."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.times += 1
        for start in range(0, len(WHOLE), 3):
            yield WHOLE[start : start + 3]


def test_features_are_computed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    computing = Computing()
    for _ in range(3):
        features = cached(tmp_path / "features", KEY, computing)
        np.testing.assert_array_equal(features, WHOLE)
        assert isinstance(features, np.memmap)
    assert computing.times == 1
    assert not caplog.records  # no warnings


def _change(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _rewrite(path: Path, **changes: object) -> None:
    header = path.with_suffix(".json")
    header.write_text(json.dumps({**json.loads(header.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: _change(path, -1), "its checksum is not that of its header"),
        (lambda path: _change(path, 130), "its checksum is not that of its header"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "its checksum is not that of its header"),
        (lambda path: path.with_suffix(".json").unlink(), "it has no header, so its computation was interrupted"),
        (lambda path: path.with_suffix(".json").write_text("{"), "its header is not JSON"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "its header is not an object"),
        (lambda path: _rewrite(path, regions_sha256="c" * 64), f"its regions_sha256 is {'c' * 64}, not {'b' * 64}"),
        (lambda path: _rewrite(path, shape=[6, 10, 512]), r"its shape is \[6, 10, 512\], not \[7, 10, 512\]"),
        (lambda path: _rewrite(path, weights_sha256="a" * 63 + "d"), "its weights_sha256 is a*d, not a*"),
        (lambda path: path.unlink(), "the file is missing"),
    ],
)
def test_what_does_not_fit_is_named_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], words: str
) -> None:
    computing = Computing()
    cached(tmp_path, KEY, computing)
    damage(path := tmp_path / f"{KEY.name}.npy")
    np.testing.assert_array_equal(cached(tmp_path, KEY, computing), WHOLE)
    assert computing.times == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.message
    assert re.search(words, record.message)
    cached(tmp_path, KEY, computing)
    assert computing.times == 2


@pytest.mark.parametrize("change", [{"weights_sha256": "e" * 64}, {"precision": "bf16"}, {"crop_pixels": 32}])
def test_another_network_gets_features_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict
) -> None:
    first, second = Computing(), Computing()
    cached(tmp_path, KEY, first)
    other = replace(KEY, **change)
    np.testing.assert_array_equal(cached(tmp_path, other, second), WHOLE)
    (name,) = change
    assert f"{KEY.name}.npy: not for this run, because its {name} is" in caplog.text
    # Two runs that take turns do not compute again and again.
    for key, computing in ((KEY, first), (other, second)) * 2:
        cached(tmp_path, key, computing)
    assert (first.times, second.times) == (1, 1)


def test_a_change_while_the_file_is_open_is_noticed(tmp_path: Path) -> None:
    computing = Computing()
    before = cached(tmp_path, KEY, computing)
    _change(tmp_path / f"{KEY.name}.npy", -1)
    after = cached(tmp_path, KEY, computing)
    assert computing.times == 2
    np.testing.assert_array_equal(after, WHOLE)
    del before


def _compute_slowly(folder: Path, number: int) -> None:
    """What one of several processes does; each computation leaves a trace."""

    def blocks() -> Iterator[np.ndarray]:
        (folder / f"computed by {number}").touch()
        for row in WHOLE:
            time.sleep(0.1)
            yield row[None]

    features = cached(folder / "features", KEY, blocks)
    assert np.array_equal(features, WHOLE)


def test_processes_that_need_them_at_once_compute_them_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute_slowly, args=(tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(OTHERS_WAIT_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("computed by *"))) == 1


def _stop_in_the_middle(folder: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield WHOLE[:3]
        os.kill(os.getpid(), signal.SIGKILL)

    cached(folder, KEY, blocks)


def test_a_killed_computation_leaves_nothing_that_looks_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_stop_in_the_middle, args=(tmp_path,))
    process.start()
    process.join(OTHERS_WAIT_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock", ".partial"}
    np.testing.assert_array_equal(cached(tmp_path, KEY, Computing()), WHOLE)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock", ".npy", ".json"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "features").write_text("in the way")
    with pytest.raises(FeatureCacheError, match=r"features: cannot keep .* make the folder writable and free the room"):
        cached(tmp_path / "features", KEY, Computing())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(FeatureCacheError, match=r"0\.00 GB are free"):
        cached(tmp_path, KEY, Computing())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to the superuser")
def test_a_read_only_folder_is_refused_but_read(tmp_path: Path) -> None:
    folder, computing = tmp_path / "features", Computing()
    cached(folder, KEY, computing)
    folder.chmod(0o500)
    np.testing.assert_array_equal(cached(folder, KEY, computing), WHOLE)
    with pytest.raises(FeatureCacheError, match="make the folder writable"):
        cached(folder, replace(KEY, depth=18), computing)
    folder.chmod(0o700)


def test_a_disk_that_fills_while_writing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / f"{KEY.name}.npy.partial").symlink_to("/dev/full")
    with pytest.raises(FeatureCacheError, match=r"cannot keep .* \(No space left on device\)"):
        cached(tmp_path, KEY, Computing())
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    np.testing.assert_array_equal(cached(tmp_path, KEY, Computing()), WHOLE)
