"""Rounds whose updates are masked, end to end: the plain run's model, and a server that receives noise."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from scipy import stats

from client.masked_update import MaskedUpdate
from federation.audit import AUDIT, verify
from federation.checkpoint import load_checkpoint
from federation.initial import initial_model
from federation.masked_log import MaskedRound, masked_rounds
from federation.messages import ARRAYS, CONFIG, EVALUATE, TRAIN, Instruction, MessageError
from federation.run_folder import read_history, read_run
from federation.secure.messages import MASKS, with_masks
from federation.secure.steps import MaskStep
from federation.secure.update_form import UpdateForm
from federation.selection import model_entries
from federation.weights import flatten_weights
from tests.make_cohort import write_cohort
from tests.masked_run import masked_federate, masked_settings
from tests.small_run import federate, small_settings

pytestmark = pytest.mark.usefixtures("nobody_waits")

NAMES = ("east", "north", "south", "west")
ONE = ("federation.rounds=1", "federation.num_sites=4")
QUORUM = ("federation.quorum=3", "federation.round_seconds=60")
STEPS = ("keys", "shares", "train", "confirm", "unmask")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        write_cohort(folder / name, num_patients=12 + 4 * seed, seed=seed, first_subject=100 * seed)
        for seed, name in enumerate(NAMES)
    ]


def _excess(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], share: float = 0.5) -> float:
    """How far entries are beyond the bound, above zero where they are: half a step of 2^-28 for each of four sites over
    their share of all samples, and two roundings of float32."""
    assert ours.keys() == theirs.keys()
    bound = len(NAMES) * 2.0**-28 / (2 * share)
    excess = []
    for name in ours:
        one, other = ours[name].double(), theirs[name].double()
        rounding = 2 * torch.from_numpy(np.spacing(theirs[name].abs().numpy())).double()
        excess.append(float(((one - other).abs() - bound - rounding).max()))
    return max(excess)


def _difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(
    "more",
    [
        ("communication.codec=trained", "model.freeze_backbone=true"),
        ("strategy.name=fedavgm", "federation.visits=one"),
        ("strategy.name=fedadam", "strategy.recalibrate=true"),
        ("strategy.name=scaffold", "training.optimizer=sgd"),
        ("training.batch_norm=received", "strategy.recalibrate=true", "training.optimizer=sgd"),
        ("secure_aggregation.neighbours=4",),
    ],
    ids=lambda more: " ".join(more),
)
def test_a_round_is_the_plain_one_to_the_fixed_point_bound(
    tmp_path: Path, cohorts: list[Path], more: tuple[str, ...]
) -> None:
    ours = masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE, *more))
    plain = tuple(each for each in more if not each.startswith("secure_aggregation"))
    theirs = federate(tmp_path / "plain", cohorts, small_settings(*ONE, "strategy.norm_factor=0", *plain))
    # FedAdam divides by the root of what is near zero: what differs in the last bit differs by more.
    if "strategy.name=fedadam" in more:
        assert _difference(ours, theirs) < 1e-4
    else:
        assert _excess(ours, theirs) <= 0
    start = dict(initial_model(masked_settings(*ONE, *more)).state_dict())
    assert _difference(ours, {name: start[name] for name in ours}) > 1e-4


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, tuple[np.ndarray, int]]]:
    """By round and site, the weights that a site wrote before it masked them, and its number of samples."""
    found: dict[int, dict[str, tuple[np.ndarray, int]]] = {}
    write = MaskedUpdate.write

    def noting(
        self: MaskedUpdate, form: UpdateForm, weights: np.ndarray, *rest, num_samples: int, **more
    ) -> np.ndarray:
        found.setdefault(self.step.round, {})[self.masking.site] = weights.copy(), num_samples
        return write(self, form, weights, *rest, num_samples=num_samples, **more)

    monkeypatch.setattr(MaskedUpdate, "write", noting)
    return found


def _is_mean(folder: Path, server_round: int, written: dict[str, tuple[np.ndarray, int]]) -> bool:
    """Whether a round's model is the mean of what its sites wrote, in double precision, to the bound.

    Of the rounds after the first this is all that can be asked: the plain run's grow apart from the last bit on.
    """
    found = flatten_weights(load_checkpoint(folder / "checkpoints" / f"round_{server_round:05d}.pt")[0])
    weights, counts = zip(*written.values(), strict=True)
    mean = np.average(np.stack(weights).astype(np.float64), axis=0, weights=counts)
    bound = len(NAMES) * 2.0**-28 + 2 * np.spacing(np.abs(mean).astype(np.float32))
    return bool((np.abs(found - mean) <= bound).all())


def test_every_round_is_the_mean_of_what_its_sites_wrote(tmp_path: Path, cohorts: list[Path], written) -> None:
    """Keys are made along the way, and both ends write down what happened."""
    asked: list[str] = []

    def note(reply: Message) -> Message:
        asked.append(reply.metadata.message_type)
        return reply

    settings = masked_settings(
        "federation.rounds=3", "federation.num_sites=4", "federation.kept_rounds=3", "federation.visits=one"
    )
    masked_federate(tmp_path / "masked", cohorts, settings, tamper=note)
    for number in (1, 2, 3):
        assert set(written[number]) == set(NAMES)
        assert _is_mean(tmp_path / "masked", number, written[number])
    assert not _is_mean(tmp_path / "masked", 3, written[2]), "the bound would let anything through"
    assert asked.count(MASKS) == 4 * (2 + 3 * 2), "keys and shares of the first round, then two light visits a round"
    for log in (tmp_path / "masked" / AUDIT, tmp_path / "masked" / "north" / AUDIT):
        verify(log)
    said = [json.loads(line) for line in (tmp_path / "masked" / AUDIT).read_text().splitlines()]
    unmasked = [each for each in said if each["event"] == "unmasked"]
    assert [(each["round"], each["survivors"]) for each in unmasked] == [(number, list(NAMES)) for number in (1, 2, 3)]
    told = _told(tmp_path / "masked")
    assert [(each.masked, each.opened, each.attempts) for each in told] == [(NAMES, (), 1)] * 3
    assert not [each for each in said if each["event"] == "compared"]
    left = [json.loads(line) for line in (tmp_path / "masked" / "north" / AUDIT).read_text().splitlines()]
    assert [each["masked"] for each in left if each.get("asked") == TRAIN] == [True] * 3
    assert [each["self_masks"] for each in left if "self_masks" in each] == [list(NAMES)] * 3
    assert read_run(tmp_path / "masked").more["secure_aggregation"]["least_sites"] == 3


def _lose(site: str, step: str) -> dict:
    """A site that does not answer a step, nor any later one."""
    gone = False

    def tamper(reply: Message) -> Message | None:
        nonlocal gone
        who = reply.content.config_records[CONFIG]["site"] if reply.has_content() else ""
        gone = gone or (who == site and step in _steps_of(reply))
        return None if gone and who == site and _steps_of(reply) else reply

    return {"tamper": tamper}


def _steps_of(reply: Message) -> list[str]:
    """What a reply answers, by what it says: the answers themselves do not name their step."""
    if reply.metadata.message_type == TRAIN:
        return ["train"]
    if reply.metadata.message_type != MASKS:
        return []
    (first, *_) = [json.loads(each) for each in reply.content.config_records[CONFIG]["answers"]]
    names = {"mask_key": "keys", "parcels": "shares", "self_masks": "unmask"}
    return [next((step for key, step in names.items() if key in first), "confirm")]


@pytest.mark.parametrize("step", STEPS)
def test_a_site_that_is_lost_between_steps_leaves_the_others_sum(
    tmp_path: Path, cohorts: list[Path], step: str
) -> None:
    """Lost before its update came, its masks go; lost after, its update is in the sum."""
    ours = masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE, *QUORUM), **_lose("north", step))
    assert [each.opened for each in _told(tmp_path / "masked")] == [("north",) if step == "train" else ()]
    is_in = step in ("confirm", "unmask")
    others = [cohort for cohort in cohorts if is_in or cohort.name != "north"]
    alone = small_settings("federation.rounds=1", f"federation.num_sites={len(others)}", "strategy.norm_factor=0")
    if is_in:
        assert _excess(ours, federate(tmp_path / "plain", others, alone)) <= 0
        return
    # The other sites' agreement would be another one: so the plain run loses the site too.
    theirs = federate(
        tmp_path / "plain",
        cohorts,
        small_settings(*ONE, *QUORUM, "strategy.norm_factor=0"),
        **_lose("north", "train"),
    )
    assert _excess(ours, theirs) <= 0
    (refused,) = read_run(tmp_path / "masked").more["refused"]
    assert (refused["site"], refused["round"]) == ("north", 1)


def test_below_the_threshold_the_round_fails_and_nobody_has_revealed_anything(
    tmp_path: Path, cohorts: list[Path]
) -> None:
    settings = masked_settings(*ONE, *QUORUM)
    both = (_lose("north", "train")["tamper"], _lose("south", "train")["tamper"])

    def tamper(reply: Message) -> Message | None:
        left = both[0](reply)
        return None if left is None else both[1](left)

    with pytest.raises(MessageError, match=r"round 1, train: expected replies of 3 sites or more, 2 came"):
        masked_federate(tmp_path / "masked", cohorts, settings, tamper=tamper)
    for name in NAMES:
        (kept,) = (tmp_path / "masked" / name).rglob("1-*.json")
        assert json.loads(kept.read_text())["revealed"] is None
    # The run goes on with new keys once the sites are back, as if nothing had been.
    ours = masked_federate(tmp_path / "masked", cohorts, settings)
    theirs = federate(tmp_path / "plain", cohorts, small_settings(*ONE, "strategy.norm_factor=0"))
    assert _excess(ours, theirs) <= 0


def test_too_few_shares_end_the_round(tmp_path: Path, cohorts: list[Path]) -> None:
    both = (_lose("north", "unmask")["tamper"], _lose("south", "unmask")["tamper"])

    def tamper(reply: Message) -> Message | None:
        left = both[0](reply)
        return None if left is None else both[1](left)

    words = r"round 1, unmasking: round 1: expected shares of 3 sites or more, 2 came; north did not answer in time"
    with pytest.raises(MessageError, match=words):
        masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE, *QUORUM), tamper=tamper)


def _ended_after_unmasking(folder: Path, cohorts: list[Path], settings) -> None:
    """A run whose server ends in round 2 when its sum is known, and before its model is kept."""
    scored = 0

    def tamper(reply: Message) -> Message:
        nonlocal scored
        scored += reply.metadata.message_type == EVALUATE
        if scored > len(NAMES):
            raise ConnectionError("the link is down")
        return reply

    with pytest.raises(MessageError, match=r"round 2, evaluate: expected replies of 3 sites or more"):
        masked_federate(folder, cohorts, settings, tamper=tamper)


def test_a_server_that_comes_back_gets_the_same_sum_under_new_masks(
    tmp_path: Path, cohorts: list[Path], written
) -> None:
    settings = masked_settings("federation.rounds=2", "federation.num_sites=4", "federation.kept_rounds=2", *QUORUM)
    _ended_after_unmasking(tmp_path / "masked", cohorts, settings)
    before, first = _attempts(tmp_path / "masked", 2), written.pop(2)
    masked_federate(tmp_path / "masked", cohorts, settings)
    assert _is_mean(tmp_path / "masked", 2, written[2])
    assert all((first[site][0] == written[2][site][0]).all() for site in NAMES), "the work is the same"
    after = _attempts(tmp_path / "masked", 2)
    assert len(before) == len(after) == 1
    assert before != after
    assert _told(tmp_path / "masked")[1].attempts == 2


def _told(folder: Path) -> list[MaskedRound]:
    """What the server's log says of its masked rounds."""
    said = [json.loads(line) for line in (folder / AUDIT).read_text().splitlines()]
    return masked_rounds((each["event"], each) for each in said)


