"""A PostgreSQL of a test's own, from the system's packages, that can be stopped and started again."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

OWNER = "postgres"
"""Who runs it where tests run as root, whom PostgreSQL does not serve."""


@dataclass(frozen=True)
class Postgres:
    """A server on loopback that trusts everybody, for as long as a test."""

    programs: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://watcher@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        """At once, as when the machine is switched off; who is connected finds the connection gone."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def make(self) -> None:
        self._run("initdb", "-D", str(self._data), "-U", "watcher", "-A", "trust", "-E", "UTF8", "--no-sync")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *words: str) -> None:
        owner = {"user": OWNER, "group": OWNER, "extra_groups": []} if os.geteuid() == 0 else {}
        # A server that inherited the pipes would keep a reader waiting.
        with (self.folder.parent / f"{self.folder.name}.out").open("wb") as out:
            command = [str(self.programs / program), *words]
            subprocess.run(command, check=True, cwd="/", stdout=out, stderr=out, timeout=60, **owner)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that runs; the test is left out, with the reason, where the programs are not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    parent = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's folders are closed to other users
    folder = parent / "server"
    folder.mkdir()
    try:
        if os.geteuid() == 0:
            parent.chmod(0o755)
            os.chown(folder, pwd.getpwnam(OWNER).pw_uid, pwd.getpwnam(OWNER).pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Postgres(programs[-1].parent, folder, port)
        server.make()
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(parent, ignore_errors=True)
