"""Starting, watching and stopping the processes of a server or a site, by supervisord.

supervisord starts a process that ended anew; one that cannot stay up is tried again after one second more each time.
"""

import configparser
import fcntl
import hashlib
import io
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from supervisor.xmlrpc import SupervisorTransport

from deployment.programs import LOCK, Program
from federation.files import write_whole

_STAYS_UP_SECONDS = 2
_RETRIES = 10**9
_LONGEST_SOCKET = 90
"""Bytes; Linux takes 107, and supervisord adds its number while it makes one."""
_LOG_BYTES, _LOGS = 10 * 2**20, 5


class SupervisionError(ValueError):
    """Processes that could not be started, reached or stopped; says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """One process as its supervisor sees it."""

    name: str
    state: str
    """RUNNING, STARTING, BACKOFF (ended at once, tried again later), STOPPED and so on, as supervisord calls them."""
    since: datetime | None
    """When it was started last; None before."""
    description: str


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The processes of one kit."""

    folder: Path
    """Of the kit: `run/` and `logs/` are made in it."""

    def start(
        self,
        programs: Sequence[Program],
        *,
        environment: Mapping[str, str],
        state: Path,
        ports: Mapping[str, int],
        seconds: float = 30,
    ) -> None:
        """Start all in the background, and return when each stays up.

        Raises SupervisionError where they run already, another kit uses `state` or a port is taken, before anything
        is started; and where a process does not stay up, with the end of its log, after the others were stopped.
        """
        command = self._prepare(programs, state, ports)
        done = subprocess.run(
            command, env=dict(environment), cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SupervisionError(f"{self.folder}: supervisord did not start: {done.stderr.strip()[-500:]}")
        self._await_up(seconds)

    def run(
        self,
        programs: Sequence[Program],
        *,
        environment: Mapping[str, str],
        state: Path,
        ports: Mapping[str, int],
        once_up: Callable[[], None] = lambda: None,
        seconds: float = 30,
    ) -> int:
        """As `start`, but stay until all were ended, by SIGTERM or Ctrl-C too; the supervisor's exit status.

        `once_up` is called when each stays up.
        """
        command = [*self._prepare(programs, state, ports), "--nodaemon"]
        process = subprocess.Popen(command, env=dict(environment), cwd=self.folder, stdout=subprocess.DEVNULL)
        before = {each: signal.signal(each, lambda *_: process.terminate()) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._await_up(seconds)
            once_up()
            return process.wait()
        finally:
            process.terminate()
            process.wait()
            for each, handler in before.items():
                signal.signal(each, handler)

    def _prepare(self, programs: Sequence[Program], state: Path, ports: Mapping[str, int]) -> list[str]:
        """Write the supervisor's configuration; the command that starts it. Raises SupervisionError as `start` does."""
        if self.is_running():
            raise SupervisionError(f"{self.folder}: runs already; stop it first, or look at its status")
        for name in ("run", "logs"):
            (self.folder / name).mkdir(exist_ok=True)
        _require_unused(state)
        for what, port in ports.items():
            require_free(what, port)
        configuration = self.folder / "run" / "supervisord.conf"
        write_whole(configuration, self._configuration(programs).encode())
        return [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(configuration)]

    def status(self) -> list[ProcessStatus]:
        """All processes, in the order in which they start; empty where nothing was started."""
        try:
            with self._supervisor() as supervisor:
                found = cast(list[dict[str, Any]], supervisor.supervisor.getAllProcessInfo())
        except (OSError, xmlrpc.client.Error):
            return []
        order = {name: place for place, name in enumerate(self._names())}
        found.sort(key=lambda each: order.get(each["name"], len(order)))
        return [
            ProcessStatus(
                name=each["name"],
                state=each["statename"],
                since=datetime.fromtimestamp(each["start"]).astimezone() if each["start"] else None,
                description=each["description"],
            )
            for each in found
        ]

    def is_running(self) -> bool:
        """Whether a supervisor answers."""
        return bool(self.status())

    def stop(self, seconds: float = 60) -> None:
        """End all processes, the last started first. Raises SupervisionError where nothing runs or it takes longer."""
        if not self.is_running():
            raise SupervisionError(f"{self.folder}: nothing runs here")
        with self._supervisor() as supervisor:
            supervisor.supervisor.shutdown()
        end = time.monotonic() + seconds
        while self.is_running() or self._pid_lives():
            if time.monotonic() > end:
                raise SupervisionError(f"{self.folder}: still runs after {seconds:.0f} s; look into logs/")
            time.sleep(0.1)

    def log_end(self, program: str, lines: int = 15) -> str:
        """The last lines that a process has written."""
        path = self.folder / "logs" / f"{program}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _await_up(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            status = self.status()
            waiting = [each for each in status if each.state != "RUNNING"]
            if status and not waiting:
                return
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        names = ", ".join(each.name for each in waiting) or "supervisord"
        log = self.log_end(waiting[0].name) if waiting else ""
        if status:
            self.stop()
        raise SupervisionError(f"{self.folder}: {names} did not stay up, all were stopped; the end of its log:\n{log}")

    def _configuration(self, programs: Sequence[Program]) -> str:
        parser = configparser.RawConfigParser()
        parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
        parser["unix_http_server"] = {"file": str(_socket(self.folder)), "chmod": "0600"}
        parser["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        parser["supervisord"] = {
            "directory": str(self.folder),
            "logfile": str(self.folder / "logs" / "supervisord.log"),
            "logfile_maxbytes": str(_LOG_BYTES),
            "pidfile": str(self._pid_file),
            "umask": "077",
            **({"user": "root"} if os.geteuid() == 0 else {}),
        }
        for priority, program in enumerate(programs):
            parser[f"program:{program.name}"] = {
                "command": shlex.join(program.command).replace("%", "%%"),
                "directory": str(self.folder),
                "priority": str(priority),
                "startsecs": str(_STAYS_UP_SECONDS),
                "startretries": str(_RETRIES),
                "autorestart": "true",
                "stopwaitsecs": str(program.seconds_to_stop),
                "killasgroup": "true",
                "redirect_stderr": "true",
                "stdout_logfile": str(self.folder / "logs" / f"{program.name}.log"),
                "stdout_logfile_maxbytes": str(_LOG_BYTES),
                "stdout_logfile_backups": str(_LOGS),
            }
        text = io.StringIO()
        parser.write(text)
        return text.getvalue()

    def _names(self) -> list[str]:
        """Of the programs, in the order in which they start."""
        parser = configparser.RawConfigParser()
        parser.read(self.folder / "run" / "supervisord.conf")
        return [name.removeprefix("program:") for name in parser.sections() if name.startswith("program:")]

    @property
    def _pid_file(self) -> Path:
        return self.folder / "run" / "supervisord.pid"

    def _pid_lives(self) -> bool:
        return self._pid_file.exists()  # supervisord removes it as the last thing

    def _supervisor(self) -> xmlrpc.client.ServerProxy:
        return xmlrpc.client.ServerProxy(
            "http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{_socket(self.folder)}")
        )


def _socket(folder: Path) -> Path:
    """Where a kit's supervisor listens, the same whoever asks; the system wants such a path to be short."""
    own = folder.resolve() / "run" / "supervisor.sock"
    if len(os.fsencode(own)) <= _LONGEST_SOCKET:
        return own
    shared = Path("/tmp") / f"dipro-fed-{os.geteuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    if shared.stat().st_uid != os.geteuid() or shared.stat().st_mode & 0o077:
        raise SupervisionError(f"{shared}: expected a folder of this user alone (mode 0700); remove it")
    return shared / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.sock"


def _require_unused(state: Path) -> None:
    state.mkdir(parents=True, exist_ok=True)
    with (state / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SupervisionError(
                f"{state}: expected a state folder that no other process uses, one does: stop it, or choose another "
                "folder"
            ) from None


def require_free(what: str, port: int) -> None:
    """Raises SupervisionError for a port of this machine's loopback that is taken; `what` says where it is set."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SupervisionError(
            f"port {port} ({what} in the project file) cannot be had ({error.strerror}): end what uses it, or choose "
            "another port and provision again"
        ) from None
