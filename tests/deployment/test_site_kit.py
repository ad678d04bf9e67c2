"""What a site and a server refuse to start with, and what the doctor says of it."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from client.policy import SitePolicy
from deployment.authority import Authority
from deployment.checks import (
    Check,
    Outcome,
    check_approvals,
    check_audit,
    check_installation,
    check_kit,
    check_machine,
    check_secure,
    check_server,
)
from deployment.kits import provision
from deployment.programs import site_programs
from deployment.project import Project
from deployment.server_kit import load_server_kit
from deployment.site_kit import KitError, load_site_kit
from dipro_fed.doctor import _sums
from dipro_fed.main import app
from federation.audit import AUDIT, AuditLog
from tests.deployment.live import free_ports


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    (port,) = free_ports(1)
    project = Project.model_validate(
        {"name": "icu", "server": {"host": "127.0.0.1", "bind": "127.0.0.1", "port": port}, "sites": ["north", "south"]}
    )
    provision(project, tmp_path / "kits", requests=tmp_path)
    for site in ("north", "south"):
        (tmp_path / "kits" / "sites" / site / "site.yaml").write_text("cohort: cohort\n")
    return tmp_path / "kits"


@pytest.fixture
def kit(kits: Path) -> Path:
    return kits / "sites" / "north"


def test_a_kit_as_it_was_made_is_good(kit: Path, kits: Path) -> None:
    found = load_site_kit(kit)
    assert (found.facts.site, found.cohort, found.state) == ("north", kit / "cohort", kit / "state")
    assert load_server_kit(kits / "server").facts.sites == ("north", "south")


@pytest.mark.parametrize(
    "name", ["node.key", "client.pem", "policy.yaml", "kit.json", "bin/flwr-clientapp", "nginx.conf"]
)
def test_a_missing_file_is_named(kit: Path, name: str) -> None:
    (kit / name).unlink()
    with pytest.raises(KitError, match=rf"{kit / name}: cannot be read \(No such file or directory\)"):
        load_site_kit(kit)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "cohort: Field required"),
        ("cohort:\n", "cohort: Value error, expected a folder, found None"),
        ("cohort: a\nkohort: b\n", "kohort: Extra inputs are not permitted"),
        ("cohort: a\ndevice: gpu\n", "device: Input should be 'auto', 'cpu' or 'cuda'"),
        ("cohort: 'a \"quoted\" folder'\n", "without quotes"),
        ("cohort: [a\n", "expected YAML"),
    ],
)
def test_settings_are_checked_by_name(kit: Path, written: str, words: str) -> None:
    (kit / "site.yaml").write_text(written)
    with pytest.raises(KitError, match=words):
        load_site_kit(kit)


def _open_to_others(kit: Path) -> None:
    (kit / "node.key").chmod(0o640)


def _anothers_certificate(kit: Path) -> None:
    shutil.copy(kit.parent / "south" / "client.pem", kit / "client.pem")


def _no_certificate(kit: Path) -> None:
    (kit / "client.pem").write_text("-----BEGIN NOTHING-----\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_open_to_others, "expected mode 0600, found 0640"),
        (_anothers_certificate, "found another key's"),
        (_no_certificate, "expected a certificate in PEM"),
    ],
)
def test_a_spoilt_kit_starts_nothing(kit: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(kit)
    with pytest.raises(ValueError, match=words):
        load_site_kit(kit)
    with pytest.raises(ValueError, match=words):
        CliRunner().invoke(app, ["site", "start", "--kit", str(kit)], catch_exceptions=False)
    assert not (kit / "run").exists()
    (found, *_) = check_kit(kit)
    assert found.outcome is Outcome.FAIL


def test_a_policy_with_a_typo_starts_nothing(kit: Path) -> None:
    (kit / "policy.yaml").write_text("taks: [mortality]\n")
    with pytest.raises(ValueError, match="taks: Extra inputs are not permitted; nothing is allowed"):
        CliRunner().invoke(app, ["site", "start", "--kit", str(kit)], catch_exceptions=False)
    assert not (kit / "run").exists()


def test_the_node_is_told_folders_as_they_are(kit: Path) -> None:
    (kit / "site.yaml").write_text(
        yaml.safe_dump({"cohort": "/records of north/cohort", "withhold": ["labels", "ehr"]})
    )
    (node,) = (each for each in site_programs(load_site_kit(kit)) if each.name == "node")
    config = node.command[node.command.index("--node-config") + 1]
    assert 'cohort="/records of north/cohort"' in config
    assert 'withhold="labels,ehr"' in config


def _outcomes(checks: Iterator[Check]) -> dict[str, tuple[Outcome, str]]:
    return {each.name: (each.outcome, each.found) for each in checks}


def test_the_doctor_knows_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = _outcomes(check_installation())
    assert {outcome for outcome, _ in installed.values()} == {Outcome.PASS}
    monkeypatch.setattr("deployment.checks.version", lambda name: "0.1")
    outcome, found = _outcomes(check_installation())["packages"]
    assert outcome is Outcome.FAIL
    assert "torch 0.1, expected" in found
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _outcomes(check_machine("cuda", tmp_path))["GPU"][0] is Outcome.FAIL
    assert _outcomes(check_machine("auto", tmp_path))["GPU"][0] is Outcome.WARN
    monkeypatch.setattr("shutil.disk_usage", lambda path: (1, 1, 1))
    monkeypatch.setattr("deployment.checks.shutil.disk_usage", lambda path: type("Usage", (), {"free": 2e8})())
    assert _outcomes(check_machine("auto", tmp_path / "not" / "yet"))["disk"][0] is Outcome.FAIL


def test_the_doctor_sees_when_a_certificate_ends(kits: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _outcomes(check_kit(kit))["certificate"][0] is Outcome.PASS
    for days, outcome in ((340, Outcome.WARN), (366, Outcome.FAIL), (-2, Outcome.FAIL)):
        moment = datetime.now(UTC) + timedelta(days=days)
        monkeypatch.setattr(
            "deployment.checks.datetime", type("Then", (), {"now": staticmethod(lambda zone, m=moment: m)})
        )
        assert _outcomes(check_kit(kit))["certificate"][0] is outcome, days
    monkeypatch.undo()
    other = Authority.create(kits.parent / "other", "icu")
    shutil.copy(other.folder / "authority.pem", kit / "authority.pem")
    outcome, found = _outcomes(check_kit(kit))["certificate"]
    assert (outcome, "is not of the authority" in found) == (Outcome.FAIL, True)


def _of_another_site(kit: Path) -> None:
    for name in ("client.key", "client.pem"):
        shutil.copy(kit.parent / "south" / name, kit / name)


def _of_another_project(kit: Path) -> None:
    shutil.copy(Authority.create(kit.parents[2] / "other", "icu").folder / "authority.pem", kit / "authority.pem")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda kit: (kit / "client.key").unlink(), "expected the site's signing key, cannot read it"),
        (lambda kit: (kit / "client.key").write_text("x"), "expected a private key in PEM, found something else"),
        (lambda kit: (kit / "client.key").chmod(0o640), "expected mode 0600, found 0640"),
        (lambda kit: shutil.copy(kit / "loopback.key", kit / "client.key"), "found another key's"),
        (lambda kit: (kit / "client.pem").write_text("x"), "expected a certificate in PEM"),
        (_of_another_site, "north: expected its own certificate, found the one of south"),
        (_of_another_project, "expected a certificate of this project's authority"),
    ],
)
def test_the_doctor_sees_what_would_keep_a_site_from_masking(
    kit: Path, spoil: Callable[[Path], object], words: str
) -> None:
    assert _outcomes(check_secure(kit))["masks"] == (
        Outcome.PASS,
        "signs as north with client.key, which icu vouches for",
    )
    spoil(kit)
    outcome, found = _outcomes(check_secure(kit))["masks"]
    assert outcome is Outcome.FAIL
    assert words in found


def test_the_doctor_sees_when_other_sites_would_not_believe_a_signature(
    kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime.now(UTC) + timedelta(days=366)
    then = type("Then", (), {"now": staticmethod(lambda zone: moment)})
    monkeypatch.setattr("federation.secure.identity.datetime", then)
    outcome, found = _outcomes(check_secure(kit))["masks"]
    assert (outcome, "expected a certificate that is good now" in found) == (Outcome.FAIL, True)


def test_the_doctor_reads_the_sites_own_audit_log(tmp_path: Path) -> None:
    assert _outcomes(check_audit(tmp_path))["audit log"][0] is Outcome.PASS
    for event in ("left", "refused"):
        AuditLog(path=tmp_path / AUDIT).write(event)
    outcome, found = _outcomes(check_audit(tmp_path))["audit log"]
    assert (outcome, found.startswith("2 whole lines")) == (Outcome.PASS, True)
    (tmp_path / AUDIT).write_text((tmp_path / AUDIT).read_text().replace("left", "kept"))
    outcome, found = _outcomes(check_audit(tmp_path))["audit log"]
    assert (outcome, "line 1" in found) == (Outcome.FAIL, True)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (SitePolicy(), []),
        (SitePolicy(summed_sites=4), [("pass", "in a sum of 4 sites or more")]),
        (SitePolicy(summed_sites=1), [("warn", "the sum of one site is its update")]),
    ],
)
def test_the_doctor_says_what_the_policy_asks_of_sums(policy: SitePolicy, expected: list[tuple[str, str]]) -> None:
    found = [(each.outcome.value, each.found) for each in _sums(policy)]
    assert len(found) == len(expected)
    assert all(
        outcome == other and words in said for (outcome, said), (other, words) in zip(found, expected, strict=True)
    )


def test_the_doctor_wants_code_to_be_approved(kit: Path) -> None:
    assert _outcomes(check_approvals(kit))["approved code"][0] is Outcome.WARN
    (kit / "approved").mkdir()
    (kit / "approved" / "approved.json").write_text("{")
    assert _outcomes(check_approvals(kit))["approved code"][0] is Outcome.FAIL


class Proxy:
    """Answers one request after the other over TLS, as the project's proxy does, for as long as it is open."""

    def __init__(self, certificate: Path, key: Path, authority: Path, port: int, answer: bytes) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        self._listening, self._answer = socket.create_server(("127.0.0.1", port)), answer
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(4096)
                    secured.sendall(self._answer)
            except OSError:  # the other side did not like it
                plain.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


