"""Kits: what each machine is given, and what stays as it was when they are made again."""

import json
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509 import verification

from deployment.authority import AuthorityError
from deployment.keys import KeyFileError, write_key
from deployment.kits import make_site_request, provision
from deployment.project import Project, ProjectError, load_project

SECRET = ("*.key", "*.secret")


def _project(folder: Path, *names: object, **more: object) -> Project:
    facts = {"name": "icu", "server": {"host": "fed.example.org"}, "sites": list(names or ("north", "south")), **more}
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(facts))
    return load_project(path)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    provision(_project(tmp_path), tmp_path / "kits", requests=tmp_path)
    return tmp_path / "kits"


def test_only_owners_read_private_keys_and_no_kit_has_anothers(kits: Path) -> None:
    secrets = [path for pattern in SECRET for path in kits.rglob(pattern)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    everything = [path for path in kits.rglob("*") if path.is_file()]
    assert {path for path in everything if b"PRIVATE KEY" in path.read_bytes()} == {
        path for path in secrets if path.suffix == ".key"
    }
    contents = [path.read_bytes() for path in secrets]
    assert len(set(contents)) == len(contents)


def test_certificates_are_the_authoritys_and_for_what_they_say(kits: Path) -> None:
    authority = _certificate(kits / "authority" / "authority.pem")
    builder = verification.PolicyBuilder().store(verification.Store([authority])).time(datetime.now(UTC))
    for host in ("fed.example.org", "proxy.icu.internal"):
        builder.build_server_verifier(x509.DNSName(host)).verify(_certificate(kits / "server" / "proxy.pem"), [])
    builder.build_server_verifier(x509.DNSName("localhost")).verify(_certificate(kits / "server" / "server.pem"), [])
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("elsewhere.org")).verify(
            _certificate(kits / "server" / "proxy.pem"), []
        )
    for name in ("north", "south"):
        own = _certificate(kits / "sites" / name / "client.pem")
        assert own.subject.rfc4514_string() == f"CN={name},OU=site,O=icu"
        assert own.verify_directly_issued_by(authority) is None
        usage = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [each._name for each in usage] == ["clientAuth"]


