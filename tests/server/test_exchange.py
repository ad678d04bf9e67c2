"""Replies as they come: matched with their question, in the order of the names, until the time is over."""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from federation.freight import FreightError
from federation.messages import EvaluateReply
from server.exchange import Exchange, Refusals, ask, in_order
from server.freight import Hold, hold
from simulation.in_process import InProcessGrid

NODES = {1000: "west", 1001: "north", 1002: "south"}


def _grid(**options) -> InProcessGrid:
    def echo(message: Message, context: Context) -> Message:
        return Message(RecordDict({"config": ConfigRecord({"node": context.node_id})}), reply_to=message)

    return InProcessGrid(echo, {}, [{}] * len(NODES), **options)


def _ask(grid: InProcessGrid, seconds: float = 60.0) -> Iterator[tuple[str, Message]]:
    return ask(grid, lambda site: RecordDict(), "train", NODES, seconds)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_replies_arrive_one_by_one_and_are_put_in_the_order_of_the_names(order: list[int]) -> None:
    arrived = [site for site, _ in _ask(_grid(answer_order=order))]
    assert arrived == [list(NODES.values())[number] for number in order]
    sorted_replies = list(in_order(_ask(_grid(answer_order=order)), sorted(NODES.values())))
    assert [site for site, _ in sorted_replies] == ["north", "south", "west"]
    for site, reply in sorted_replies:
        assert NODES[int(str(reply.content.config_records["config"]["node"]))] == site


def test_a_site_is_read_before_the_next_one_works() -> None:
    answered: list[str] = []
    grid = _grid(tamper=lambda reply: answered.append("one") or reply)
    for number, _ in enumerate(_ask(grid), start=1):
        assert len(answered) == number


def test_a_silent_site_ends_with_the_time_and_holds_back_nobody() -> None:
    grid = _grid(tamper=lambda reply: None if reply.metadata.src_node_id == 1001 else reply)
    start = time.monotonic()
    assert [site for site, _ in in_order(_ask(grid, 0.5), sorted(NODES.values()))] == ["south", "west"]
    assert 0.4 < time.monotonic() - start < 30


def test_a_reply_that_answers_nothing_asked_is_passed_over() -> None:
    grid, pull = _grid(), InProcessGrid.pull_messages
    earlier = [reply for _, reply in _ask(grid)]

    class Stale(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = pull(self, message_ids)
            return [*earlier, *replies, *replies]

    grid.__class__ = Stale
    assert [site for site, _ in _ask(grid)] == list(NODES.values())


def test_an_error_counts_for_the_site_that_was_asked() -> None:
    def lost(reply: Message) -> Message:
        question = Message(RecordDict(), dst_node_id=1, message_type="train")
        question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        return Message(Error(code=3, reason="gone"), reply_to=question)

    replies = dict(_ask(_grid(tamper=lost)))
    assert set(replies) == set(NODES.values())
    assert all(reply.has_error() and reply.metadata.src_node_id == 1 for reply in replies.values())


class Unreliable(InProcessGrid):
    """Loses what node 1001 sends as often as it is told, and may not have that node online."""

    losses, is_online = 0, True

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node != 1001 or self.is_online]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for place, reply in enumerate(replies):
            if reply.metadata.src_node_id == 1001 and self.losses:
                self.losses -= 1
                replies[place] = _lost(reply, code=8)
        return replies


def _lost(reply: Message, *, code: int) -> Message:
    """What Flower writes in the place of a site that was lost."""
    question = Message(RecordDict(), dst_node_id=1, message_type="train")
    question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return Message(Error(code=code, reason="lost"), reply_to=question)


def _unreliable(losses: int) -> Unreliable:
    grid = _grid()
    grid.__class__ = Unreliable
    assert isinstance(grid, Unreliable)
    grid.losses = losses
    return grid


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.exchange._BACK_OFF", 0.05)
    monkeypatch.setattr("server.exchange._POLL_SECONDS", 0.01)


@pytest.mark.usefixtures("in_haste")
@pytest.mark.parametrize(("losses", "answers"), [(1, True), (2, True), (3, False)])
def test_a_site_that_was_lost_is_asked_again(losses: int, answers: bool) -> None:
    sent: list[str] = []
    replies = dict(
        ask(_unreliable(losses), lambda site: sent.append(site) or RecordDict(), "train", NODES, 60.0, attempts=3)
    )
    assert sent.count("north") == min(losses + 1, 3)
    assert sent.count("west") == sent.count("south") == 1
    assert replies["north"].has_error() is not answers


@pytest.mark.usefixtures("in_haste")
def test_a_site_is_asked_again_once_it_is_online() -> None:
    grid = _unreliable(1)
    grid.is_online = False
    start = time.monotonic()
    for site, reply in ask(grid, lambda site: RecordDict(), "train", NODES, 60.0, attempts=2):
        if site == "south":  # the others have answered
            threading.Timer(0.3, lambda: setattr(grid, "is_online", True)).start()
        assert not reply.has_error()
    assert time.monotonic() - start > 0.3


@pytest.mark.usefixtures("in_haste")
def test_nobody_waits_for_a_lost_site_where_enough_have_answered() -> None:
    grid = _unreliable(1)
    grid.is_online = False
    asked = ask(grid, lambda site: RecordDict(), "train", NODES, 60.0, attempts=2, enough=2)
    answered = [(site, reply.has_error()) for site, reply in asked]
    assert answered == [("west", False), ("south", False), ("north", True)], "it is told why the third is missing"


@pytest.mark.usefixtures("in_haste")
def test_what_a_site_says_itself_is_final() -> None:
    sent: list[str] = []
    grid = _grid(tamper=lambda reply: _lost(reply, code=2))
    replies = dict(ask(grid, lambda site: sent.append(site) or RecordDict(), "train", NODES, 60.0, attempts=3))
    assert sorted(sent) == sorted(NODES.values())
    assert all(reply.has_error() for reply in replies.values())


def test_a_site_whose_arrays_are_not_what_it_says_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(held: Hold, content: RecordDict, site: str) -> RecordDict:
        raise FreightError(f"{site} sent nothing")

    monkeypatch.setattr(Hold, "receive", missing)
    exchange, refusals, ready = Exchange(_grid(), 60.0), Refusals(what="round 1, train"), []
    exchange.before_asking = lambda: ready.append(len(list(tmp_path.glob("*/docks/*/*"))))
    with hold(tmp_path) as exchange.freight:
        found = exchange.replies(lambda site: RecordDict(), "train", NODES, EvaluateReply, refusals)
        assert not list(found)
        assert not list(tmp_path.glob("*/docks/*"))
    assert refusals.reasons == {site: f" failed: {site} sent nothing" for site in NODES.values()}
    assert ready == [1, 2, 3]
