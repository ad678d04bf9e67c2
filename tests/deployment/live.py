"""A federation of real processes on loopback: server, proxy and sites, from their kits, by the commands of users."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.make_cohort import write_cohort

SITES = ("north", "south")
SMALL = {
    "model": {"backbone_depth": 10, "backbone_channels": 8, "crop_pixels": 16, "width": 16},
    "training": {"learning_rate": 1e-3, "accumulated_batches": 2},
    "federation": {"check_duplicates": False, "minimum_cell": 1, "visits": "one"},
}
"""A model that a round of a test can afford."""
_COMMAND_SECONDS = 300


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Live:
    """The kits of one project below `folder`, and what runs from them."""

    folder: Path
    sites: Sequence[str] = SITES
    settings: dict[str, dict[str, object]] = field(default_factory=lambda: SMALL)

    @property
    def server(self) -> Path:
        return self.folder / "kits" / "server"

    def kit(self, site: str) -> Path:
        return self.folder / "kits" / "sites" / site

    def command(
        self, *words: object, check: bool = True, seconds: float = _COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """`dipro-fed` with these words; with `check` it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "dipro_fed", *map(str, words)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done

    def provision(self) -> None:
        """Kits and small cohorts, with policies that let a test's few patients through."""
        port, superlink, *others = free_ports(2 + 2 * len(self.sites))
        facts = {
            "name": "icu",
            "server": {"host": "127.0.0.1", "bind": "127.0.0.1", "port": port, "superlink_port": superlink},
            "sites": [
                {"name": site, "sidecar_port": others[2 * place], "node_port": others[2 * place + 1]}
                for place, site in enumerate(self.sites)
            ],
        }
        (self.folder / "project.yaml").write_text(yaml.safe_dump(facts))
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(self.settings))
        self.command("provision", self.folder / "project.yaml", "--out", self.folder / "kits")
        for number, site in enumerate(self.sites):
            cohort = write_cohort(
                self.folder / "cohorts" / site, num_patients=16, seed=number, first_subject=1000 * number
            )
            (self.kit(site) / "site.yaml").write_text(yaml.safe_dump({"cohort": str(cohort), "device": "cpu"}))
            (self.kit(site) / "policy.yaml").write_text("minimum_patients: 5\nminimum_cell: 1\n")

    def approve(self) -> None:
        """Let the present code run at every site."""
        bundle = self.folder / "app.fab"
        self.command("server", "bundle", "--out", bundle)
        for site in self.sites:
            self.command("site", "approve", bundle, "--kit", self.kit(site), "--yes")

    def start(self) -> None:
        self.command("server", "start", "--kit", self.server)
        for site in self.sites:
            self.command("site", "start", "--kit", self.kit(site))

    def stop(self) -> None:
        """End whatever runs."""
        for site in self.sites:
            self.command("site", "stop", "--kit", self.kit(site), "--wait", 0, check=False)
        self.command("server", "stop", "--kit", self.server, check=False)

    def run(
        self, out: Path, *words: object, check: bool = True, seconds: float = _COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """`server run` with the small settings."""
        given = ("--task", "mortality", "--config", self.folder / "settings.yaml", "--kit", self.server, "--out", out)
        return self.command("server", "run", *given, *words, check=check, seconds=seconds)

    def processes(self, words: str) -> list[int]:
        """Numbers of the processes of this federation whose command line has these words."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (path.parent / "environ").read_bytes().decode(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            if words in line and str(self.folder) in environment + line:
                found.append(int(path.parent.name))
        return found


def wait_for(what: str, holds, seconds: float = 120) -> None:
    """Return once `holds()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def can_run() -> bool:
    """Whether the programs of the system are there."""
    return shutil.which("nginx") is not None and shutil.which("flock") is not None


REAL_PROCESSES = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_run(), reason="nginx or flock is not installed (apt-get install nginx-light util-linux)"
    ),
]
"""Marks of tests that start a federation."""
