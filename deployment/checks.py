"""What a site looks at before it joins: this machine, its kit, and the way to the server.

Each check says what it found and, where that is not well, what to do. None of them changes anything.
"""

import http.client
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from packaging.requirements import Requirement

from deployment.bundles import Approvals, BundleError
from deployment.keys import KeyFileError
from deployment.programs import ports, site_programs
from deployment.site_kit import FACTS, KitError, SiteFacts, SiteKit, load_site_kit, read_certificate, read_facts
from deployment.supervision import Supervision, SupervisionError, require_free
from federation.audit import AUDIT, AuditError, verify
from federation.secure.errors import SecureError
from federation.secure.identity import Identity, check_signature

_NEEDED = ("torch", "flwr", "monai", "numpy", "pandas", "pyarrow", "cryptography", "supervisor")
_GB = 1e9
_STATEMENT = b"the doctor looks"
_NEW_KEY = "copy key and certificate from one kit, or ask the coordinator for new ones (dipro-fed provision --renew)"
_MEMORY_GB, _GPU_GB, _DISK_GB, _LOW_DISK_GB = 6, 8, 1, 10
"""What a site of the published model needs (docs/benchmarks.md), and how much disk is little."""
_BEHIND_SECONDS, _AHEAD_SECONDS = 300, 4
"""Flower's server refuses a clock that is further behind its own, or further ahead."""
_SOON = timedelta(days=30)
_NETWORK_SECONDS = 10


class Outcome(StrEnum):
    """What came of a check."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table."""

    name: str
    outcome: Outcome
    found: str
    advice: str = ""
    """What to do; empty where all is well."""


def passed(name: str, found: str) -> Check:
    return Check(name=name, outcome=Outcome.PASS, found=found)


def failed(name: str, found: object, advice: str) -> Check:
    return Check(name=name, outcome=Outcome.FAIL, found=str(found), advice=advice)


def warned(name: str, found: str, advice: str) -> Check:
    return Check(name=name, outcome=Outcome.WARN, found=found, advice=advice)


def check_installation() -> Iterator[Check]:
    """Python, and the packages whose versions decide whether sites compute the same."""
    found, wanted = f"{sys.version_info.major}.{sys.version_info.minor}", (3, 11) <= sys.version_info[:2] < (3, 14)
    yield (
        passed("Python", found)
        if wanted
        else failed("Python", found, "install dipro-fed with Python 3.11, 3.12 or 3.13")
    )
    required = {(each := Requirement(line)).name: each for line in distribution("dipro-fed").requires or ()}
    wrong, versions = [], []
    for name in _NEEDED:
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        versions.append(f"{name} {installed}")
        # A build's own mark, as in 2.13.0+cu130, is no other version.
        if name in required and not required[name].specifier.contains(installed.split("+")[0], prereleases=True):
            wrong.append(f"{name} {installed}, expected {required[name].specifier}")
    if wrong:
        yield failed("packages", "; ".join(wrong), "install the versions that dipro-fed names: make install")
    else:
        yield passed("packages", ", ".join(versions))


def check_machine(device: str, state: Path) -> Iterator[Check]:
    """GPU, memory and disk."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / _GB
        found = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB"
        yield (
            passed("GPU", found)
            if memory >= _GPU_GB
            else warned("GPU", found, "set training.checkpoint_activations, or a smaller batch")
        )
    elif device == "cuda":
        yield failed("GPU", "none that torch can use", "mend the driver, or set device: auto in site.yaml")
    else:
        yield warned("GPU", "none: this site trains on its CPU", "ask for model.freeze_backbone, or patience")
    memory = _memory_gb()
    yield (
        passed("memory", f"{memory:.0f} GB")
        if memory >= _MEMORY_GB
        else warned("memory", f"{memory:.1f} GB", f"the published model trains in {_MEMORY_GB} GB or more")
    )
    place = next(folder for folder in (state, *state.parents) if folder.exists())
    free = shutil.disk_usage(place).free / _GB
    if free < _DISK_GB:
        yield failed("disk", f"{free:.1f} GB free at {place}", "make room: state and predictions of a run lie there")
    elif free < _LOW_DISK_GB:
        yield warned("disk", f"{free:.1f} GB free at {place}", "make room before a long run")
    else:
        yield passed("disk", f"{free:.0f} GB free at {place}")


def check_kit(folder: Path) -> Iterator[Check]:
    """Files, key modes and certificates of the kit."""
    try:
        kit = load_site_kit(folder)
    except (KitError, KeyFileError) as error:
        yield failed("kit", error, "mend this first")
    else:
        yield passed("kit", f"{kit.facts.site} in {kit.facts.project}; keys are readable by their owner alone")
    try:
        own, authority = (read_certificate(folder / name) for name in ("client.pem", "authority.pem"))
    except (OSError, KitError) as error:
        yield failed("certificate", error, "copy it into the kit again")
        return
    yield _certificate(own, authority)


def check_secure(folder: Path) -> Iterator[Check]:
    """Whether this site could take part in a run with secure aggregation: its signing key, and who vouches for it.

    The other sites look at the same, and a site that they refuse costs the run a round.
    """
    try:
        facts, identity = read_facts(folder / FACTS, SiteFacts), Identity.load(folder)
        identity.check_certificate(facts.site, identity.certificate_bytes)
        check_signature(facts.site, identity.certificate_bytes, _STATEMENT, identity.sign(_STATEMENT))
    except (KitError, OSError) as error:
        yield failed("masks", error, "mend the kit first")
    except SecureError as error:
        yield failed("masks", error, "until then this site takes part in no run with secure aggregation; " + _NEW_KEY)
    else:
        yield passed("masks", f"signs as {facts.site} with client.key, which {facts.project} vouches for")


def check_audit(state: Path) -> Iterator[Check]:
    """The site's own audit log: where its last line was changed the site refuses whatever it is asked."""
    log = state / AUDIT
    if not log.is_file():
        yield passed("audit log", "none yet: this site was asked nothing")
        return
    try:
        trail = verify(log)
    except AuditError as error:
        yield failed("audit log", error, "find out who changed it; put it back from a backup, or aside for a new one")
    else:
        yield passed("audit log", f"{trail.num_entries:,} whole lines, the last one {trail.head[:16]}…")


