"""What a federation over the network does when a link breaks off or a disk is full, and what is left of the run.

    python benchmarks/losses.py [--down 300]

Server, proxy and two sites on loopback from their kits, a small model, three rounds, every site asked for. One after
the other: the link of one site lets nothing pass for so many seconds, longer than Flower's heartbeat; the disk of a
site's state is full; the disk of the server's run is full. What ended is gone on with once there is room. Each time the
last model must be, bit for bit, the one of the same run in one process that nothing happened to. Full disks are small
file systems in memory: they need root.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread everywhere, so that sums are made in one order.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))


from tests.deployment.chaos import equal, finished_rounds, last_weights, reference
from tests.deployment.link import links
from tests.deployment.live import Live, wait_for

ROUNDS = 3
_DISK_MB = 96
_LATEST = 600


def broken_link(folder: Path, seconds: float) -> dict[str, Any]:
    """One site's link breaks off once the first round is through."""
    live = Live(folder)
    live.provision()
    expected = reference(live, folder / "reference", ROUNDS)
    with links(live) as found:
        live.start()
        try:
            live.approve()
            begin = time.monotonic()
            live.run(folder / "run", "--rounds", ROUNDS, "--detach")
            wait_for("a round", lambda: finished_rounds(folder / "run") >= 1, _LATEST)
            threading.Thread(target=found[live.sites[0]].down, args=(seconds,), daemon=True).start()
            wait_for("the end", lambda: finished_rounds(folder / "run") >= ROUNDS, _LATEST + seconds)
            return {"ended by itself": True, "s": time.monotonic() - begin, **_outcome(folder / "run", expected)}
        finally:
            live.stop()


def full_disk(folder: Path, place: Callable[[Live], Path]) -> dict[str, Any]:
    """The disk below a folder is full when the run begins; later there is room."""
    live = Live(folder)
    live.provision()
    expected = reference(live, folder / "reference", ROUNDS)
    at = place(live)
    at.mkdir(parents=True)
    with _small_disk(at):
        for site in live.sites:
            _set_state(live, site, at if at.is_relative_to(live.kit(site)) else None)
        live.start()
        try:
            live.approve()
            filler = at / "filler"
            _fill(filler)
            begin = time.monotonic()
            out = at / "run" if at == folder / "disk" else folder / "run"
            refused = live.run(out, "--rounds", ROUNDS, check=False)
            filler.unlink()
            if finished_rounds(out) < ROUNDS:
                live.command("server", "resume", out, "--kit", live.server)
            said = " ".join(refused.stderr.split())[-300:]
            return {"ended by itself": False, "s": time.monotonic() - begin, **_outcome(out, expected), "said": said}
        finally:
            live.stop()


def _outcome(run: Path, expected: Any) -> dict[str, Any]:
    return {"rounds": finished_rounds(run), "equal to the reference": equal(last_weights(run), expected)}
