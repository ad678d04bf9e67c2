"""The project file: who takes part, and where the sites find the server."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


class ProjectError(ValueError):
    """A project that cannot be provisioned; says where and what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a name of lower-case letters, digits and -, found {name!r}")
    return name


class Server(_Part):
    """Where the proxy in front of the server listens."""

    host: str
    """Name or address that sites dial; the proxy's certificate is for it."""
    port: Annotated[int, Field(ge=1, le=65535)] = 9443
    """Of the proxy."""
    bind: str = "0.0.0.0"
    """Address that the proxy listens on; 127.0.0.1 for a trial on one machine."""
    superlink_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Of Flower's SuperLink, on loopback."""
    largest_request_mb: Annotated[int, Field(ge=1)] = 16
    """The proxy refuses larger requests of Flower's; of a model that travels beside, see docs/deployment.md."""

    @field_validator("host")
    @classmethod
    def _dialled(cls, host: str) -> str:
        if _is_address(host) or _HOST.fullmatch(host):
            return host
        raise ValueError(f"expected a host name or an IP address, found {host!r}")

    @field_validator("bind")
    @classmethod
    def _bound(cls, bind: str) -> str:
        if _is_address(bind):
            return bind
        raise ValueError(f"expected an IP address, found {bind!r}")


class ProjectSite(_Part):
    """A hospital."""

    name: str
    request: str | None = None
    """Folder with what `dipro-fed site request` made there, relative to the project file; its keys never leave the
    site. Without it keys are made with the kit."""
    sidecar_port: Annotated[int, Field(ge=1, le=65535)] = 9093
    """Of the site's proxy on its own loopback; sites that share a machine need their own."""
    node_port: Annotated[int, Field(ge=1, le=65535)] = 9094
    """Of Flower's node on the same loopback."""

    _name = field_validator("name")(_plain_name)


class Project(_Part):
    """A federation as its coordinator writes it down."""

    name: str
    server: Server
    sites: Annotated[tuple[ProjectSite, ...], Field(min_length=1)]
    days: Annotated[int, Field(ge=1, le=825)] = 365
    """Days that a certificate is valid."""

    _name = field_validator("name")(_plain_name)

    @field_validator("sites", mode="before")
    @classmethod
    def _as_tuple(cls, sites: object) -> object:
        return (
            tuple({"name": each} if isinstance(each, str) else each for each in sites)
            if isinstance(sites, list)
            else sites
        )

    @model_validator(mode="after")
    def _sites_differ(self) -> "Project":
        names = [site.name for site in self.sites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected sites of different names, found {', '.join(twice)} more than once")
        return self


def load_project(path: Path) -> Project:
    """Read a project file. Raises ProjectError, naming the key, for anything that is not as documented."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ProjectError(f"{path}: cannot be read ({error.strerror}); give the project file, YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path}: expected YAML, found something else ({error})") from None
    try:
        return Project.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ProjectError(f"{path}: {where}: {first['msg']}; docs/deployment.md has an example") from None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
