"""The server's folder as its processes read it: what provision wrote."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from deployment.keys import read_key
from deployment.site_kit import (
    FACTS,
    SUPEREXEC_SECRET,
    KitError,
    Port,
    read_certificate,
    read_facts,
    require_files,
)

STATE = "state"
"""Folder of Flower's database; two servers must not share one."""
FREIGHT = "freight"
"""Folder of what travels beside Flower's messages, while a run is at work."""
PUBLIC = ("authority.pem", "revoked.pem", "proxy.pem", "server.pem", "nginx.conf")
SECRET = ("proxy.key", "server.key")


class ServerFacts(BaseModel):
    """What provision wrote into the server's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str
    port: Port
    """Of the proxy."""
    superlink_port: Port
    sites: tuple[str, ...]
    """The sites that are let in."""
    freight: bool = False
    """Whether the proxy beside this hands out and takes in what travels beside Flower's messages."""


class ServerKit(BaseModel):
    """A server's folder that has all it needs."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    facts: ServerFacts

    @property
    def state(self) -> Path:
        return self.folder / STATE

    @property
    def freight(self) -> Path:
        """Of what travels beside Flower's messages; the proxy hands it out."""
        return self.folder / FREIGHT

    @property
    def address(self) -> str:
        """Of Flower's SuperLink."""
        return f"127.0.0.1:{self.facts.superlink_port}"


def load_server_kit(folder: Path) -> ServerKit:
    """Read a server's folder. Raises KitError or KeyFileError for what is missing, unreadable or open to others."""
    folder = folder.resolve()
    require_files(folder, (FACTS, *PUBLIC, *SECRET, SUPEREXEC_SECRET))
    for name in ("proxy", "server"):
        if read_certificate(folder / f"{name}.pem").public_key() != read_key(folder / f"{name}.key").public_key():
            raise KitError(f"{folder / name}.pem: expected the certificate of {name}.key, found another key's")
    return ServerKit(folder=folder, facts=read_facts(folder / FACTS, ServerFacts))
