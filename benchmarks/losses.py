"""What a federation over the network does when a link breaks off or a disk is full, and what is left of the run.

    python benchmarks/losses.py [--down 300]

Server, proxy and two sites on loopback from their kits, a small model, three rounds, every site asked for. Once the
first round is through: one site's link lets nothing pass for so many seconds, longer than Flower's heartbeat; or the
disk of a site's state is full; or the disk of the run's folder is. A run that ended by that is gone on with once there
is room. Each time the last model must be, bit for bit, the one of the same run in one process that nothing happened
to. Full disks are small file systems in memory and need root.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# One thread everywhere, so that sums are made in one order.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from measure import RESULTS, conditions, show, write_results

from tests.deployment.chaos import equal, finished_rounds, last_weights, reference
from tests.deployment.link import links
from tests.deployment.live import SMALL, Live, wait_for

ROUNDS = 3
_DISK_MB = 96
_LATEST = 900


class Run:
    """`dipro-fed server run` in the background."""

    def __init__(self, live: Live, out: Path) -> None:
        self._live, self._out, self._begin, self._done = live, out, time.monotonic(), []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        wait_for("a round", lambda: finished_rounds(out) >= 1, _LATEST)

    def outcome(self, seconds: float = _LATEST) -> dict[str, Any]:
        """Wait until it has ended; what it said where it did not end well."""
        self._thread.join(seconds)
        (done,) = self._done
        said = "" if done.returncode == 0 else " ".join(done.stderr.partition("error:")[2].split())
        said = said.replace(f"{self._live.folder}/", "")
        return {"ended by itself": done.returncode == 0, "s": time.monotonic() - self._begin, "said": said}

    def _follow(self) -> None:
        self._done.append(self._live.run(self._out, "--rounds", ROUNDS, check=False, seconds=3 * _LATEST))


def broken_link(folder: Path, seconds: float) -> dict[str, Any]:
    """One site's link lets nothing pass for a while."""
    live = _provisioned(folder)
    with links(live) as found, _running(live):
        run = Run(live, folder / "run")
        threading.Thread(target=found[live.sites[0]].down, args=(seconds,), daemon=True).start()
        outcome = run.outcome(_LATEST + seconds)
    return outcome | _compared(live, folder / "run")


def full_disk(folder: Path, where: str) -> dict[str, Any]:
    """No room is left for a site's state, or in the run's folder."""
    live = _provisioned(folder)
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(disk)], check=True)
    try:
        out = disk / "run" if where == "run" else folder / "run"
        if where == "site":
            settings = live.kit(live.sites[0]) / "site.yaml"
            settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"state": str(disk / "state")}))
        with _running(live):
            run = Run(live, out)
            _fill(disk / "filler")
            outcome = run.outcome()
            (disk / "filler").unlink()
            if not outcome["ended by itself"]:
                live.command("server", "resume", out, "--kit", live.server)
        return outcome | _compared(live, out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _provisioned(folder: Path) -> Live:
    folder.mkdir()
    # SCAFFOLD, because what a site keeps from round to round is written in every round.
    scaffold: dict[str, dict[str, object]] = {"strategy": {"name": "scaffold"}, "training": {"optimizer": "sgd"}}
    live = Live(folder, settings=SMALL | scaffold)
    live.provision()
    return live


@contextmanager
def _running(live: Live) -> Iterator[None]:
    live.start()
    try:
        live.approve()
        yield
    finally:
        live.stop()


def _fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


def _compared(live: Live, run: Path) -> dict[str, Any]:
    expected = reference(live, live.folder / "reference", ROUNDS)
    return {"rounds": finished_rounds(run), "equal to the reference": equal(last_weights(run), expected)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down", type=float, default=300.0, help="seconds that the link is broken")
    parser.add_argument("--out", type=Path, default=RESULTS / "losses.json")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {
            f"link broken for {arguments.down:.0f} s": broken_link(folder / "link", arguments.down),
            "site's disk full": full_disk(folder / "site", "site"),
            "run's disk full": full_disk(folder / "run", "run"),
        }
    write_results(arguments.out, {"conditions": conditions(1) | {"rounds": ROUNDS, "sites": 2}, "found": found})
    columns = ("ended by itself", "rounds", "equal to the reference", "s", "said")
    show("Losses", ("what", *columns), [(what, *(str(each[name]) for name in columns)) for what, each in found.items()])
    if not all(each["equal to the reference"] for each in found.values()):
        raise SystemExit("a run was harmed")


if __name__ == "__main__":
    main()
