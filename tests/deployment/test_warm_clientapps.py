"""The process that forks for every message: what it hands over, and what code then runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment.warm_clientapps import hand_over
from tests.deployment.live import wait_for

WAITS = """
import sys
from pathlib import Path
from deployment.warm_clientapps import await_message
words = await_message(Path(sys.argv[1]))
Path(sys.argv[1], words[0]).write_text(" ".join(words[1:]))
"""

GUARDS = """
import sys
from pathlib import Path
from deployment.bundles import Approvals
from deployment.guarded_clientapp import guarded
from federation.code_digest import PACKAGES
import federation.audit
print(federation.audit.AUDIT)
Approvals.require = lambda self, content: None
bundle = Path(sys.argv[1])
sys.path.insert(0, str(bundle))
guarded(lambda content: bundle, bundle, forgotten=PACKAGES)(b"")
import federation.audit
print(federation.audit.AUDIT)
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)])
    wait_for("the process", lambda: hand_over(tmp_path, ["first"]))
    yield process
    process.kill()
    process.wait()


def test_every_message_has_a_process_of_its_own(tmp_path: Path, waiting: subprocess.Popen[bytes]) -> None:
    here = Path.cwd()
    assert hand_over(tmp_path, ["second", "--token", "a b"])
    wait_for("the fork", lambda: (tmp_path / "second").is_file() and (tmp_path / "second").read_text())
    assert (tmp_path / "second").read_text() == "--token a b"
    assert waiting.poll() is None
    assert Path.cwd() == here
    assert (tmp_path / "run" / "clientapps.sock").stat().st_mode & 0o077 == 0


def test_one_that_was_killed_is_not_waited_for_and_can_be_started_anew(
    tmp_path: Path, waiting: subprocess.Popen[bytes]
) -> None:
    waiting.kill()
    waiting.wait()
    assert not hand_over(tmp_path, ["third"])
    with subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)]) as again:
        wait_for("the process", lambda: hand_over(tmp_path, ["fourth"]))
        again.kill()
    assert not hand_over(tmp_path / "none", ["fifth"])


def test_without_it_a_message_is_worked_on_all_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from deployment.warm_clientapps import start; start()", "--help"],
        env={**os.environ, "DIPRO_FED_KIT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "Run a Flower ClientApp" in done.stdout
    assert "starting one for this message" in done.stderr


def test_the_code_of_the_bundle_runs_not_the_site_s_own(tmp_path: Path) -> None:
    """The guard needs a module of this project itself; the bundle's of that name must not be taken for it."""
    bundle = tmp_path / "unpacked"
    (bundle / "federation").mkdir(parents=True)
    (bundle / "federation" / "__init__.py").write_text("")
    (bundle / "federation" / "audit.py").write_text("AUDIT = 'of the bundle'\n")
    done = subprocess.run([sys.executable, "-c", GUARDS, str(bundle)], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["audit.jsonl", "of the bundle"], done.stderr
