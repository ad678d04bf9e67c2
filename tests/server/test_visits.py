"""Training and scoring in one visit to a site: the same run, with half the messages."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from federation.messages import EVALUATE, JOIN, TRAIN, MessageError
from federation.run_folder import read_history, read_run
from tests.make_cohort import write_cohort
from tests.small_run import federate, small_settings


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        write_cohort(folder / name, seed=seed, first_subject=100 * seed) for name, seed in (("north", 1), ("south", 2))
    ]


@pytest.mark.parametrize(
    "more", [(), ("communication.codec=int8", "personal.method=ditto")], ids=["plain", "codec, personal"]
)
def test_one_visit_gives_the_same_run(tmp_path: Path, cohorts: list[Path], more: tuple[str, ...]) -> None:
    came: dict[str, list[str]] = {"one": [], "two": []}
    weights = {}
    for visits, types in came.items():

        def count(reply: Message, types: list[str] = types) -> Message:
            types.append(reply.metadata.message_type)
            return reply

        settings = small_settings("federation.rounds=3", f"federation.visits={visits}", *more)
        weights[visits] = federate(tmp_path / visits, cohorts, settings, tamper=count)
    torch.testing.assert_close(weights["one"], weights["two"], rtol=0, atol=0)
    histories = [[replace(line, seconds=0.0) for line in read_history(tmp_path / name)] for name in came]
    assert histories[0] == histories[1]
    results = [read_run(tmp_path / name).more["results"] for name in came]
    assert results[0] == results[1]
    counts = {name: {kind: types.count(kind) for kind in (JOIN, TRAIN, EVALUATE)} for name, types in came.items()}
    assert counts["two"] == {JOIN: 2, TRAIN: 6, EVALUATE: 8}
    assert counts["one"] == {JOIN: 2, TRAIN: 6, EVALUATE: 4}, "the last aggregate and the chosen model are scored apart"


def test_patience_ends_a_run_of_one_visit_at_the_same_round(tmp_path: Path, cohorts: list[Path]) -> None:
    ended = []
    for visits in ("one", "two"):
        settings = small_settings(
            "federation.rounds=9", "federation.patience=1", "training.learning_rate=1e-9", f"federation.visits={visits}"
        )
        federate(tmp_path / visits, cohorts, settings)
        ended.append([line.step for line in read_history(tmp_path / visits)][-1])
    assert ended[0] == ended[1] < 9


@pytest.mark.parametrize("visits", ["one", "two"])
def test_rounds_that_are_not_scored_change_nothing_but_the_choice(
    tmp_path: Path, cohorts: list[Path], visits: str
) -> None:
    every, some = (
        small_settings("federation.rounds=5", f"federation.visits={visits}", f"federation.score_every={number}")
        for number in (1, 2)
    )
    whole = federate(tmp_path / "every", cohorts, every)
    torch.testing.assert_close(federate(tmp_path / "some", cohorts, some), whole, rtol=0, atol=0)
    lines = read_history(tmp_path / "some")
    assert {line.step for line in lines if line.split == "train"} == {1, 2, 3, 4, 5}
    assert {line.step for line in lines if line.split == "val"} == {2, 4, 5}
    scored = {2, 4, 5}
    expected = [
        replace(line, seconds=0.0)
        for line in read_history(tmp_path / "every")
        if line.split == "train" or line.step in scored
    ]
    assert [replace(line, seconds=0.0) for line in lines] == expected
    assert read_run(tmp_path / "some").best_step in scored


def test_a_run_stops_at_a_round_that_is_scored(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = small_settings(
        "federation.rounds=9", "federation.patience=1", "federation.score_every=3", "training.learning_rate=1e-9"
    )
    federate(tmp_path / "run", cohorts, settings)
    assert read_history(tmp_path / "run")[-1].step in (6, 9)
    assert read_run(tmp_path / "run").best_step in (3, 6)


def test_an_aggregate_without_scores_outlives_the_run(tmp_path: Path, cohorts: list[Path]) -> None:
    """A quorum that does not come in round 2 ends the run after round 1 was aggregated; it goes on with that."""
    settings = small_settings("federation.rounds=2", "federation.visits=one")
    whole = federate(tmp_path / "whole", cohorts, settings)
    asked: list[str] = []

    def lose_second_training(reply: Message) -> Message:
        asked.append(reply.metadata.message_type)
        if asked.count(TRAIN) > 2:
            raise ConnectionError("the link is down")
        return reply

    with pytest.raises(
        MessageError, match=r"round 2, train: expected replies of 2 sites or more, 0 came: north failed"
    ):
        federate(tmp_path / "run", cohorts, settings, tamper=lose_second_training)
    assert not (tmp_path / "run" / "history.jsonl").exists()
    trained: list[str] = []

    def count(reply: Message) -> Message:
        trained.append(reply.metadata.message_type)
        return reply

    found = federate(tmp_path / "run", cohorts, settings, tamper=count)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    assert trained.count(TRAIN) == 2, "the first round was not trained again"
    histories = [[replace(line, seconds=0.0) for line in read_history(tmp_path / name)] for name in ("whole", "run")]
    assert histories[0] == histories[1]
