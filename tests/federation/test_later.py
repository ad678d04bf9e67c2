"""Work that is done later is done in order, and nothing after a failure."""

import threading

import pytest

from federation.later import Later


def test_pieces_are_done_in_order_while_their_giver_goes_on() -> None:
    later, may, done = Later(), threading.Event(), []
    later.do(lambda: (may.wait(10), done.append(1))[-1])
    later.do(lambda: done.append(2))
    assert not done
    may.set()
    later.settle()
    assert done == [1, 2]
    later.settle()
    later.close()


def test_after_a_failure_nothing_more_is_done() -> None:
    """A checkpoint that could not be written must not be followed by what counts on it."""
    later, done = Later(), []

    def fail() -> None:
        raise OSError("the disk is full")

    later.do(fail)
    later.do(lambda: done.append(1))
    with pytest.raises(OSError, match="full"):
        later.settle()
    later.do(lambda: done.append(2))
    later.settle()
    later.close()
    assert not done
