"""Bundles at a site: what is in one, and that only approved ones run."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployment.bundles import Approvals, BundleError, difference, read_bundle
from deployment.guarded_clientapp import guarded
from dipro_fed.main import app
from federation.audit import verify

CODE = {"client/app.py": b"print('trains')\n", "pyproject.toml": b"[project]\nname = 'icu'\n"}


def _bundle(files: dict[str, bytes], *, links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if name in links else 0o100644) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


class Installed:
    """Flower's installation, which writes down what it was given."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def __call__(self, content: bytes, install_dir: Path | None = None, skip_prompt: bool = False) -> Path:
        self.contents.append(content)
        return Path("installed")


def test_only_an_approved_bundle_is_unpacked_and_a_refusal_is_written_down(tmp_path: Path) -> None:
    installed, approvals, content = Installed(), Approvals(kit=tmp_path), _bundle(CODE)
    install = guarded(installed, tmp_path)
    with pytest.raises(BundleError, match="is not approved at this site"):
        install(content, skip_prompt=True)
    approvals.approve(content)
    assert install(content, skip_prompt=True) == Path("installed")
    changed = content.replace(b"trains", b"steals")
    assert len(changed) == len(content)
    for other in (changed, content + b"\0", b""):
        with pytest.raises(BundleError, match="is not approved"):
            install(other, skip_prompt=True)
    assert installed.contents == [content]
    approvals.withdraw(hashlib.sha256(content).hexdigest())
    with pytest.raises(BundleError, match="is not approved"):
        install(content)
    assert verify(tmp_path / "audit.jsonl").num_entries == 5
    (first, *_) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert hashlib.sha256(content).hexdigest() in first["reason"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "cannot unpack"),
        (_bundle({"../../etc/cron.d/own": b"x"}), "expected paths inside the bundle"),
        (_bundle({"/etc/passwd": b"x"}), "expected paths inside the bundle"),
        (_bundle({"client/./app.py": b"x"}), "expected paths inside the bundle"),
        (_bundle({"client/app.py": b"/etc/passwd"}, links=("client/app.py",)), "found a link"),
        (_bundle({f"{number}.py": b"" for number in range(2001)}), "at most 2000 files"),
    ],
    ids=["no archive", "climbs", "absolute", "roundabout", "link", "too many"],
)
def test_a_bundle_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Approvals(kit=tmp_path).approve(content)
    assert list(tmp_path.iterdir()) == []


def test_what_changed_is_shown_line_by_line() -> None:
    old = read_bundle(_bundle({**CODE, "client/old.py": b"gone\n"}))
    new = read_bundle(_bundle({**CODE, "client/app.py": b"print('steals')\n", "picture.bin": b"\xff\x00"}))
    lines = list(difference(old, new))
    assert "-print('trains')" in lines
    assert "+print('steals')" in lines
    assert "-gone" in lines
    assert any("binary, SHA-256" in line for line in lines)
    assert not any("pyproject" in line for line in lines)
    assert list(difference(new, new)) == []
    assert "+print('steals')" in list(difference(None, new))


def test_a_person_sees_the_difference_and_says_yes_or_no(tmp_path: Path) -> None:
    kit, paths = tmp_path / "kit", [tmp_path / name for name in ("first.fab", "second.fab")]
    kit.mkdir()
    for path, word in zip(paths, (b"trains", b"steals"), strict=True):
        path.write_bytes(_bundle({**CODE, "client/app.py": b"print('" + word + b"')\n"}))

    def approve(path: Path, answer: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["site", "approve", str(path), "--kit", str(kit)], input=answer)
        return result.exit_code, result.output

    assert approve(paths[0], "y\n")[0] == 0
    code, output = approve(paths[1], "n\n")
    assert code == 1
    assert "-print('trains')" in output
    assert "+print('steals')" in output
    assert Approvals(kit=kit).hashes() == (hashlib.sha256(paths[0].read_bytes()).hexdigest(),)
    assert "Approved before" in approve(paths[0], "")[1]
    with pytest.raises(BundleError, match="expected an approved bundle"):
        Approvals(kit=kit).withdraw("0" * 64)
    (kit / "approved" / "approved.json").write_text("[")
    with pytest.raises(BundleError, match="expected the list of approved bundles"):
        guarded(Installed(), kit)(paths[0].read_bytes())


def test_without_a_kit_nothing_runs() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DIPRO_FED_KIT"}
    command = [sys.executable, "-m", "deployment.guarded_clientapp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "expected the site's kit in DIPRO_FED_KIT" in done.stderr
