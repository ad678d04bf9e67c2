"""What each machine of a federation is given: the server's folder, and a kit for every site.

Running it again changes nothing that is good: it adds what is missing, a new site for one, and writes the server's
proxy configuration anew. Sites need not be touched when another site is added, renewed or revoked.
"""

import base64
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jinja2 import Environment, PackageLoader, StrictUndefined

from deployment.authority import (
    CERTIFICATE,
    KEY,
    REVOKED,
    Authority,
    Role,
    certificate_builder,
    make_request,
    pem,
    read_request,
)
from deployment.keys import (
    header_key,
    keep_shared_secret,
    make_key,
    node_public_key,
    read_key,
    read_node_public_key,
    write_key,
)
from deployment.project import Project, ProjectError, ProjectSite
from deployment.server_kit import ServerFacts
from deployment.site_kit import FACTS, POLICY, SETTINGS, SUPEREXEC_SECRET, SiteFacts
from federation.files import write_whole
from federation.freight import PART_BYTES

AUTHORITY, SERVER, SITES = "authority", "server", "sites"
COORDINATOR: Literal["coordinator"] = "coordinator"
"""Folders of `dipro-fed provision --out`."""
_CLIENT, _NODE, _LOOPBACK, _REQUEST = "client", "node", "loopback", "site.csr"
_LOOPBACK_DAYS = 3650
_HERE, _PEM = ipaddress.ip_address("127.0.0.1"), serialization.Encoding.PEM