def _answer(status: str, when: datetime) -> bytes:
    date = when.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return f"HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("status", "ahead", "let_in", "clock"),
    [
        ("200 OK", 0, Outcome.PASS, Outcome.PASS),
        ("200 OK", 60, Outcome.PASS, Outcome.FAIL),
        ("200 OK", -200, Outcome.PASS, Outcome.PASS),
        ("200 OK", -400, Outcome.PASS, Outcome.FAIL),
        ("403 Forbidden", 0, Outcome.FAIL, Outcome.PASS),
        ("502 Bad Gateway", 0, Outcome.WARN, Outcome.PASS),
    ],
)
def test_the_doctor_asks_the_server(
    kits: Path, kit: Path, status: str, ahead: float, let_in: Outcome, clock: Outcome
) -> None:
    server, port = kits / "server", load_site_kit(kit).facts.port
    answer = _answer(status, datetime.now(UTC) - timedelta(seconds=ahead))
    proxy = Proxy(server / "proxy.pem", server / "proxy.key", server / "authority.pem", port, answer)
    try:
        found = _outcomes(check_server(kit))
    finally:
        proxy.close()
    assert found["server"][0] is Outcome.PASS
    assert (found["let in"][0], found["clock"][0]) == (let_in, clock)


def test_the_doctor_tells_a_stranger_from_the_server(kits: Path, kit: Path) -> None:
    facts = load_site_kit(kit).facts
    outcome, found = _outcomes(check_server(kit))["server"]
    assert (outcome, "cannot be reached" in found) == (Outcome.FAIL, True)
    other = kits.parent / "others"
    provision(
        Project.model_validate({"name": "icu", "server": {"host": "127.0.0.1"}, "sites": ["north"]}),
        other,
        requests=kits.parent,
    )
    server = other / "server"
    proxy = Proxy(
        server / "proxy.pem",
        server / "proxy.key",
        server / "authority.pem",
        facts.port,
        _answer("200 OK", datetime.now(UTC)),
    )
    try:
        outcome, found = _outcomes(check_server(kit))["server"]
    finally:
        proxy.close()
    assert (outcome, "is not this project's proxy" in found) == (Outcome.FAIL, True)
