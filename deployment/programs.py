"""Which processes make a server or a site, with the commands that start them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployment.flower_app import NO_NETWORK, tool
from deployment.server_kit import ServerKit
from deployment.site_kit import POLICY, SUPEREXEC_SECRET, KitError, SiteKit
from deployment.work import KIT

LOCK = "flower.lock"
"""In a state folder; held by the process of Flower that writes there, however it was started."""
_PROMPT = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
"""Seconds between two looks for work at a site, on loopback; a second unless given, in every round. The server's own
look is for runs, which a second does not matter to."""
_SMALL_PAGES = {"NUMPY_MADVISE_HUGEPAGE": "0"}
"""NumPy asks for huge pages for large arrays, and Linux moves other memory about to find some: where it is full of
files, the first touch of a model's weights takes ten times as long as with small pages."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A process that is kept running."""

    name: str
    command: tuple[str, ...]
    seconds_to_stop: int = 10
    """After that long since it was asked to end, it is killed, with all processes that it started."""


def server_programs(kit: ServerKit) -> list[Program]:
    """Flower's SuperLink and SuperExec, and the proxy in front of them, in the order in which they start."""
    secret = str(kit.folder / SUPEREXEC_SECRET)
    superlink = (
        *_locked(kit.state),
        tool("flower-superlink"),
        *("--ssl-ca-certfile", str(kit.folder / "authority.pem")),
        *("--ssl-certfile", str(kit.folder / "server.pem")),
        *("--ssl-keyfile", str(kit.folder / "server.key")),
        "--enable-supernode-auth",
        *("--database", str(kit.state / "superlink.db")),
        # The app that runs the rounds outlives a SuperLink that is killed and started again.
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--host", "127.0.0.1", "--port", str(kit.facts.superlink_port)),
        "--disable-runtime-dependency-installation",
    )
    superexec = (
        *(tool("flower-superexec"), "--runtime-api-address", kit.address),
        *("--root-certificates", str(kit.folder / "authority.pem"), "--superexec-auth-secret-file", secret),
    )
    return [
        Program(name="superlink", command=superlink),
        Program(name="superexec", command=superexec),
        Program(name="proxy", command=_nginx_anew(kit.folder)),
    ]


def server_environment(kit: ServerKit) -> dict[str, str]:
    """Variables of the server's processes."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **NO_NETWORK, **_SMALL_PAGES, "FLWR_HOME": str(kit.folder / "flower"), "PATH": path}


def site_programs(kit: SiteKit) -> list[Program]:
    """The sidecar that shows the site's certificate, Flower's node behind it, and what starts a process for its work.

    The node would start a SuperExec of its own, but never again once that is gone: it would stay online and idle.
    """
    secret = str(kit.folder / SUPEREXEC_SECRET)
    config = {
        "site": kit.facts.site,
        "cohort": str(kit.cohort),
        "folder": str(kit.state),
        "device": kit.settings.device,
        "withhold": ",".join(kit.settings.withhold),
        "policy": str(kit.folder / POLICY),
        "identity": str(kit.folder),
        "freight": f"127.0.0.1:{kit.facts.sidecar_port}",
        "freight_certificate": str(kit.folder / "loopback.pem"),
    }
    node = (
        *_locked(kit.state),
        *(sys.executable, "-m", "deployment.guarded_node", "--superlink", f"127.0.0.1:{kit.facts.sidecar_port}"),
        *("--root-certificates", str(kit.folder / "loopback.pem")),
        *("--auth-supernode-private-key", str(kit.folder / "node.key")),
        *("--port", str(kit.facts.node_port), "--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())),
    )
    superexec = (
        *(tool("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{kit.facts.node_port}"),
        *("--insecure", "--superexec-auth-secret-file", secret),
    )
    return [
        Program(name="sidecar", command=_nginx_anew(kit.folder)),
        Program(name="node", command=node, seconds_to_stop=30),
        Program(name="clientapps", command=(sys.executable, "-m", "deployment.warm_clientapps")),
        Program(name="superexec", command=superexec),
    ]


def site_environment(kit: SiteKit) -> dict[str, str]:
    """Variables of a site's processes: its own `flwr-clientapp`, which runs approved bundles alone, is found first."""
    path = os.pathsep.join([str(kit.folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        **NO_NETWORK,
        **_PROMPT,
        **_SMALL_PAGES,
        "FLWR_HOME": str(kit.folder / "flower"),
        KIT: str(kit.folder),
        "PATH": path,
    }


def ports(kit: ServerKit | SiteKit) -> Mapping[str, int]:
    """Ports that must be free before the processes start, by what sets them in the project file."""
    if isinstance(kit, ServerKit):
        return {"server.port": kit.facts.port, "server.superlink_port": kit.facts.superlink_port}
    return {"the site's sidecar_port": kit.facts.sidecar_port, "the site's node_port": kit.facts.node_port}


def reload_proxy(folder: Path) -> None:
    """Let a running proxy read its configuration and certificates again. Raises KitError where it refuses them."""
    done = subprocess.run([*_nginx(folder), "-s", "reload"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KitError(f"{folder}: the proxy did not reload, what it had is kept: {done.stderr.strip()[-300:]}")


def _nginx(folder: Path) -> tuple[str, ...]:
    nginx = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if nginx is None:
        raise KitError("expected nginx on this machine, found none; install it (apt-get install nginx-light)")
    return (nginx, "-p", str(folder), "-c", "nginx.conf")


def _nginx_anew(folder: Path) -> tuple[str, ...]:
    nginx, *_ = _nginx(folder)
    return (sys.executable, "-m", "deployment.proxy_process", nginx, str(folder))


def _locked(state: Path) -> tuple[str, ...]:
    """Start what follows only if no other process holds the folder; it holds it as long as it lives."""
    return ("flock", "--nonblock", "--no-fork", str(state / LOCK))
