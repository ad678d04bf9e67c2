"""The proxy of a kit, with the system's nginx: who gets through to the server, and who gains nothing."""

import base64
import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, RecordDict

from client.freight import Carrier, carrier
from deployment.authority import Authority, pem
from deployment.keys import header_key, make_key, read_key, read_node_public_key, write_key
from deployment.kits import provision
from deployment.project import Project
from deployment.proxy_process import command
from federation.freight import LEAST_BYTES, PART_BYTES, FreightError
from federation.messages import raw_record
from server.freight import Hold, hold
from tests.deployment.live import free_ports

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None, reason="nginx is not installed (apt-get install nginx-light)"
)

FLEET, CONTROL = "/v1/fleet/pull-messages", "/v1/control/start-run"


@dataclass
class Upstream:
    """Stands where Flower's SuperLink does, and writes down what gets through."""

    reached: list[str] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        reached = self.reached

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                reached.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        return Handler


@dataclass
class Federation:
    """A project's kits, its proxy at work, and the way of one site."""

    kits: Path
    project: Project
    upstream: Upstream

    def header(self, site: str) -> str:
        return base64.b64encode(
            header_key(read_node_public_key(self.kits / "server" / "nodes" / f"{site}.pub"))
        ).decode()

    def ask(
        self,
        path: str = FLEET,
        *,
        certificate: tuple[Path, Path] | None = None,
        node: str | None = None,
        body: bytes = b"",
        port: int | None = None,
        trusted: Path | None = None,
        most: ssl.TLSVersion | None = None,
        method: str = "POST",
    ) -> int:
        """Status of a request to the proxy."""
        context = ssl.create_default_context(cafile=trusted or self.kits / "authority" / "authority.pem")
        if most is not None:
            context.maximum_version = most
        if certificate is not None:
            context.load_cert_chain(*certificate)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port or self.project.server.port, context=context, timeout=10
        )
        try:
            connection.request(method, path, body=body, headers={"flwr-public-key": node} if node else {})
            return connection.getresponse().status
        finally:
            connection.close()

    def certificate(self, *, site: str) -> tuple[Path, Path]:
        return self.kits / "sites" / site / "client.pem", self.kits / "sites" / site / "client.key"


