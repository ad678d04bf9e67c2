"""Which strategy and codec run under which kind of privacy: the table of docs/strategies.md, cell by cell."""

import re
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from federation.codecs import Payload, codec_of
from federation.messages import TrainReply
from federation.sections import CommunicationSettings, StrategySettings
from federation.secure.update_form import UpdateForm
from federation.secure.words import Words
from federation.selection import Entries, ModelEntries
from federation.settings import RunSettings, SettingsError, load_settings
from server.aggregation import Replies
from server.guards import Guard
from server.masked_replies import MaskedReplies
from server.masked_rounds import MaskedRounds
from server.rounds import control_size, make_aggregator
from server.site_privacy import SitePrivacy, noise_of

TOTAL = 40
ENTRIES = ModelEntries(
    trained=Entries(total=TOTAL, runs=((4, TOTAL),)),
    parameters=Entries(total=TOTAL, runs=((4, TOTAL),)),
    means=Entries(total=TOTAL, runs=((0, 2),)),
    variances=Entries(total=TOTAL, runs=((2, 4),)),
    batch_norm=Entries(total=TOTAL, runs=((0, 4),)),
)
"""A model whose running statistics are frozen, as differential privacy asks for."""
COUNTS = {f"site {number}": number for number in range(3, 10)}
"""Seven sites, which bulyan needs, and their training samples."""
HIDES = {
    "patient_privacy": (
        *("patient_privacy.enabled=true", "training.batch_norm=frozen", "training.accumulated_batches=1"),
        *("federation.check_duplicates=false", "patient_privacy.statistics=public"),
    ),
    # Hardly any noise, so that the mean can be seen; the accountant has nothing to say of it before the first round.
    "site_privacy": ("site_privacy.enabled=true", "training.batch_norm=frozen", "site_privacy.clip=100.0"),
    "secure_aggregation": ("secure_aggregation.enabled=true", "strategy.norm_factor=0"),
}
NEEDED = {
    "fedprox": ("strategy.mu=0.1",),
    "qfedavg": ("strategy.client_rate=0.1",),
    "multikrum": ("strategy.num_selected=3",),
    "scaffold": ("training.optimizer=sgd",),
}
STRATEGIES = get_args(StrategySettings.model_fields["name"].annotation)
CODECS = get_args(CommunicationSettings.model_fields["codec"].annotation)
CHOICES = [*(f"strategy.name={name}" for name in STRATEGIES), *(f"communication.codec={name}" for name in CODECS)]


