"""From kits to a trained model with real processes, and what is tried against them."""

import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from deployment.keys import header_key, make_key, read_key
from federation.audit import AUDIT, verify
from federation.run_folder import read_history, read_run
from tests.deployment.live import REAL_PROCESSES, Live

pytestmark = REAL_PROCESSES

PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("live"))
    live.provision()
    live.start()
    yield live
    live.stop()


def test_a_run_trains_at_sites_that_approved_its_code(live: Live) -> None:
    """First nobody has: the run fails and says so at both ends."""
    refused = live.run(live.folder / "refused", "--rounds", 2, check=False)
    assert refused.returncode == 1
    assert "not approved at this site" in " ".join(refused.stderr.split())
    for site in live.sites:
        lines = (live.kit(site) / AUDIT).read_text().splitlines()
        assert "not approved" in json.loads(lines[-1])["reason"]
    live.approve()
    done = live.run(live.folder / "run", "--rounds", 2)
    assert "auroc" in done.stdout
    record = read_run(live.folder / "run")
    assert (record.status, record.sites) == ("finished", live.sites)
    assert {line.step for line in read_history(live.folder / "run")} == {1, 2}
    for log in (live.folder / "run" / AUDIT, *(live.kit(site) / "state" / AUDIT for site in live.sites)):
        assert verify(log).num_entries > 3
    sent = (live.folder / "run" / AUDIT).read_text()
    assert all(f'"site": "{site}"' in sent for site in live.sites)
    # The model travelled beside the messages, and nothing of it is left.
    passed = (live.server / "logs" / "proxy_access.log").read_text()
    assert "GET /v1/freight/" in passed
    assert "PUT /v1/freight/" in passed
    assert not list((live.server / "freight").iterdir())


def test_updates_leave_their_sites_masked(live: Live) -> None:
    """Signed with the keys of the kits, each step in a process of its own; one of the sites asks for nothing less."""
    live.approve()
    policy = live.kit("north") / "policy.yaml"
    before = policy.read_text()
    policy.write_text(before + "summed_sites: 2\n")
    try:
        live.run(live.folder / "clear", "--rounds", 1, check=False)
        assert "in a sum of 2 sites or more, found one of 1" in (live.folder / "clear" / AUDIT).read_text()
        masked = ("--set", "secure_aggregation.enabled=true", "--set", "strategy.norm_factor=0")
        live.run(live.folder / "masked", "--rounds", 2, *masked)
    finally:
        policy.write_text(before)
    assert read_run(live.folder / "masked").status == "finished"
    said = [json.loads(line) for line in (live.folder / "masked" / AUDIT).read_text().splitlines()]
    assert [each["survivors"] for each in said if each["event"] == "unmasked"] == [list(live.sites)] * 2
    came = [each["arrays"] for each in said if each["event"] == "received" and "train" in each["exchange"]]
    assert came
    assert {array["type"] for each in came for name, array in each.items() if name == "weights"} == {"uint8"}
    for site in live.sites:
        verify(live.kit(site) / "state" / AUDIT)
        left = list((live.kit(site) / "state" / "state").glob("*/masks/*.json"))
        assert left
        assert all('"secrets":null' in path.read_text() for path in left if path.name != "unmasked.json")


def test_code_that_was_changed_after_approval_does_not_run(live: Live) -> None:
    """Whoever holds the server changes a line of the code that a run goes on with."""
    code = live.folder / "refused" / "flower" / "app" / "client" / "app.py"
    code.write_text(code.read_text() + "\nSTOLEN = open('/etc/passwd').read()\n")
    done = live.command("server", "resume", live.folder / "refused", "--kit", live.server, check=False)
    assert done.returncode == 1
    assert "not approved at this site" in " ".join(done.stderr.split())
    unpacked = (live.kit("north") / "flower").rglob("*.py")
    assert not [path for path in unpacked if "STOLEN" in path.read_text()]


def test_both_are_told_to_run_once(live: Live) -> None:
    again = live.command("server", "start", "--kit", live.server, check=False)
    assert again.returncode == 1
    assert "runs already" in again.stderr
    again = live.command("site", "start", "--kit", live.kit("north"), check=False)
    assert again.returncode == 1
    assert "runs already" in again.stderr
    for words in (("server", "status", "--kit", live.server), ("site", "status", "--kit", live.kit("north"))):
        assert live.command(*words).stdout.count("running") >= 2


def test_the_doctor_finds_a_site_that_runs_well(live: Live) -> None:
    done = live.command("site", "doctor", "--kit", live.kit("south"))
    assert "fail" not in done.stdout
    assert "is the proxy of icu" in done.stdout


def _ask(
    live: Live,
    path: str = PULL,
    *,
    site: str = "north",
    key: ec.EllipticCurvePrivateKey | None = None,
    when: datetime | None = None,
    body: bytes = b"",
    directly: bool = False,
) -> tuple[int, bytes]:
    """Status and answer of a request, signed as Flower's nodes sign theirs."""
    facts = json.loads((live.server / "kit.json").read_text())
    kit = live.kit(site)
    context = ssl.create_default_context(cafile=kit / "authority.pem")
    context.load_cert_chain(kit / "client.pem", kit / "client.key")
    key = key or read_key(kit / "node.key")
    stamp = (when or datetime.now(UTC)).isoformat()
    headers = {
        "flwr-public-key": base64.b64encode(header_key(key.public_key())).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-type": "application/protobuf",
    }
    port = facts["superlink_port"] if directly else facts["port"]
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    try:
        connection.request("POST", path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_flower_refuses_behind_the_proxy_too(live: Live) -> None:
    """An unregistered node key, and a request that was recorded and is sent again later."""
    assert _ask(live, key=make_key(), directly=True)[0] in (401, 403)
    assert _ask(live, key=make_key())[0] == 403
    later = datetime.now(UTC) - timedelta(seconds=400)
    assert _ask(live, when=later)[0] in (401, 403)
    early = datetime.now(UTC) + timedelta(seconds=60)
    assert _ask(live, when=early)[0] in (401, 403)


def test_a_malformed_message_gains_nothing_and_stops_nobody(live: Live) -> None:
    for body in (b"\xff" * 1000, b"{}", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94."):
        status, answer = _ask(live, body=body)
        assert 400 <= status < 600 or not answer.strip(b"\0"), status
    status = live.command("server", "status", "--kit", live.server)
    assert all(f"{site}: online" in status.stdout for site in live.sites)


def test_a_site_cannot_steer_the_server(live: Live) -> None:
    for path in ("/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/pull-messages"):
        assert _ask(live, path)[0] == 403
