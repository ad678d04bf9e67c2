"""`dipro-fed site privacy`: what this hospital's patients have spent of their privacy, run by run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipro_fed.processes import Kit

if TYPE_CHECKING:
    from client.privacy_ledger import Entry, PrivacyLedger
    from deployment.site_kit import SiteKit

_Anew = Annotated[
    bool,
    typer.Option("--begin-anew", help="Put the ledger aside: the training patients are others than those in it."),
]


def privacy(kit: Kit = Path(), begin_anew: _Anew = False) -> None:
    """Show what private runs spent of the training patients' privacy, and what the policy leaves."""
    from rich.console import Console

    from client.policy import load_policy
    from deployment.site_kit import POLICY, load_site_kit

    site = load_site_kit(kit.resolve())
    ledger = ledger_of(site)
    if begin_anew:
        aside = ledger.begin_anew()
        typer.echo("a new ledger begins" + ("" if aside is None else f"; the old one is {aside}"))
        return
    entries, policy = ledger.entries(), load_policy(site.folder / POLICY)
    if not entries:
        typer.echo("no private run has trained here")
        return
    Console().print(_table(entries, policy.delta))
    typer.echo(f"largest epsilon of all runs together, by this site's policy: {policy.largest_epsilon}")


def ledger_of(site: "SiteKit") -> "PrivacyLedger":
    """The ledger of a site's training patients. Raises CohortError where there is no cohort."""
    from client.privacy_ledger import PrivacyLedger, patients_digest
    from client.records import SiteRecords, SiteSpec

    records = SiteRecords(SiteSpec(name=site.facts.site, cohort=site.cohort))
    patients = {stay.subject_id for stay in records.stays.values() if stay.split == "train"}
    return PrivacyLedger(folder=site.state, patients=patients_digest(patients))


def _table(entries: "list[Entry]", delta: float):
    from rich.table import Table

    from client.privacy_ledger import STEPS, spent_epsilon

    table = Table("run", "rounds", "steps", "noise", "sampling rate", f"epsilon at delta {delta:g}")
    for run in dict.fromkeys(each.run for each in entries):
        own = [each for each in entries if each.run == run]
        steps = [each for each in own if each.what == STEPS]
        table.add_row(
            run,
            str(len({each.server_round for each in steps})),
            str(sum(each.answers.count for each in steps)),
            ", ".join(f"{value:.3g}" for value in sorted({each.answers.noise_multiplier for each in own})),
            ", ".join(f"{value:g}" for value in sorted({each.answers.sampling_rate for each in steps})),
            f"{spent_epsilon([each.answers for each in own], delta):.3f}",
        )
    table.add_section()
    table.add_row("all together", "", "", "", "", f"{spent_epsilon([each.answers for each in entries], delta):.3f}")
    return table
