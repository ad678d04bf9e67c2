"""The audit log: whole as it is written, and every way to change it found."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.audit import AuditError, AuditLog, verify


def _log(folder: Path, count: int = 5) -> Path:
    path = folder / "audit.jsonl"
    for number in range(count):
        AuditLog(path=path).write("left", site="north", round=number, arrays={"weights": [number]})
    return path


def test_lines_follow_from_one_another(tmp_path: Path) -> None:
    path = _log(tmp_path)
    trail = verify(path)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert trail.num_entries == 5
    assert [each["number"] for each in entries] == [1, 2, 3, 4, 5]
    assert [each["previous"] for each in entries[1:]] == [each["hash"] for each in entries[:-1]]
    assert trail.head == entries[-1]["hash"]
    AuditLog(path=path).write("left", words='Zürich\n"')
    assert verify(path, head=trail.head).num_entries == 6


CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "a value": lambda lines: [*lines[:2], lines[2].replace('"round": 2', '"round": 7'), *lines[3:]],
    "a line taken out": lambda lines: [*lines[:2], *lines[3:]],
    "the first line taken out": lambda lines: lines[1:],
    "a line twice": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "two lines exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "a line of something else": lambda lines: [*lines[:2], "{}", *lines[3:]],
    "no JSON": lambda lines: [*lines[:4], "left"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_found(tmp_path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = _log(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(AuditError, match=r"line \d"):
        verify(path)


def test_a_shorter_log_and_a_new_one_are_found_by_a_hash_noted_before(tmp_path: Path) -> None:
    path = _log(tmp_path)
    head = verify(path).head
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:3]))
    assert verify(path).num_entries == 3
    for _ in range(2):
        with pytest.raises(AuditError, match="expected the line of hash"):
            verify(path, head=head)
        path.unlink()
        _log(tmp_path)


def test_what_a_killed_process_left_of_a_line_is_cut_off_and_told(tmp_path: Path) -> None:
    path = _log(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1][:50])
    with pytest.raises(AuditError, match="line 6: expected a whole line"):
        verify(path)
    AuditLog(path=path).write("left", site="north")
    assert verify(path).num_entries == 7
    cut = json.loads(path.read_text().splitlines()[5])
    assert (cut["event"], cut["bytes"]) == ("unfinished line removed", 50)


def test_nothing_is_added_to_a_log_whose_last_line_was_changed(tmp_path: Path) -> None:
    path = _log(tmp_path)
    changed = path.read_text().replace('"round": 4', '"round": 5')
    path.write_text(changed)
    with pytest.raises(AuditError, match="the line was changed"):
        AuditLog(path=path).write("left", site="north")
    assert path.read_text() == changed


def test_long_lines_and_names_that_every_line_has(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    for size in (10, 200_000, 10):
        AuditLog(path=path).write("left", words="x" * size)
    assert verify(path).num_entries == 3
    with pytest.raises(ValueError, match="expected other names than hash, time"):
        AuditLog(path=path).write("left", hash="0", time=1)
    with pytest.raises(AuditError, match="cannot be read"):
        verify(tmp_path / "none.jsonl")