def check_ports(kit: SiteKit) -> Iterator[Check]:
    """nginx, and the ports on this machine's loopback."""
    try:
        site_programs(kit)
    except (KitError, ValueError) as error:
        yield failed("programs", error, "install it")
    else:
        yield passed("programs", "nginx and Flower's commands are installed")
    if Supervision(folder=kit.folder).is_running():
        yield passed("ports", "in use by this site, which runs")
        return
    for what, port in ports(kit).items():
        try:
            require_free(what, port)
        except SupervisionError as error:
            yield failed(f"port {port}", error, "end what uses it, or ask the coordinator for another one")
        else:
            yield passed(f"port {port}", "free")


def check_approvals(folder: Path) -> Iterator[Check]:
    """Whether any code may run here."""
    try:
        hashes = Approvals(kit=folder).hashes()
    except BundleError as error:
        yield failed("approved code", error, "restore the list, or delete it and approve again")
        return
    if hashes:
        yield passed("approved code", f"{len(hashes)}, the last one {hashes[-1][:16]}…")
    else:
        yield warned("approved code", "none: every run is refused", "dipro-fed site approve BUNDLE")


def check_server(folder: Path, now: Callable[[], float] = time.time) -> Iterator[Check]:
    """The way to the server, whom it proves to be, whether it lets this site in, and its clock."""
    facts = read_facts(folder / FACTS, SiteFacts)
    address = f"{facts.host}:{facts.port}"
    try:
        context = ssl.create_default_context(cafile=folder / "authority.pem")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
        with (
            socket.create_connection((facts.host.strip("[]"), facts.port), timeout=_NETWORK_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=facts.proxy_name) as secured,
        ):
            yield passed("server", f"{address} answers, and is the proxy of {facts.project}")
            yield from _ask(secured, address, now)
    except ssl.SSLCertVerificationError as error:
        yield failed("server", f"{address} is not this project's proxy ({error.verify_message})", _WRONG_SERVER)
    except ssl.SSLError as error:
        yield failed("let in", f"{address} refused this site's certificate ({error.reason})", _REFUSED)
    except OSError as error:
        yield failed("server", f"{address} cannot be reached ({error.strerror or error})", _UNREACHABLE)


_WRONG_SERVER = "tell the coordinator: a wrong address, a proxy renewed by another authority, or somebody in between"
_REFUSED = "ask the coordinator whether this site was revoked (dipro-fed provision --renew)"
_UNREACHABLE = "check the network, the firewall (only this outgoing connection is needed) and whether the server runs"


def _ask(secured: ssl.SSLSocket, address: str, now: Callable[[], float]) -> Iterator[Check]:
    connection = http.client.HTTPConnection(address)
    connection.sock = secured
    connection.request("GET", "/health")
    answer = connection.getresponse()
    if answer.status == http.client.OK:
        yield passed("let in", "the proxy knows this site's certificate, and Flower's server is up")
    elif answer.status in (http.client.BAD_REQUEST, http.client.FORBIDDEN):
        yield failed("let in", f"refused ({answer.status})", _REFUSED)
    else:
        yield warned(
            "let in", f"the proxy answers, Flower's server behind it does not ({answer.status})", "wait for it"
        )
    date = answer.headers.get("Date")
    if date is not None:
        yield _clock(now() - parsedate_to_datetime(date).timestamp())


def _clock(ahead: float) -> Check:
    """The server tells whole seconds, so that one more or less is nothing."""
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if -_BEHIND_SECONDS < ahead < _AHEAD_SECONDS:
        return passed("clock", found)
    return failed(
        "clock", found, "set this machine's clock (NTP): Flower's server refuses what is signed at such a time"
    )


def _certificate(own: x509.Certificate, authority: x509.Certificate) -> Check:
    now, until = datetime.now(UTC), own.not_valid_after_utc
    ask = "ask the coordinator for a new one (dipro-fed provision --renew)"
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return failed("certificate", "client.pem is not of the authority in authority.pem", "copy both from one kit")
    if not own.not_valid_before_utc <= now <= until:
        return failed("certificate", f"good from {own.not_valid_before_utc.date()} to {until.date()}, not today", ask)
    if until - now < _SOON:
        return warned("certificate", f"good until {until.date()}", ask)
    return passed("certificate", f"good until {until.date()}")


def _memory_gb() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / _GB
    return 0.0