def _nginx(folder: Path, port: int) -> subprocess.Popen:
    for name in ("run", "logs"):
        (folder / name).mkdir(exist_ok=True)
    process = subprocess.Popen(command("nginx", folder), stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError((folder / "logs").glob("*error*").__next__().read_text())


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    port, superlink, sidecar, other = free_ports(4)
    project = Project.model_validate(
        {
            "name": "icu",
            "server": {"host": "127.0.0.1", "bind": "127.0.0.1", "port": port, "superlink_port": superlink},
            "sites": [{"name": "north", "sidecar_port": sidecar}, {"name": "south", "sidecar_port": other}, "gone"],
        }
    )
    provision(project, folder / "kits", requests=folder)
    shutil.copytree(folder / "kits" / "sites" / "gone", folder / "gone")
    provision(project, folder / "kits", requests=folder, revoke=["gone"])
    upstream, server = Upstream(), folder / "kits" / "server"
    httpd = ThreadingHTTPServer(("127.0.0.1", superlink), upstream.handler())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.pem", server / "server.key")
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    processes = [_nginx(server, port), _nginx(folder / "kits" / "sites" / "north", sidecar)]
    yield Federation(kits=folder / "kits", project=project, upstream=upstream)
    for process in processes:
        process.terminate()
        process.wait(10)
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def _refused(federation: Federation, status: int, path: str = FLEET, **words) -> None:
    """A request is answered with this status, and the server behind the proxy sees nothing of it."""
    before = len(federation.upstream.reached)
    assert federation.ask(path, **words) == status
    assert len(federation.upstream.reached) == before


def test_a_site_reaches_what_a_site_needs_and_nothing_else(federation: Federation) -> None:
    own = {"certificate": federation.certificate(site="north"), "node": federation.header("north")}
    assert federation.ask(FLEET, **own, body=b"x" * 6_000_000) == 200
    assert federation.ask("/health", **own) == 200
    assert federation.upstream.reached[-2:] == [FLEET, "/health"]
    for path in (
        CONTROL,
        "/v1/runtime/pull-messages",
        "/",
        "/docs",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "//v1/control/start-run",
        "/V1/CONTROL/start-run",
    ):
        _refused(federation, 403, path, **own)


def test_the_control_side_is_the_coordinators(federation: Federation) -> None:
    coordinator = tuple(federation.kits / "coordinator" / name for name in ("client.pem", "client.key"))
    assert federation.ask(CONTROL, certificate=coordinator) == 200
    _refused(federation, 403, FLEET, certificate=coordinator, node=federation.header("north"))


def test_no_certificate_and_those_of_others_are_refused(federation: Federation, tmp_path: Path, monkeypatch) -> None:
    node = federation.header("north")
    _refused(federation, 400, node=node)
    other = Authority.create(tmp_path / "other", "icu")
    _refused(federation, 400, certificate=_issued(other, tmp_path / "stranger", "north"), node=node)
    _refused(
        federation,
        400,
        certificate=(federation.kits.parent / "gone" / "client.pem", federation.kits.parent / "gone" / "client.key"),
        node=node,
    )
    real = Authority(federation.kits / "authority")
    monkeypatch.setattr("deployment.authority._now", lambda: datetime.now(UTC) - timedelta(days=3))
    expired = _issued(real, tmp_path / "expired", "north")
    _refused(federation, 400, certificate=expired, node=node)


def _issued(authority: Authority, folder: Path, name: str) -> tuple[Path, Path]:
    """A site's certificate, good for a day, and its key."""
    folder.mkdir()
    key = make_key()
    write_key(folder / "client.key", key)
    (folder / "client.pem").write_bytes(pem(authority.issue("site", name, key.public_key(), days=1)))
    return folder / "client.pem", folder / "client.key"


def test_a_certificate_is_good_with_its_own_node_key_alone(federation: Federation) -> None:
    certificate = federation.certificate(site="north")
    for node in (federation.header("south"), base64.b64encode(header_key(make_key().public_key())).decode(), "", None):
        _refused(federation, 403, certificate=certificate, node=node)


def test_old_tls_and_plain_http_and_too_much_are_refused(federation: Federation) -> None:
    own = {"certificate": federation.certificate(site="north"), "node": federation.header("north")}
    with pytest.raises(ssl.SSLError):
        federation.ask(**own, most=ssl.TLSVersion.TLSv1_2)
    plain = http.client.HTTPConnection("127.0.0.1", federation.project.server.port, timeout=10)
    plain.request("POST", FLEET, headers={"flwr-public-key": federation.header("north")})
    assert plain.getresponse().status == 400
    plain.close()
    before = len(federation.upstream.reached)
    try:
        assert federation.ask(**own, body=b"x" * 17_000_000) == 413
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        """The proxy hangs up before all of it has come."""
    assert len(federation.upstream.reached) == before


def test_the_sidecar_shows_the_certificate_and_believes_the_projects_proxy_alone(
    federation: Federation, tmp_path: Path
) -> None:
    (site,) = [each for each in federation.project.sites if each.name == "north"]
    kit = federation.kits / "sites" / "north"
    through = {"port": site.sidecar_port, "trusted": kit / "loopback.pem"}
    assert federation.ask(**through, node=federation.header("north")) == 200
    _refused(federation, 403, **through, node=federation.header("south"))
    # A sidecar that believes another authority takes the proxy for a stranger.
    wrong = tmp_path / "kit"
    shutil.copytree(kit, wrong, ignore=shutil.ignore_patterns("run", "logs"))
    Authority.create(tmp_path / "other", "icu")
    shutil.copy(tmp_path / "other" / "authority.pem", wrong / "authority.pem")
    (port,) = free_ports(1)
    configuration = (wrong / "nginx.conf").read_text()
    (wrong / "nginx.conf").write_text(configuration.replace(str(site.sidecar_port), str(port)))
    process = _nginx(wrong, port)
    try:
        _refused(federation, 502, port=port, trusted=wrong / "loopback.pem", node=federation.header("north"))
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def held(federation: Federation) -> Iterator[Hold]:
    with hold(federation.kits / "server" / "freight") as held:
        yield held


def _content(values: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": raw_record({"weights": values})})


def _values(content: RecordDict) -> np.ndarray:
    return content.array_records["arrays"]["weights"].numpy()


def _carrier(federation: Federation, content: RecordDict, site: str = "north") -> Carrier:
    (port,) = [each.sidecar_port for each in federation.project.sites if each.name == site]
    certificate = str(federation.kits / "sites" / site / "loopback.pem")
    told = {"freight": f"127.0.0.1:{port}", "freight_certificate": certificate}
    context = Context(run_id=1, node_id=1, node_config=told, state=RecordDict(), run_config={})
    found = carrier(context, content)
    assert found is not None
    return found


def test_models_go_to_a_site_and_back_beside_the_messages(federation: Federation, held: Hold) -> None:
    """Through sidecar and proxy, in one part and in several; and what was not fetched whole is gone on with."""
    for entries in (LEAST_BYTES, 2 * PART_BYTES // 4 + 1):
        values = np.random.default_rng(entries).random(entries, np.float32)
        sent = held.send(_content(values), "north")
        way = _carrier(federation, sent)
        np.testing.assert_array_equal(_values(way.load(sent)), values)
        reply = way.unload(_content(-values))
        way.close()
        np.testing.assert_array_equal(_values(held.receive(reply, "north")), -values)
        held.clear()
        with pytest.raises(FreightError, match="it has gone on without this site"):
            way.load(sent)
        with pytest.raises(FreightError, match="it has gone on without this site"):
            way.unload(_content(values))
        way.close()


def test_a_transfer_that_breaks_off_is_gone_on_with(federation: Federation, held: Hold, monkeypatch) -> None:
    values = np.random.default_rng(0).random(PART_BYTES, np.float32)
    sent = held.send(_content(values), "north")
    way, breaks = _carrier(federation, sent), iter([True, False, True])
    read = http.client.HTTPResponse.readinto

    def breaking(answer: http.client.HTTPResponse, memory: memoryview) -> int:
        if next(breaks, False):
            raise ConnectionResetError("the link broke off")
        return read(answer, memory)

    monkeypatch.setattr(http.client.HTTPResponse, "readinto", breaking)
    np.testing.assert_array_equal(_values(way.load(sent)), values)
    way.close()
    log = (federation.kits / "server" / "logs" / "proxy_access.log").read_text().splitlines()
    assert " 206 " in log[-1]


def test_a_site_can_write_nowhere_but_into_its_own_dock(federation: Federation, held: Hold) -> None:
    sent = {site: held.send(_content(np.ones(LEAST_BYTES, np.float32)), site) for site in ("north", "south")}
    north, south = (_carrier(federation, sent[site]).dock for site in ("north", "south"))
    folder = federation.kits / "server" / "freight" / north.hold
    before = sorted(folder.rglob("*"))
    own = {"certificate": federation.certificate(site="north"), "method": "PUT", "body": b"x"}
    base = f"/v1/freight/{north.hold}"
    (model,) = (folder / "sent").iterdir()
    for path, status in (
        (f"{base}/dock/{south.name}/00", 500),  # looked for among the site's own, where it is not
        (f"{base}/dock/{'0' * 32}/00", 500),
        (f"/v1/freight/{'0' * 32}/dock/{north.name}/00", 500),
        (f"{base}/sent/{model.name}", 403),
        (f"{base}/dock/{north.name}/100", 403),
        (f"{base}/dock/{north.name}/gg", 403),
        (f"{base}/dock/{north.name}/../{north.name}/00/..", 403),
        (f"{base}/dock/{north.name}/%2e%2e", 403),
        (f"{base}/docks/north/{north.name}/00", 403),
        ("/v1/freight/../../nginx.conf", 403),
    ):
        _refused(federation, status, path, **own)
    for method in ("DELETE", "MKCOL", "COPY", "MOVE", "POST", "GET"):
        _refused(federation, 403, f"{base}/dock/{north.name}/00", **(own | {"method": method}))
    assert sorted(folder.rglob("*")) == before
    assert federation.ask(f"{base}/dock/{north.name}/00", **own) == 201
    large = own | {"body": b"x" * (PART_BYTES + 1)}
    try:
        _refused(federation, 413, f"{base}/dock/{north.name}/01", **large)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        """The proxy hangs up before all of it has come."""
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "docks" / "north" / north.name / "00"])


def test_nobody_reads_what_he_was_not_told(federation: Federation, held: Hold) -> None:
    sent = held.send(_content(np.ones(LEAST_BYTES, np.float32)), "north")
    dock = _carrier(federation, sent).dock
    folder = federation.kits / "server" / "freight" / dock.hold
    (model,) = (folder / "sent").iterdir()
    (folder / "docks" / "north" / dock.name / "00").write_bytes(b"a site's update")
    base, own = f"/v1/freight/{dock.hold}", {"certificate": federation.certificate(site="south"), "method": "GET"}
    assert federation.ask(f"{base}/sent/{model.name}", **own) == 200
    for path, status in (
        (f"{base}/sent/{'0' * 64}", 404),
        (f"/v1/freight/{'0' * 32}/sent/{model.name}", 404),
        (f"{base}/sent/", 403),
        (f"{base}/", 403),
        ("/v1/freight/", 403),
        (f"{base}/sent/{model.name}/../../docks/north/{dock.name}/00", 403),
        (f"{base}/dock/{dock.name}/00", 403),
        (f"/v1/freight/{dock.hold}.lock", 403),
    ):
        _refused(federation, status, path, **own)
    _refused(federation, 400, f"{base}/sent/{model.name}", method="GET")
    coordinator = tuple(federation.kits / "coordinator" / name for name in ("client.pem", "client.key"))
    _refused(federation, 403, f"{base}/sent/{model.name}", certificate=coordinator, method="GET")
    _refused(federation, 403, f"{base}/dock/{dock.name}/00", certificate=coordinator, method="PUT", body=b"x")


def test_the_keys_of_the_kit_are_those_of_the_certificates(federation: Federation) -> None:
    key = read_key(federation.kits / "sites" / "north" / "node.key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert base64.b64encode(header_key(key.public_key())).decode() == federation.header("north")
