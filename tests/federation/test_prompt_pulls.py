"""Parts of a message that are not there yet are asked for again at once."""

import time

import pytest
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
    pull_objects,
)

from federation import prompt_pulls
from federation.prompt_pulls import pull_promptly


@pytest.fixture(autouse=True)
def _flowers_own_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (pull_objects, pull_and_inflate_object_from_tree):
        monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__ or {}))


def test_a_part_that_comes_a_moment_later_is_not_waited_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(prompt_pulls, "_FIRST_WAIT", 0.001)
    pull_promptly()

    def pull(name: str) -> bytes:
        waits.append(time.monotonic())
        if len(waits) < 4:
            raise ObjectUnavailableError(name)
        return name.encode()

    assert pull_objects(["part"], pull) == {"part": b"part"}
    assert len(waits) == 4
    assert waits[-1] - waits[0] < 1
    for function in (pull_objects, pull_and_inflate_object_from_tree):
        defaults = dict(function.__kwdefaults__ or {})
        assert defaults["initial_backoff"] == 0.001
        assert defaults["backoff_cap"] >= 10, "Flower's own"


def test_a_flower_without_the_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_objects, "__kwdefaults__", {"other": 1})
    with pytest.raises(TypeError, match="pull_objects: expected the setting initial_backoff, found"):
        pull_promptly()