def _attempts(folder: Path, server_round: int) -> set[str]:
    return {path.stem for name in NAMES for path in (folder / name).rglob(f"{server_round}-*.json")}


def test_a_server_that_comes_back_is_not_told_another_sum_of_the_round(tmp_path: Path, cohorts: list[Path]) -> None:
    """Without one of its sites the second sum would differ from the first by that site's update."""
    settings = masked_settings("federation.rounds=2", "federation.num_sites=4", *QUORUM)
    _ended_after_unmasking(tmp_path / "masked", cohorts, settings)
    words = r"expected signatures of 3 sites or more, 0 came; east failed: SecureError: east: expected the sites that "
    with pytest.raises(MessageError, match=f"{words}round 2 was unmasked of before, found others"):
        masked_federate(tmp_path / "masked", cohorts, settings, **_lose("north", "train"))


def test_nothing_that_the_server_receives_looks_like_an_update(tmp_path: Path, cohorts: list[Path]) -> None:
    """The same sites without masks give their updates; what came in their place is like random bytes."""
    masked, plain = _received(tmp_path / "masked", cohorts, True), _received(tmp_path / "plain", cohorts, False)
    model = initial_model(masked_settings(*ONE))
    entries, reference = model_entries(model), flatten_weights(model)
    parameters = entries.trained.without(entries.statistics)
    assert set(masked) == set(plain) == set(NAMES)
    for site, arrays in masked.items():
        assert set(arrays) == {"weights"}
        content = arrays["weights"]
        assert content.dtype == np.uint8
        assert stats.chisquare(np.bincount(content, minlength=256)).pvalue > 1e-6
        words = content[-4 * parameters.size :].view(np.int32).astype(np.float64)
        bound = stats.norm.isf(1e-6) / np.sqrt(len(words))
        for other in NAMES:
            update = parameters.take(plain[other]["weights"]) - parameters.take(reference)
            assert abs(np.corrcoef(words, update)[0, 1]) < bound, (site, other)
        # Nor do two of them say anything together: a pair's masks cancel only in the sum of all.
        for other in set(NAMES) - {site}:
            together = (
                words.astype(np.int64) + masked[other]["weights"][-4 * parameters.size :].view(np.int32)
            ) % 2**32
            assert stats.kstest(together[:20000] / 2**32, "uniform").pvalue > 1e-6


