"""Waits that take no time."""

import time

import pytest


class Clock:
    """The time of a module that sleeps: what it sleeps has passed at once."""

    def __init__(self) -> None:
        self._slept = 0.0

    def sleep(self, seconds: float) -> None:
        self._slept += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._slept

    def time(self) -> float:
        return time.time() + self._slept


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's time for replies passes at once; sites in the same process have answered by then, or never will."""
    monkeypatch.setattr("server.exchange.time", Clock())