@pytest.fixture(autouse=True)
def _task() -> None:
    """Flower creates messages for the task that its process works on; a test's process is no task."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _table() -> dict[tuple[str, str], str]:
    """What the documentation says, by choice and what hides."""
    text = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    section = text[text.index("## With privacy, secure aggregation and codecs") :]
    rows = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*$", section, re.M)
    ]
    head, _, *body = rows[: len(CHOICES) + 2]
    return {(row[0], hides): said for row in body for hides, said in zip(head[1:], row[1:], strict=True)}


TABLE = _table()


def _load(choice: str, hides: str) -> RunSettings:
    needed = NEEDED.get(choice.removeprefix("strategy.name="), ())
    sites = f"federation.num_sites={len(COUNTS)}"
    return load_settings(overrides=[*HIDES[hides], sites, *needed, choice])


def test_the_table_names_every_strategy_and_codec() -> None:
    assert sorted(TABLE) == sorted((choice, hides) for choice in CHOICES for hides in HIDES)


@pytest.mark.parametrize(("choice", "hides"), [key for key, said in TABLE.items() if said != "yes"])
def test_what_cannot_run_is_refused_with_the_reason_of_the_table(choice: str, hides: str) -> None:
    reason = TABLE[choice, hides].removeprefix("no: ")
    with pytest.raises(SettingsError) as refused:
        _load(choice, hides)
    assert choice.partition("=")[2] in str(refused.value)
    assert f"{reason}" in str(refused.value)


@pytest.mark.parametrize(("choice", "hides"), [key for key, said in TABLE.items() if said == "yes"])
def test_what_can_run_makes_a_round(choice: str, hides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(choice, hides)
    numbers = np.random.default_rng(1)
    reference = numbers.normal(size=TOTAL).astype(np.float32)
    reference[ENTRIES.variances.mask()] = 1
    changes = {site: np.where(ENTRIES.trained.mask(), numbers.normal(0, 0.1, TOTAL), 0) for site in COUNTS}
    sent = {site: (reference + change).astype(np.float32) for site, change in changes.items()}
    found = _round(settings, reference, sent, tmp_path, monkeypatch)
    assert found.shape == reference.shape
    assert np.isfinite(found).all()
    assert (found != reference)[ENTRIES.trained.mask()].any()
    if choice in ("strategy.name=fedavg", "strategy.name=fedprox", "strategy.name=scaffold"):
        # Site-level privacy lets each site count the same.
        weights = [1] * len(COUNTS) if hides == "site_privacy" else list(COUNTS.values())
        expected = np.average(np.stack(list(sent.values())), axis=0, weights=weights)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def _round(
    settings: RunSettings, reference: np.ndarray, sent: dict[str, np.ndarray], folder: Path, monkeypatch
) -> np.ndarray:
    """The next model, as the rounds make it of what the sites send; masks alone are left out."""
    control = np.zeros(control_size(settings, ENTRIES), np.float32)
    aggregator = make_aggregator(settings, ENTRIES, Entries(total=TOTAL, runs=()))
    guard = Guard(
        server_round=1,
        code_digest="code",
        layout_digest="layout",
        agreement_digest="agreement",
        num_samples=COUNTS,
        reference=reference,
    )
    if settings.secure_aggregation.enabled:
        form = UpdateForm(entries=ENTRIES, control_size=control.size, pools_moments=False, largest_change=4.0)
        replies = MaskedReplies(
            guard, aggregator, settings.strategy, form, control, cast(MaskedRounds, Unmasked()), lambda total: "", {}
        )
        written = {
            site: form.write(
                *(weights, reference, control), num_samples=COUNTS[site], share=COUNTS[site] / sum(COUNTS.values())
            ).content
            for site, weights in sent.items()
        }
    else:
        privacy, written = None, {site: _travelled(settings, weights, reference) for site, weights in sent.items()}
        if settings.site_privacy.enabled:
            assert noise_of(settings) > 1, "the run itself would have its noise"
            monkeypatch.setattr("server.site_privacy.spent", lambda *given: 0.0)
            privacy = SitePrivacy(settings, 1e-9, COUNTS, ENTRIES.trained, folder)
        replies = Replies(guard, aggregator, settings.strategy, ENTRIES, control, folder, len(COUNTS), privacy)
    with replies:
        for site, weights in written.items():
            assert replies.add(_reply(site, weights)) is None
        assert replies.refuse_outliers() == {}
        return replies.aggregate()[0]


def _travelled(settings: RunSettings, weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    codec = codec_of(settings.communication, lambda: ENTRIES)
    if codec is None:
        return weights
    payload, _ = codec.encode(weights, reference, None)
    return codec.decode(Payload.from_array(payload.to_array()), reference)


def _reply(site: str, weights: np.ndarray) -> TrainReply:
    """Without losses, as a private site replies."""
    return TrainReply(
        site=site,
        num_samples=COUNTS[site],
        weights=weights,
        losses={},
        seconds=0.0,
        server_round=1,
        code_digest="code",
        layout_digest="layout",
        agreement_digest="agreement",
    )


class Unmasked:
    """Stands for the visits that make masks and take them away: the sum is what tests of the ceremony say it is."""

    def __init__(self) -> None:
        self.ceremony, self._total = self, cast(Words | None, None)

    def take_masked(self, site: str, words: Words) -> None:
        if self._total is None:
            self._total = words.copy()
        else:
            self._total.add(words)

    def finish(self, terms: str, following: object) -> Words | None:
        return self._total
