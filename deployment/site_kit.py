"""A site's kit as its processes and checks read it: what provision wrote, what the hospital filled in."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deployment.keys import read_key

FACTS, SETTINGS, POLICY = "kit.json", "site.yaml", "policy.yaml"
PUBLIC = ("authority.pem", "client.pem", "loopback.pem", "nginx.conf", "bin/flwr-clientapp", POLICY, SETTINGS)
SECRET = ("client.key", "node.key", "loopback.key")
SUPEREXEC_SECRET = "superexec.secret"
"""What Flower's processes on one machine know each other by."""
Model = TypeVar("Model", bound=BaseModel)
Port = Annotated[int, Field(ge=1, le=65535)]


class KitError(ValueError):
    """A kit that cannot be used; says which file, what was expected and what to do."""


class SiteFacts(BaseModel):
    """What provision wrote into a site's kit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str
    site: str
    host: str
    port: Port
    proxy_name: str
    """The name that the project's proxy shows whatever host it runs on."""
    sidecar_port: Port
    node_port: Port


class SiteSettings(BaseModel):
    """What only the site knows and fills in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cohort: Path
    """Folder of the prepared cohort; a relative one is relative to the kit."""
    state: Path = Path("state")
    """Folder where the site keeps predictions, its audit log and what it must remember between rounds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    withhold: tuple[str, ...] = ()
    """What the site does not tell of its patients (docs/agreement.md)."""

    @field_validator("cohort", "state", mode="before")
    @classmethod
    def _is_given(cls, value: object) -> object:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"expected a folder, found {value!r}")
        if set(value) & set("\"'\\\n"):
            raise ValueError("expected a folder without quotes and backslashes: Flower cannot be told another")
        return value


class SiteKit(BaseModel):
    """A kit that has all it needs."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    facts: SiteFacts
    settings: SiteSettings

    @property
    def cohort(self) -> Path:
        return (self.folder / self.settings.cohort).resolve()

    @property
    def state(self) -> Path:
        return (self.folder / self.settings.state).resolve()


def load_site_kit(folder: Path) -> SiteKit:
    """Read a kit. Raises KitError or KeyFileError for a file that is missing, unreadable, open to others or not as
    documented, and for a certificate that is not of the key beside it."""
    folder = folder.resolve()
    require_files(folder, (FACTS, *PUBLIC, *SECRET))
    for name in SECRET:
        read_key(folder / name)
    for name in ("client", "loopback"):
        if read_certificate(folder / f"{name}.pem").public_key() != read_key(folder / f"{name}.key").public_key():
            raise KitError(
                f"{folder / name}.pem: expected the certificate of {name}.key beside it, found another key's; "
                "copy both from where they were made"
            )
    return SiteKit(
        folder=folder,
        facts=read_facts(folder / FACTS, SiteFacts),
        settings=_read_settings(folder / SETTINGS),
    )


def require_files(folder: Path, names: tuple[str, ...]) -> None:
    """Raises KitError for the first of a kit's files that is not there or cannot be read."""
    for name in names:
        try:
            (folder / name).read_bytes()
        except OSError as error:
            raise KitError(
                f"{folder / name}: cannot be read ({error.strerror}); a kit as `dipro-fed provision` made it has it, "
                "README.md says where it comes from"
            ) from None


def read_facts(path: Path, kind: type[Model]) -> Model:
    """Read what provision wrote for the machine. Raises KitError."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise KitError(
            f"{path}: expected what provision writes, found {_first(error)}; provision the kit again"
        ) from None


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate in PEM. Raises KitError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise KitError(f"{path}: expected a certificate in PEM, found something else; ask for it again") from None


def _read_settings(path: Path) -> SiteSettings:
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise KitError(f"{path}: expected YAML, found something else") from None
    try:
        return SiteSettings.model_validate(found or {})
    except ValidationError as error:
        raise KitError(f"{path}: {_first(error)}; README.md of the kit says what to fill in") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the file'}: {first['msg']}"