def _received(folder: Path, cohorts: list[Path], is_masked: bool) -> dict[str, dict[str, np.ndarray]]:
    """By site, the arrays of its reply to train."""
    came: dict[str, dict[str, np.ndarray]] = {}

    def note(reply: Message) -> Message:
        for site, arrays in _arrays(reply):
            came[site] = arrays
        return reply

    if is_masked:
        masked_federate(folder, cohorts, masked_settings(*ONE), tamper=note)
    else:
        federate(folder, cohorts, small_settings(*ONE, "strategy.norm_factor=0"), tamper=note)
    return came


def _arrays(reply: Message) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    if reply.metadata.message_type == TRAIN:
        site = str(reply.content.config_records[CONFIG]["site"])
        yield site, {name: array.numpy() for name, array in reply.content.array_records[ARRAYS].items()}


def test_a_site_never_sends_its_update_in_the_clear(tmp_path: Path, cohorts: list[Path], monkeypatch) -> None:
    """A server that leaves the masks out of its instruction gets nothing."""
    monkeypatch.setattr("server.rounds.with_masks", lambda record, step: record)
    words = "north failed: SecureError: north: expected what its update is masked with, found an instruction without"
    with pytest.raises(MessageError, match=words):
        masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE))


@pytest.mark.parametrize("lie", ["model", "total_samples"])
def test_a_server_that_tells_one_site_something_else_learns_nothing(
    tmp_path: Path, cohorts: list[Path], monkeypatch, lie: str
) -> None:
    """Three sites with a model that learns nothing, or with a share of nothing, would leave the fourth's update."""

    def lying(record: RecordDict, step: MaskStep) -> RecordDict:
        instruction = Instruction.parse(_Question(record))
        is_honest = len(step.parcels) and "north" not in step.parcels  # the list of others' shares names its reader not
        other = {"model": {"weights": instruction.weights * 0}, "total_samples": {"total_samples": 10**12}}[lie]
        return with_masks(record if is_honest else replace(instruction, **other).record(), step)

    monkeypatch.setattr("server.rounds.with_masks", lying)
    with pytest.raises(MessageError, match=r"expected signatures of 3 sites or more, 1 came"):
        masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE))


