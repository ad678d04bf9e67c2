"""Files on a disk that is really full, in the hands of a process that may write no more, and under a lock."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from federation.checkpoint import load_checkpoint, save_checkpoint
from federation.files import StorageError, append_whole, lock_folder, remove_partials, write_whole
from federation.initial import initial_model
from federation.run_folder import Measurement, append_history, read_history
from tests.small_run import small_settings

MEASUREMENT = Measurement(
    step=1, site="pooled", split="val", loss=0.5, parts={}, metrics={}, num_samples=2, seconds=1.0
)


def _fill(folder: Path, leave: int) -> None:
    """Take up all room of the disk but some bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(free - leave))


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk: Path) -> None:
    path, model = small_disk / "checkpoints" / "last.pt", initial_model(small_settings())
    save_checkpoint(path, model, step=1, settings={})
    size = path.stat().st_size
    _fill(small_disk, leave=size // 2)
    with pytest.raises(
        StorageError, match=rf"{path}: could not be written \(No space left on device\): it needs"
    ) as caught:
        save_checkpoint(path, model, step=2, settings={})
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    assert f"it needs {size:,} bytes, {free:,} are free" in str(caught.value)
    assert free < size
    assert load_checkpoint(path)[1] == 1
    assert [each.name for each in path.parent.iterdir()] == ["last.pt"]
    (small_disk / "filler").unlink()
    save_checkpoint(path, model, step=2, settings={})
    assert load_checkpoint(path)[1] == 2


def test_a_full_disk_keeps_the_history_as_it_was(small_disk: Path) -> None:
    append_history(small_disk, [MEASUREMENT])
    page = os.statvfs(small_disk).f_frsize
    _fill(small_disk, leave=page)
    with pytest.raises(StorageError, match=r"history\.jsonl: could not be written"):
        append_history(small_disk, [MEASUREMENT] * (3 * page // 100))
    assert read_history(small_disk) == [MEASUREMENT]


def _write_under_a_limit(folder: Path) -> None:
    """In a process of its own: what the system allows a file to grow to cannot be raised again."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    for write in (write_whole, append_whole):
        with pytest.raises(StorageError, match=r"facts\.json: could not be written \(File too large\): it needs 9,000"):
            write(folder / "facts.json", bytes(9000))


def test_a_file_too_large_for_the_process_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_bytes(b"old")
    process = multiprocessing.get_context("fork").Process(target=_write_under_a_limit, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("facts.json", b"old")]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"run/facts\.json: could not be written"):
        write_whole(tmp_path / "run" / "facts.json", b"new")


def _try_to_lock(folder: Path) -> None:
    lock_folder(folder).close()


def _exit_code(folder: Path) -> int | None:
    """Of another process that tries to lock the folder: 0 where it may."""
    process = multiprocessing.get_context("fork").Process(target=_try_to_lock, args=(folder,))
    process.start()
    process.join(60)
    return process.exitcode


def test_a_folder_is_locked_while_its_file_is_open(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lock_folder(tmp_path)
    assert _exit_code(tmp_path) == 1
    assert "StorageError" in (said := capfd.readouterr().err)
    assert "another process is training into this folder; wait until it ends" in said
    file.close()
    assert _exit_code(tmp_path) == 0


def test_processes_that_outlive_the_one_that_locked_do_not_keep_the_lock(tmp_path: Path) -> None:
    """As the loader's processes do for some seconds after their parent was killed."""
    wait, end = os.pipe()
    training = os.fork()
    if training == 0:
        file = lock_folder(tmp_path)  # noqa: F841 (open while this process lives)
        if os.fork() == 0:
            os.close(end)
            os.read(wait, 1)
        os._exit(0)
    os.waitpid(training, 0)
    assert _exit_code(tmp_path) == 0
    os.close(end)
    os.close(wait)


def test_partial_files_of_killed_processes_go(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("run.json", "run.json.partial", "checkpoints/last.pt", "checkpoints/last.pt.partial"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["last.pt", "run.json"]
