"""What a run hid and what that has cost so far, as its audit log says: for the page and for Prometheus."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from federation.masked_log import MASKING, UNMASKED, MaskedRound, masked_rounds
from federation.run_folder import PATIENTS, SITES, UPDATES
from monitor.rows import is_number
from monitor.tables import events

WHOLE_SITE = "any whole site"
"""Name of the line of site-level privacy, which is the same for every site, beside those of the sites' patients."""
_SHOWN_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What was spent of one budget."""

    of: str
    """A site, whose patients it is about, or any whole site."""
    epsilon: float
    budget: float | None
    delta: float | None


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What secure aggregation hid so far."""

    rounds: tuple[MaskedRound, ...]
    """Also those that were begun and gave no sum yet."""
    least_sites: int | None
    """Sites that a sum is of at least; not known until run.json says it."""

    @property
    def num_rounds(self) -> int:
        """Those of which the server learned the sum."""
        return sum(each.has_sum for each in self.rounds)

    @property
    def num_hidden(self) -> int:
        """Updates of single sites in these sums."""
        return sum(self.masked.values())

    @property
    def masked(self) -> Counter[str]:
        """Updates in a sum, by site."""
        return Counter(site for each in self.rounds for site in each.masked)

    @property
    def opened(self) -> Counter[str]:
        """Masks that the others opened because a site was lost, by site."""
        return Counter(site for each in self.rounds for site in each.opened)

    @property
    def again(self) -> list[tuple[int, int]]:
        """Rounds that were begun more than once, and how often more."""
        return [(each.round, each.attempts - 1) for each in self.rounds if each.attempts > 1]

    @property
    def latest(self) -> list[MaskedRound]:
        """The last rounds, the latest first."""
        return list(self.rounds[::-1][:_SHOWN_ROUNDS])


def is_on(run: Mapping[str, Any], section: str) -> bool:
    """Whether a run's settings switch one of the three on."""
    return _settings(run, section).get("enabled") is True


def budgets(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name and value of the epsilons that a run keeps, for lines in the picture."""
    names = {PATIENTS: "budget of the patients", SITES: "budget of whole sites"}
    found = [(names[each], _settings(run, each).get("epsilon")) for each in names if is_on(run, each)]
    return [{"name": name, "value": value} for name, value in found if is_number(value)]


def spent(connection: Connection, run: Mapping[str, Any]) -> list[Spent]:
    """What the last event of each kind says: the patients of each site, then whole sites."""
    found = []
    said = _last(connection, run["run_id"], "privacy")
    sites = said.get("sites")
    for site, each in sorted(sites.items()) if isinstance(sites, dict) else ():
        if isinstance(each, dict) and is_number(each.get("epsilon")):
            found.append(_spent(site, each["epsilon"], said))
    said = _last(connection, run["run_id"], "charged")
    if is_number(said.get("epsilon")):
        budget = said.get("budget", _settings(run, SITES).get("epsilon"))  # older logs do not say it
        found.append(_spent(WHOLE_SITE, said["epsilon"], {**said, "budget": budget}))
    return found


def masks(connection: Connection, run: Mapping[str, Any]) -> Masks | None:
    """None of a run that masks nothing."""
    if not is_on(run, UPDATES):
        return None
    said = run["facts"].get(UPDATES) if isinstance(run["facts"], dict) else None
    least = said.get("least_sites") if isinstance(said, dict) else None
    rounds = _masked(connection, run["run_id"], -1)
    return Masks(rounds=tuple(rounds), least_sites=least if isinstance(least, int) else None)


def epsilons(connection: Connection, run_id: int, after: int = -1) -> dict[str, Any]:
    """Epsilon by round after one: of each site's patients, and of any whole site."""
    asked = (
        select(events.c.round, events.c.kind, events.c.facts)
        .where(events.c.run_id == run_id, events.c.kind.in_(("privacy", "charged")), events.c.round > after)
        .order_by(events.c.number)
    )
    lines: dict[str, dict[int, float]] = defaultdict(dict)
    for number, kind, facts in connection.execute(asked):
        sites = {WHOLE_SITE: facts} if kind == "charged" else facts.get("sites")
        for site, said in sites.items() if isinstance(sites, dict) else ():
            if isinstance(said, dict) and is_number(said.get("epsilon")):
                lines[site][number] = said["epsilon"]
    in_order = sorted(lines, key=lambda site: (site == WHOLE_SITE, site))
    return {site: {"step": list(lines[site]), "value": list(lines[site].values())} for site in in_order}


def masked_counts(connection: Connection, run_id: int, after: int = -1) -> dict[str, Any]:
    """By round after one: updates in the sum, masks of lost sites that were opened, how often it was begun again."""
    rounds = _masked(connection, run_id, after)
    with_sum = [each for each in rounds if each.has_sum]
    found = {
        "updates in the sum": [(each.round, len(each.masked)) for each in with_sum],
        "masks opened": [(each.round, len(each.opened)) for each in with_sum],
        "begun again": [(each.round, each.attempts - 1) for each in rounds],
    }
    return {
        name: {"step": [step for step, _ in line], "value": [value for _, value in line]}
        for name, line in found.items()
        if line
    }


def _masked(connection: Connection, run_id: int, after: int) -> list[MaskedRound]:
    asked = (
        select(events.c.kind, events.c.facts)
        .where(events.c.run_id == run_id, events.c.kind.in_((MASKING, UNMASKED)), events.c.round > after)
        .order_by(events.c.number)
    )
    return masked_rounds((kind, facts) for kind, facts in connection.execute(asked))


def _spent(of: str, epsilon: float, said: Mapping[str, Any]) -> Spent:
    budget, delta = (each if is_number(each) else None for each in (said.get("budget"), said.get("delta")))
    return Spent(of=of, epsilon=epsilon, budget=budget, delta=delta)


def _last(connection: Connection, run_id: int, kind: str) -> dict[str, Any]:
    """What the last event of a kind says; nothing where there is none."""
    asked = select(events.c.facts).where(events.c.run_id == run_id, events.c.kind == kind)
    return connection.execute(asked.order_by(events.c.number.desc()).limit(1)).scalar_one_or_none() or {}


def _settings(run: Mapping[str, Any], section: str) -> dict[str, Any]:
    settings = run["settings"]
    found = settings.get(section) if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}