def test_node_keys_are_as_flower_reads_them(kits: Path) -> None:
    private = load_ssh_private_key((kits / "sites" / "north" / "node.key").read_bytes(), None)
    public = load_ssh_public_key((kits / "server" / "nodes" / "north.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public


def test_openssl_accepts_chain_and_revocation(kits: Path, tmp_path: Path) -> None:
    def verify(name: str) -> subprocess.CompletedProcess[str]:
        own = kits / "authority"
        store = ["-CAfile", own / "authority.pem", "-CRLfile", own / "revoked.pem", "-crl_check"]
        command = ["openssl", "verify", *store, kits / "sites" / name / "client.pem"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert verify("north").returncode == 0
    provision(_project(tmp_path), kits, requests=tmp_path, revoke=["north"])
    assert "certificate revoked" in verify("north").stderr
    assert verify("south").returncode == 0


def test_again_changes_nothing_and_a_new_site_touches_no_other(kits: Path, tmp_path: Path) -> None:
    (kits / "sites" / "north" / "site.yaml").write_text("cohort: /records\n")
    before = _contents(kits)
    assert provision(_project(tmp_path), kits, requests=tmp_path).lines == []
    assert _contents(kits) == before
    provision(_project(tmp_path, "north", "south", "west"), kits, requests=tmp_path)
    after = _contents(kits)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {
        *("authority/issued.json", "authority/revoked.pem"),
        *("server/nginx.conf", "server/revoked.pem", "server/kit.json", "server/README.md"),
    }
    assert any(name.startswith("sites/west/") for name in after)
    assert b"CN=west,OU=site,O=icu|" in after["server/nginx.conf"]


def test_a_renewed_site_keeps_its_keys_and_words(kits: Path, tmp_path: Path) -> None:
    (kits / "sites" / "north" / "site.yaml").write_text("cohort: /records\n")
    before = _contents(kits)
    done = provision(_project(tmp_path), kits, requests=tmp_path, renew=["north"])
    assert [line for line in done.lines if "north" in line]
    after = _contents(kits)
    assert after["sites/north/client.pem"] != before["sites/north/client.pem"]
    assert {name for name in before if name.startswith("sites/") and after[name] != before[name]} == {
        "sites/north/client.pem"
    }
    assert after["server/nginx.conf"] == before["server/nginx.conf"]


def test_a_revoked_site_is_out_until_it_has_new_keys(kits: Path, tmp_path: Path) -> None:
    before = _contents(kits)
    provision(_project(tmp_path), kits, requests=tmp_path, revoke=["north"])
    shut = _contents(kits)
    assert b"CN=north" not in shut["server/nginx.conf"]
    assert [each["name"] for each in json.loads(shut["authority/issued.json"]) if each["revoked"]] == ["north"]
    assert "shut out" in provision(_project(tmp_path), kits, requests=tmp_path).lines[0]
    provision(_project(tmp_path), kits, requests=tmp_path, renew=["north"])
    after = _contents(kits)
    assert b"CN=north" in after["server/nginx.conf"]
    for name in ("client.key", "node.key", "node.pub", "client.pem"):
        assert after[f"sites/north/{name}"] != before[f"sites/north/{name}"]
    assert {name for name in before if name.startswith("sites/south/") and after[name] != before[name]} == set()


def test_a_site_that_made_its_own_keys_keeps_them(tmp_path: Path) -> None:
    make_site_request("north", tmp_path / "hospital")
    sent = tmp_path / "requests" / "north"
    sent.mkdir(parents=True)
    for path in (tmp_path / "hospital" / "request").iterdir():
        assert b"PRIVATE" not in path.read_bytes()
        (sent / path.name).write_bytes(path.read_bytes())
    project = _project(tmp_path, {"name": "north", "request": "requests/north"}, "south")
    provision(project, tmp_path / "kits", requests=tmp_path)
    kit = tmp_path / "kits" / "sites" / "north"
    assert not list(kit.glob("*.key"))
    own = x509.load_pem_x509_csr((sent / "site.csr").read_bytes()).public_key()
    assert _certificate(kit / "client.pem").public_key() == own
    assert (kit / "node.pub").read_bytes() == (sent / "node.pub").read_bytes()
    provision(project, tmp_path / "kits", requests=tmp_path, revoke=["north"])
    with pytest.raises(ProjectError, match="expected new keys after a revocation"):
        provision(project, tmp_path / "kits", requests=tmp_path, renew=["north"])


def test_requests_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_site_request("north", tmp_path / "hospital")
    folder = tmp_path / "hospital" / "request"
    wrong = _project(tmp_path, {"name": "south", "request": "hospital/request"})
    with pytest.raises(AuthorityError, match="expected the request of south, found one of north"):
        provision(wrong, tmp_path / "kits", requests=tmp_path)
    request = (folder / "site.csr").read_bytes()
    (folder / "site.csr").write_bytes(request.replace(b"M", b"N", 3))
    project = _project(tmp_path, {"name": "north", "request": "hospital/request"})
    with pytest.raises(AuthorityError, match=r"signing request in PEM|signed with a P-384 key"):
        provision(project, tmp_path / "kits", requests=tmp_path)
    (folder / "site.csr").write_bytes(request)
    (folder / "node.pub").unlink()
    with pytest.raises(KeyFileError, match="expected a node's public key"):
        provision(project, tmp_path / "kits", requests=tmp_path)
    assert not (tmp_path / "kits").exists()


def test_two_sites_with_one_node_key_are_refused(tmp_path: Path) -> None:
    for name in ("north", "south"):
        make_site_request(name, tmp_path / name)
    stolen = (tmp_path / "north" / "request" / "node.pub").read_bytes()
    (tmp_path / "south" / "request" / "node.pub").write_bytes(stolen)
    sites = [{"name": name, "request": f"{name}/request"} for name in ("north", "south")]
    with pytest.raises(ProjectError, match="south: expected a node key of its own, found the one of north"):
        provision(_project(tmp_path, *sites), tmp_path / "kits", requests=tmp_path)
    assert not (tmp_path / "kits").exists()
    provision(_project(tmp_path, sites[0]), tmp_path / "kits", requests=tmp_path)
    with pytest.raises(ProjectError, match="south: expected a node key of its own"):
        provision(_project(tmp_path, sites[1]), tmp_path / "kits", requests=tmp_path)


def test_a_key_that_others_may_read_and_another_projects_authority_are_refused(kits: Path, tmp_path: Path) -> None:
    key = kits / "authority" / "authority.key"
    key.chmod(0o640)
    with pytest.raises(KeyFileError, match="expected mode 0600, found 0640"):
        provision(_project(tmp_path), kits, requests=tmp_path)
    key.chmod(0o600)
    with pytest.raises(ProjectError, match="expected the authority of other, found the one of icu"):
        provision(_project(tmp_path, name="other"), kits, requests=tmp_path)
    write_key(key, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(AuthorityError, match="do not belong together"):
        provision(_project(tmp_path), kits, requests=tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sites": ["north", "north"]}, "expected sites of different names, found north"),
        ({"sites": ["../north"]}, "expected a name of lower-case letters"),
        ({"sites": []}, "sites"),
        ({"server": {"host": "fed.example.org; rm"}}, "expected a host name or an IP address"),
        ({"server": {"host": "fed.example.org", "prot": 9}}, "prot"),
        ({"server": {"host": "fed.example.org", "port": 70000}}, "port"),
        ({"days": 9999}, "days"),
    ],
)
def test_a_project_with_a_fault_is_refused_with_its_place(tmp_path: Path, facts: dict, message: str) -> None:
    with pytest.raises(ProjectError, match=message):
        _project(tmp_path, **facts)
    assert not (tmp_path / "kits").exists()


def test_names_that_are_not_of_the_project_are_refused(kits: Path, tmp_path: Path) -> None:
    for words in ({"renew": ["west"]}, {"revoke": ["west"]}, {"revoke": ["server"]}):
        with pytest.raises(ProjectError, match=r"expected sites of the project \(north, south\)"):
            provision(_project(tmp_path), kits, requests=tmp_path, **words)
    with pytest.raises(ProjectError, match="expected either to renew or to revoke"):
        provision(_project(tmp_path), kits, requests=tmp_path, renew=["north"], revoke=["north"])
