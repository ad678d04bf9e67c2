"""Start nginx in place of one that was killed: its workers live on, answer nobody's orders and keep the port."""

import os
import signal
import sys
import time
from pathlib import Path

_PID = "run/nginx.pid"
_SECONDS = 5.0


def end_orphans(folder: Path) -> int:
    """Kill the workers that a killed nginx of this folder left behind; how many there were.

    nginx removes the file with its number when it ends in order. supervisord makes every process the head of a group,
    and a number is not given to another group while one of its processes lives.
    """
    try:
        group = int((folder / _PID).read_text())
    except (OSError, ValueError):
        return 0
    if group in (found := _of_group(group)):
        return 0  # it runs; nginx will say that the port is taken
    for each in found:
        os.kill(each, signal.SIGKILL)
    end = time.monotonic() + _SECONDS
    while _of_group(group) and time.monotonic() < end:
        time.sleep(0.02)
    return len(found)


def _of_group(group: int) -> list[int]:
    """Numbers of the processes of nginx in a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = path.read_text().partition(" (")
        except OSError:  # it has ended meanwhile
            continue
        name, _, facts = rest.rpartition(") ")
        state, _, its_group = facts.split()[:3]
        if name == "nginx" and int(its_group) == group and state != "Z":
            found.append(int(number))
    return found


def command(nginx: str, folder: Path) -> list[str]:
    """What starts nginx for a kit, its workers as the kit's owner: they read and write files of the kit."""
    line = [nginx, "-p", str(folder), "-c", "nginx.conf"]
    # Started by another user than root nginx has no choice, and says so where it is given one.
    return line if os.geteuid() else [*line, "-g", f"user {folder.owner()} {folder.group()};"]


def main() -> None:
    """`python -m deployment.proxy_process NGINX FOLDER`: become nginx."""
    nginx, folder = sys.argv[1:]
    end_orphans(Path(folder))
    os.execv(nginx, command(nginx, Path(folder)))


if __name__ == "__main__":
    main()
