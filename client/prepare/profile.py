"""A profile: everything a preparation decides, as data read from a YAML file and the tables it names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pydantic
import yaml

from client.prepare.demographics import DemographicRules
from client.prepare.events import EhrRules
from client.prepare.images import ImageRules
from client.prepare.labels import LabelRules
from client.prepare.rejections import PrepareError
from client.prepare.samples import SampleRules
from client.prepare.split import SplitRules
from client.prepare.stays import StayRules
from client.prepare.variables import Unit, Variable, read_units, read_variables

PROFILES = ("corrected", "published")
"""Profiles that come with the project."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The sections of a profile's YAML file, one a stage of the preparation."""

    stays: StayRules
    ehr: EhrRules
    demographics: DemographicRules
    images: ImageRules
    labels: LabelRules
    samples: SampleRules
    split: SplitRules


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Checked rules together with the tables they name."""

    name: str
    rules: Rules
    variables: tuple[Variable, ...]
    units: tuple[Unit, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over every setting and table row: equal digests prepare equal cohorts from equal files."""
        content = [asdict(self.rules), [asdict(row) for row in self.variables], [asdict(row) for row in self.units]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_profile(name_or_path: str | Path) -> Profile:
    """One of PROFILES, or the profile in a YAML file of one's own, with tables of its own beside it.

    A file with `based_on: corrected` holds only what differs from that profile. Raises PrepareError naming the file and
    the key where a key is unknown or missing, or a value has the wrong type.
    """
    path = _profile_path(str(name_or_path))
    own = dict(_read_yaml(path))
    base = _base(path, own.pop("based_on", None))
    rules = _checked(path, own if base is None else _merged(_read_yaml(base), own))
    named = own.get("ehr", {})
    folders = {
        table: path.parent if base is None or table in named else base.parent for table in ("variables", "units")
    }
    profile = Profile(
        name=path.stem,
        rules=rules,
        variables=read_variables(folders["variables"] / rules.ehr.variables),
        units=read_units(folders["units"] / rules.ehr.units),
    )
    _check_units(path, profile)
    return profile


def _base(path: Path, name: object) -> Path | None:
    if name is not None and name not in PROFILES:
        raise PrepareError(f"{path}: based_on: expected one of {', '.join(PROFILES)}, found {name!r}")
    return None if name is None else _profile_path(str(name))


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the sections' own values in place of its."""
    sections = [key for key, value in own.items() if isinstance(value, dict) and isinstance(base.get(key), dict)]
    return {**base, **own, **{key: {**base[key], **own[key]} for key in sections}}


def _profile_path(name_or_path: str) -> Path:
    if name_or_path in PROFILES:
        return Path(str(files("client.prepare") / "profiles" / f"{name_or_path}.yaml"))
    path = Path(name_or_path)
    if not path.is_file():
        raise PrepareError(
            f"expected a profile: one of {', '.join(PROFILES)}, or a YAML file; found neither at {name_or_path!r}"
        )
    return path


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: expected YAML, found text that does not parse ({error})") from None
    if not isinstance(content, dict):
        raise PrepareError(f"{path}: expected a profile's sections, found {type(content).__name__}")
    return content


def _checked(path: Path, content: Mapping[str, Any]) -> Rules:
    # Through JSON, because there strict checking takes a list for a tuple and a whole number for a float.
    try:
        return pydantic.TypeAdapter(Rules).validate_json(json.dumps(content), strict=True, extra="forbid")
    except TypeError as error:
        raise PrepareError(f"{path}: expected texts, numbers, lists and sections only ({error})") from None
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
            for fault in error.errors(include_url=False)
        )
        raise PrepareError(f"{path}: {faults}; docs/cohort.md lists the settings of a profile") from None


def _check_units(path: Path, profile: Profile) -> None:
    """Every unit that an item may fall back on must be one the table of units can convert."""
    known = {(unit.variable, unit.unit) for unit in profile.units}
    demographics = profile.rules.demographics
    used = {("Height", item.unit) for item in demographics.height} | {
        ("Weight", item.unit) for item in demographics.weight
    }
    if profile.rules.ehr.read_units:
        used |= {(row.name, item.item_unit) for row in profile.variables for item in row.items if item.item_unit}
    missing = sorted(f"{unit} of {variable}" for variable, unit in used - known)
    if missing:
        raise PrepareError(f"{path.parent / profile.rules.ehr.units}: expected the units {', '.join(missing)}")
