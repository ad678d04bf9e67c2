"""When each alarm fires: limits with defaults, and a YAML file that changes some of them."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from federation.sections import Section

Seconds = Annotated[float, Field(gt=0)]


class LimitsError(ValueError):
    """A file of limits that is not as documented; names the place in it."""


class Rule(Section):
    """One rule, which may be switched off."""

    is_on: bool = True
    """Whether it fires."""


class Divergence(Rule):
    """The loss of all sites leaves where it has been (`monitor.divergence`)."""

    rounds: Annotated[int, Field(ge=2)] = 3
    """Steps in a row that must be above."""
    rise: Annotated[float, Field(gt=0)] = 1.0
    """How far above the best so far, as a share of it."""
    noise: Annotated[float, Field(ge=0)] = 6.0
    """And how far above it at least in standard deviations of the curve's own noise."""


class Clock(Rule):
    """A site's clock differs from the server's."""

    seconds: Seconds = 30.0
    """More than this, whatever of the difference the way of the messages explains."""


class SilentRun(Rule):
    """A run at work of which no event comes."""

    seconds: Seconds | None = None
    """For longer than this; not given, for a minute longer than the run itself waits: `federation.round_seconds`, and
    `federation.join_seconds` before its sites are there."""


class PrivacyBudget(Rule):
    """A private run has spent its epsilon, or nearly."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Of the run's epsilon, from which on it is nearly spent."""


class Limits(Section):
    """What `--alarms FILE` may say."""

    refused_update: Rule = Rule()
    """A site's update was left out of a round."""
    missing_site: Rule = Rule()
    """A site was asked and gave no answer that counts."""
    run_failed: Rule = Rule()
    divergence: Divergence = Divergence()
    clock: Clock = Clock()
    silent_run: SilentRun = SilentRun()
    privacy_budget: PrivacyBudget = PrivacyBudget()
    sent_within_hours: Annotated[float, Field(gt=0)] = 24.0
    """An alarm that is older when it could be sent is shown on the page alone: who records last year's runs wakes
    nobody."""

    def has(self, rule: str) -> bool:
        """Whether a rule, named as an alarm names it, is switched on."""
        return getattr(self, rule.replace(" ", "_")).is_on


def load_limits(path: Path | None) -> Limits:
    """The limits of a file, or the defaults. Raises LimitsError for anything else than documented."""
    if path is None:
        return Limits()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LimitsError(
            f"{path}: expected limits of alarms, found none that can be read ({error.strerror})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise LimitsError(f"{path}: expected YAML, found text that does not parse") from None
    try:
        return Limits.model_validate({} if found is None else found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "the file"
        said = "unknown; docs/monitor.md lists what there is" if first["type"] == "extra_forbidden" else first["msg"]
        raise LimitsError(f"{path}: {where}: {said}") from None