def test_masks_go_over_private_updates(tmp_path: Path, cohorts: list[Path], written) -> None:
    """A private round tells no losses; its noised updates are summed as any others."""
    private = (
        *("patient_privacy.enabled=true", "patient_privacy.sampling_rate=0.5", "patient_privacy.noise_multiplier=2.0"),
        *("training.batch_norm=frozen", "training.accumulated_batches=1", "federation.minimum_cell=10"),
        *("federation.local_work=steps", "federation.local_steps=2", "federation.kept_rounds=1"),
    )
    masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE, *private))
    assert _is_mean(tmp_path / "masked", 1, written[1])


@dataclass
class _Question:
    """A message, as far as it is parsed."""

    content: RecordDict


def test_a_site_whose_training_diverged_sends_nothing(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = masked_settings(*ONE, "secure_aggregation.largest_change=1e-6")
    with pytest.raises(MessageError, match="expected changes of parameters within ±1e-06, found larger ones"):
        masked_federate(tmp_path / "masked", cohorts, settings)


def test_answers_that_are_malformed_or_of_another_round_lose_their_site(tmp_path: Path, cohorts: list[Path]) -> None:
    kept: dict[str, str] = {}
    changes = {
        "north": ("keys", lambda answer: "{"),
        "south": ("confirm", lambda answer: json.dumps({"signature": "00"})),
    }

    def tamper(reply: Message) -> Message:
        if reply.metadata.message_type == MASKS:
            site = str(reply.content.config_records[CONFIG]["site"])
            step, change = changes.get(site, ("", str))
            if step in _steps_of(reply):
                first, *others = reply.content.config_records[CONFIG]["answers"]
                kept[site] = first
                reply.content.config_records[CONFIG]["answers"] = [change(first), *others]
        return reply

    settings = masked_settings(*ONE, *QUORUM)
    with pytest.raises(
        MessageError, match=r"expected signatures of 3 sites or more, 2 came.*south: expected a statement"
    ):
        masked_federate(tmp_path / "masked", cohorts, settings, tamper=tamper)
    assert set(kept) == {"north", "south"}


def test_the_history_is_that_of_any_run(tmp_path: Path, cohorts: list[Path]) -> None:
    masked_federate(tmp_path / "masked", cohorts, masked_settings(*ONE))
    lines = read_history(tmp_path / "masked")
    assert {(line.site, line.split) for line in lines} >= {
        (name, split) for name in NAMES for split in ("train", "val")
    }