_templates = Environment(
    loader=PackageLoader("deployment"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # configuration and Markdown; every name in them was checked
)


@dataclass(kw_only=True)
class Provisioned:
    """What was done, for people."""

    lines: list[str] = field(default_factory=list)


def provision(
    project: Project,
    out: Path,
    *,
    requests: Path,
    renew: Collection[str] = (),
    revoke: Collection[str] = (),
) -> Provisioned:
    """Make or complete the folders of a project below `out`; sites' requests are relative to `requests`.

    `renew` gives sites (or `server`, `coordinator`) a new certificate, `revoke` takes theirs back: they stay shut out
    until they are named in `renew`, for which they need new keys. Raises ProjectError, AuthorityError or KeyFileError,
    before anything is written, for names that are not of the project and for requests that do not fit.
    """
    names = {site.name for site in project.sites}
    if unknown := sorted(({*renew} - names - {SERVER, COORDINATOR}) | ({*revoke} - names - {COORDINATOR})):
        raise ProjectError(f"expected sites of the project ({', '.join(sorted(names))}), found {', '.join(unknown)}")
    if both := sorted(set(renew) & set(revoke)):
        raise ProjectError(f"{', '.join(both)}: expected either to renew or to revoke, found both")
    asked = {site.name: _request(site, requests / site.request) for site in project.sites if site.request is not None}
    _require_single(asked)
    done = Provisioned()
    authority = _authority(project, out / AUTHORITY, done)
    for name in revoke:
        count = authority.revoke("site" if name in names else COORDINATOR, name)
        done.lines.append(f"{name}: revoked ({count} certificate{'s' if count > 1 else ''})")
    _server(project, authority, out, done, renew=SERVER in renew)
    _coordinator(project, authority, out / COORDINATOR, done, renew=COORDINATOR in renew)
    for site in project.sites:
        _site(project, authority, site, asked.get(site.name), out, done, renew=site.name in renew)
    _proxy(project, authority, out)
    return done


def make_site_request(name: str, out: Path) -> None:
    """Make a site's keys where they stay, and in `out/request` what its coordinator needs of them."""
    site = ProjectSite(name=name)  # refuses names that no project takes
    client, node = _own_key(out / f"{_CLIENT}.key"), _own_key(out / f"{_NODE}.key", for_node=True)
    _loopback(out)
    write_whole(out / "request" / _REQUEST, make_request(client, site.name).public_bytes(_PEM))
    write_whole(out / "request" / f"{_NODE}.pub", node_public_key(node.public_key()))


def _authority(project: Project, folder: Path, done: Provisioned) -> Authority:
    if not (folder / KEY).exists():
        done.lines.append(f"{folder}: made the authority; keep this folder where nobody else can read it")
        return Authority.create(folder, project.name)
    authority = Authority(folder)
    if authority.project != project.name:
        raise ProjectError(
            f"{folder}: expected the authority of {project.name}, found the one of {authority.project}; "
            "give another --out"
        )
    return authority


def _server(project: Project, authority: Authority, out: Path, done: Provisioned, *, renew: bool) -> None:
    folder = out / SERVER
    proxied = [project.server.host, proxy_name(project)]
    roles: list[tuple[Role, list[str]]] = [("server", ["localhost", "127.0.0.1"]), ("proxy", proxied)]
    for role, hosts in roles:
        key = _own_key(folder / f"{role}.key")
        if renew or not authority.has(role, role) or not (folder / f"{role}.pem").exists():
            certificate = authority.issue(role, role, key.public_key(), days=project.days, hosts=hosts)
            write_whole(folder / f"{role}.pem", pem(certificate))
            done.lines.append(f"{folder / role}.pem: good until {_day(certificate)}")
    keep_shared_secret(folder / SUPEREXEC_SECRET)


def _coordinator(project: Project, authority: Authority, folder: Path, done: Provisioned, *, renew: bool) -> None:
    if authority.is_revoked(COORDINATOR, COORDINATOR):
        if not renew:
            done.lines.append(f"{COORDINATOR}: revoked, and shut out until it is renewed")
            return
        (folder / f"{_CLIENT}.key").unlink()
    key = _own_key(folder / f"{_CLIENT}.key")
    if renew or not (folder / f"{_CLIENT}.pem").exists() or not authority.has(COORDINATOR, COORDINATOR):
        certificate = authority.issue(COORDINATOR, COORDINATOR, key.public_key(), days=project.days)
        write_whole(folder / f"{_CLIENT}.pem", pem(certificate))
        write_whole(folder / CERTIFICATE, pem(authority.certificate))
        done.lines.append(f"{folder / _CLIENT}.pem: good until {_day(certificate)}")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The public keys of a site that made its own."""

    client: ec.EllipticCurvePublicKey
    node: ec.EllipticCurvePublicKey


def _request(site: ProjectSite, folder: Path) -> _Asked:
    client = read_request(folder / _REQUEST, site.name)
    return _Asked(client=client, node=read_node_public_key(folder / f"{_NODE}.pub"))


def _site(
    project: Project,
    authority: Authority,
    site: ProjectSite,
    asked: _Asked | None,
    out: Path,
    done: Provisioned,
    *,
    renew: bool,
) -> None:
    folder = out / SITES / site.name
    path = folder / f"{_CLIENT}.pem"
    if authority.is_revoked("site", site.name):
        if not renew:
            done.lines.append(f"{site.name}: revoked, and shut out until it is renewed")
            return
        if asked is not None and _public_key(path) == asked.client:
            raise ProjectError(
                f"{site.name}: expected new keys after a revocation, found the old ones; ask for a request"
            )
        if asked is None:
            (folder / f"{_CLIENT}.key").unlink()
            (folder / f"{_NODE}.key").unlink()
    if asked is None:
        client = _own_key(folder / f"{_CLIENT}.key").public_key()
        node = _own_key(folder / f"{_NODE}.key", for_node=True).public_key()
        _loopback(folder)
    else:
        client, node = asked.client, asked.node
    for other in sorted((out / SERVER / "nodes").glob("*.pub")):
        if other.stem != site.name and read_node_public_key(other) == node:
            raise _shared(site.name, other.stem)
    write_whole(folder / f"{_NODE}.pub", node_public_key(node))
    write_whole(out / SERVER / "nodes" / f"{site.name}.pub", node_public_key(node))
    if not renew and authority.has("site", site.name) and path.exists() and _public_key(path) == client:
        return
    certificate = authority.issue("site", site.name, client, days=project.days)
    write_whole(path, pem(certificate))
    write_whole(folder / CERTIFICATE, pem(authority.certificate))
    known = SiteFacts(
        project=project.name,
        site=site.name,
        host=_bracketed(project.server.host),
        port=project.server.port,
        proxy_name=proxy_name(project),
        sidecar_port=site.sidecar_port,
        node_port=site.node_port,
    )
    write_whole(folder / FACTS, known.model_dump_json(indent=2).encode())
    facts = known.model_dump() | {
        "largest_request_mb": project.server.largest_request_mb,
        "own_keys": asked is not None,
        "not_after": _day(certificate),
    }
    for template, name in (("sidecar.conf", "nginx.conf"), ("site.md", "README.md"), ("start.sh", "start.sh")):
        write_whole(folder / name, _templates.get_template(template).render(facts).encode())
    write_whole(folder / "bin" / "flwr-clientapp", _templates.get_template("flwr-clientapp").render().encode())
    for name in ("start.sh", "bin/flwr-clientapp"):
        (folder / name).chmod(0o755)
    for name in (SETTINGS, POLICY):
        if not (folder / name).exists():  # the site's own words stay
            write_whole(folder / name, _templates.get_template(name).render(facts).encode())
    done.lines.append(f"{folder}: good until {_day(certificate)}")


def _proxy(project: Project, authority: Authority, out: Path) -> None:
    """The proxy's configuration and what it reads, with the sites that are in."""
    folder, nodes = out / SERVER, []
    for site in project.sites:
        public = folder / "nodes" / f"{site.name}.pub"
        if authority.has("site", site.name):
            key = base64.b64encode(header_key(read_node_public_key(public))).decode()
            nodes.append((site.name, _dn(project, "site", site.name), key))
    known = ServerFacts(
        project=project.name,
        port=project.server.port,
        superlink_port=project.server.superlink_port,
        sites=tuple(site.name for site in project.sites if authority.has("site", site.name)),
        freight=True,
    )
    write_whole(folder / FACTS, known.model_dump_json(indent=2).encode())
    facts = project.server.model_dump() | {
        "project": project.name,
        "sites": known.sites,
        "nodes": nodes,
        "bind": _bracketed(project.server.bind),
        "coordinator": _dn(project, COORDINATOR, COORDINATOR),
        "freight_part_bytes": PART_BYTES,
    }
    for name, source in (
        (CERTIFICATE, pem(authority.certificate)),
        (REVOKED, (authority.folder / REVOKED).read_bytes()),
    ):
        write_whole(folder / name, source)
    for template, name in (("proxy.conf", "nginx.conf"), ("server.md", "README.md")):
        write_whole(folder / name, _templates.get_template(template).render(facts).encode())


def proxy_name(project: Project) -> str:
    """A name that the proxy's certificate has whatever host it runs on; sites check it."""
    return f"proxy.{project.name}.internal"


def _require_single(asked: Mapping[str, _Asked]) -> None:
    owners: dict[bytes, str] = {}
    for name, keys in asked.items():
        owner = owners.setdefault(node_public_key(keys.node), name)
        if owner != name:
            raise _shared(name, owner)


def _shared(name: str, owner: str) -> ProjectError:
    return ProjectError(f"{name}: expected a node key of its own, found the one of {owner}; make a new one")


def _own_key(path: Path, *, for_node: bool = False) -> ec.EllipticCurvePrivateKey:
    """The key in a file, made now where there is none."""
    if not path.exists():
        write_key(path, make_key(), for_node=for_node)
    return read_key(path)


def _loopback(folder: Path) -> None:
    """A certificate for this machine's loopback that nobody else need believe, signed with its own key."""
    if (folder / f"{_LOOPBACK}.pem").exists():
        return
    key = _own_key(folder / f"{_LOOPBACK}.key")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _LOOPBACK)])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(_HERE)]
    certificate = (
        certificate_builder(name, name, key.public_key(), days=_LOOPBACK_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_whole(folder / f"{_LOOPBACK}.pem", pem(certificate))


def _public_key(path: Path) -> object:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_key()


def _dn(project: Project, role: str, name: str) -> str:
    """The subject as nginx writes it (RFC 2253: the last part first)."""
    return f"CN={name},OU={role},O={project.name}"


def _day(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.date().isoformat()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
