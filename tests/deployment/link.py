"""A link between a site and the server that is slow, or breaks off for a while."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.deployment.live import Live, free_ports

_CHUNK = 16 * 1024


class Link:
    """Bytes between a port of this machine and the server's, each way at most so many a second.

    While it is `down` nothing passes: what was sent waits, as in a network that loses everything and sends it again.
    """

    def __init__(self, port: int, server_port: int, *, bits_per_second: float | None = None) -> None:
        self._server_port = server_port
        self._to_server, self._to_site = _Pace(bits_per_second), _Pace(bits_per_second)
        self._up = threading.Event()
        self._up.set()
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def to_server(self) -> int:
        """Bytes that have passed, TLS and HTTP included."""
        return self._to_server.passed

    @property
    def to_site(self) -> int:
        return self._to_site.passed

    def down(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        self._up.clear()
        time.sleep(seconds)
        self._up.set()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                site, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for source, goal, pace in ((site, server, self._to_server), (server, site, self._to_site)):
                    threading.Thread(target=self._carry, args=(source, goal, pace), daemon=True).start()

    def _carry(self, source: socket.socket, goal: socket.socket, pace: "_Pace") -> None:
        with suppress(OSError):  # either side has closed
            while content := source.recv(_CHUNK):
                pace.await_turn(len(content))
                self._up.wait()
                goal.sendall(content)
        with suppress(OSError):
            goal.shutdown(socket.SHUT_WR)


class _Pace:
    """One direction of a link, which its connections share."""

    def __init__(self, bits_per_second: float | None) -> None:
        self._bytes_per_second = bits_per_second / 8 if bits_per_second else None
        self._lock, self._free, self.passed = threading.Lock(), 0.0, 0

    def await_turn(self, size: int) -> None:
        with self._lock:
            self.passed += size
            if self._bytes_per_second is None:
                return
            self._free = max(self._free, time.monotonic()) + size / self._bytes_per_second
            free = self._free
        time.sleep(max(0.0, free - time.monotonic()))


@contextmanager
def links(live: Live, **options: float) -> Iterator[dict[str, Link]]:
    """Put a link in front of every site of a federation that is provisioned and not yet started."""
    server_port = _server_port(live)
    made = {}
    for site, port in zip(live.sites, free_ports(len(live.sites)), strict=True):
        for name in ("nginx.conf", "kit.json"):
            _replace(live.kit(site) / name, lambda text, port=port: text.replace(str(server_port), str(port)))
        made[site] = Link(port, server_port, **options)
    try:
        yield made
    finally:
        for link in made.values():
            link.close()


def _server_port(live: Live) -> int:
    return int(json.loads((live.server / "kit.json").read_text())["port"])


def _replace(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))
