"""The server's folder for what travels beside messages: what it takes from it, what it refuses, what it leaves."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from federation.files import StorageError
from federation.freight import LEAST_BYTES, PART_BYTES, Dock, FreightError, digest_of, packed, parts, places, unloaded
from federation.messages import raw_record
from server.freight import Hold, hold


def _content(values: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": raw_record({"weights": values})})


def _values(content: RecordDict) -> np.ndarray:
    return content.array_records["arrays"]["weights"].numpy()


def _leave(folder: Path, site: str, dock: Dock, content: RecordDict) -> RecordDict:
    """What the proxy does with the parts that a site puts; the site's reply comes back."""
    names = places()

    def put(values: np.ndarray) -> str:
        for part in parts(values):
            (folder / dock.hold / "docks" / site / dock.name / next(names)).write_bytes(part.tobytes())
        return digest_of(values)

    return packed(unloaded(content, put))


def _dock(content: RecordDict) -> Dock:
    dock = Dock.of(content)
    assert dock is not None
    return dock


def test_sites_share_a_file_and_have_docks_of_their_own(tmp_path: Path) -> None:
    content = _content(np.arange(LEAST_BYTES, dtype=np.float32))
    with hold(tmp_path) as held:
        north, south = (_dock(held.send(content, site)) for site in ("north", "south"))
        assert north.hold == south.hold
        assert north.name != south.name
        (sent,) = (tmp_path / north.hold / "sent").iterdir()
        assert digest_of(np.fromfile(sent, np.uint8)) == sent.name
        held.clear()
        assert not [path for path in (tmp_path / north.hold).rglob("*") if path.name not in ("sent", "docks")]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entries", [LEAST_BYTES, PART_BYTES // 4, PART_BYTES // 4 + 1, PART_BYTES])
def test_a_reply_is_put_together_from_its_parts(tmp_path: Path, entries: int) -> None:
    values = np.random.default_rng(entries).random(entries, np.float32)
    with hold(tmp_path) as held:
        dock = _dock(held.send(_content(values), "north"))
        reply = _leave(tmp_path, "north", dock, _content(-values))
        np.testing.assert_array_equal(_values(held.receive(reply, "north")), -values)


def test_a_reply_with_a_part_missing_short_or_changed_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(PART_BYTES, np.float32)
    with hold(tmp_path) as held:
        dock = _dock(held.send(_content(values), "north"))
        reply = _leave(tmp_path, "north", dock, _content(values))
        path = tmp_path / dock.hold / "docks" / "north" / dock.name / "01"
        whole = path.read_bytes()
        for content in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(content)
            with pytest.raises(FreightError, match=r"expected 8,388,608 bytes in part 01 of the reply"):
                held.receive(reply, "north")
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(FreightError, match="SHA-256"):
            held.receive(reply, "north")
        path.unlink()
        with pytest.raises(FreightError, match="found 0"):
            held.receive(reply, "north")


def test_a_reply_that_is_not_packed_is_refused(tmp_path: Path) -> None:
    with hold(tmp_path) as held:
        held.send(_content(np.zeros(1, np.float32)), "north")
        with pytest.raises(FreightError, match="expected a message packed"):
            held.receive(_content(np.zeros(1, np.float32)), "north")


def test_one_site_gains_nothing_by_the_parts_of_another(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(LEAST_BYTES, np.float32)
    with hold(tmp_path) as held:
        dock = _dock(held.send(_content(values), "north"))
        held.send(_content(values), "south")
        reply = _leave(tmp_path, "north", dock, _content(values))
        with pytest.raises(FreightError, match="part 00"):
            held.receive(reply, "south")


@pytest.mark.parametrize("site", ["../north", "", "north/..", "North", "node 1"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, site: str) -> None:
    with hold(tmp_path) as held, pytest.raises(FreightError, match="site's name"):
        held.send(_content(np.zeros(LEAST_BYTES, np.float32)), site)


def test_what_a_killed_process_left_is_removed_and_what_another_uses_stays(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        left = tmp_path / ("0" * 32)
        Hold(left)
        (tmp_path / f"{left.name}.lock").touch()
        with hold(tmp_path):
            assert not left.exists()
            first.send(_content(np.zeros(LEAST_BYTES, np.float32)), "north")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path) as held:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match="No space left on device"):
            held.send(_content(np.zeros(LEAST_BYTES, np.float32)), "north")
        assert not list(tmp_path.rglob("*.partial"))
