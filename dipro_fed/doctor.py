"""`dipro-fed site doctor`: whether this hospital is ready to join, before it does."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dipro_fed.processes import Kit

if TYPE_CHECKING:
    from client.policy import SitePolicy
    from deployment.checks import Check
    from deployment.site_kit import SiteKit

_NEARLY = 0.9
"""Share of the privacy budget at which it is nearly spent."""
_MARKS = {"pass": "green", "warn": "yellow", "fail": "red"}


def doctor(kit: Kit = Path()) -> None:
    """Look at installation, machine, kit, policy, cohort and the way to the server; exit status 1 where one fails."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from deployment.checks import Outcome

    table = Table("check", "", "found", "what to do")
    outcomes = []
    for check in _checks(kit.resolve()):
        mark = Text(check.outcome, style=_MARKS[check.outcome])
        table.add_row(check.name, mark, Text(check.found), Text(check.advice))
        outcomes.append(check.outcome)
    Console().print(table)
    if Outcome.FAIL in outcomes:
        raise typer.Exit(1)


def _checks(folder: Path) -> "Iterator[Check]":
    from deployment.checks import (
        check_approvals,
        check_audit,
        check_installation,
        check_kit,
        check_machine,
        check_ports,
        check_secure,
        check_server,
        failed,
    )
    from deployment.site_kit import load_site_kit

    yield from check_installation()
    yield from check_kit(folder)
    try:
        kit = load_site_kit(folder)
    except ValueError:
        kit = None  # said above
    yield from check_machine("auto" if kit is None else kit.settings.device, folder if kit is None else kit.state)
    policy, checks = _policy(folder)
    yield from checks
    yield from check_secure(folder)
    if policy is not None:
        yield from _sums(policy)
    if kit is not None:
        yield from check_ports(kit)
        if policy is not None:
            yield from _cohort(kit, policy)
            yield from _ledger(kit, policy)
        yield from check_audit(kit.state)
    yield from check_approvals(folder)
    try:
        yield from check_server(folder)
    except (OSError, ValueError) as error:
        yield failed("server", error, "mend the kit first")


def _policy(folder: Path) -> "tuple[SitePolicy | None, list[Check]]":
    from client.policy import PolicyError, load_policy
    from deployment.checks import failed, passed
    from deployment.site_kit import POLICY

    try:
        policy = load_policy(folder / POLICY)
    except PolicyError as error:
        return None, [failed("policy", error, "mend policy.yaml; until then this site refuses everything")]
    hours = ", ".join(policy.hours) or "all day"
    return policy, [passed("policy", f"allows {', '.join(policy.tasks)}; {hours}; cells of {policy.minimum_cell}")]


def _sums(policy: "SitePolicy") -> "Iterator[Check]":
    """What the policy says of secure aggregation, where it says anything."""
    from deployment.checks import passed, warned

    if policy.summed_sites == 1:
        yield warned("sums", "summed_sites: 1, the sum of one site is its update", "name two or more, or leave it out")
    elif policy.summed_sites:
        yield passed(
            "sums", f"an update leaves in a sum of {policy.summed_sites} sites or more; other runs are refused"
        )


def _cohort(kit: "SiteKit", policy: "SitePolicy") -> "Iterator[Check]":
    from client.cohort import CohortError, open_cohort
    from deployment.checks import failed, passed

    try:
        cohort = open_cohort(kit.cohort)
    except (CohortError, OSError) as error:
        yield failed("cohort", error, "prepare it again: dipro-fed prepare")
        return
    yield passed("cohort", f"schema and checksums of {kit.cohort} are right")
    stays = cohort.stays
    count = stays.loc[stays["split"] == "train", "subject_id"].nunique()
    if count < policy.minimum_patients:
        yield failed(
            "patients",
            f"fewer for training than the {policy.minimum_patients} that policy.yaml asks for",
            "prepare more of them, or lower minimum_patients if this hospital may",
        )
    else:
        yield passed("patients", f"{policy.minimum_patients} for training or more, as policy.yaml asks")


def _ledger(kit: "SiteKit", policy: "SitePolicy") -> "Iterator[Check]":
    from client.cohort import CohortError
    from client.privacy_ledger import LedgerError, spent_epsilon
    from deployment.checks import failed, passed, warned
    from dipro_fed.privacy import ledger_of

    try:
        spent = spent_epsilon([each.answers for each in ledger_of(kit).entries()], policy.delta)
    except CohortError:
        return  # said above
    except (LedgerError, OSError) as error:
        yield failed("privacy", error, "until then this site takes part in no private run")
        return
    found = f"epsilon {spent:.2f} spent of {policy.largest_epsilon}"
    if policy.largest_epsilon == "any" or spent < _NEARLY * policy.largest_epsilon:
        yield passed("privacy", found)
    else:
        yield warned("privacy", found, "little is left: past it this site refuses to train")
