"""Taking the parts of Flower's messages as soon as they are there.

A message is offered before its parts have come, and whoever asks for one too early waits a second in Flower, then two,
four and up to ten. The parts of a small message come within milliseconds, so that the first second was most of its way.
"""

from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects

_FIRST_WAIT = 0.05
"""Seconds. Flower's doubling, its longest wait and its patience stay as they are."""


def pull_promptly() -> None:
    """Shorten the first wait of this process. Raises TypeError where Flower's functions have no such setting."""
    for function in (pull_objects, pull_and_inflate_object_from_tree):
        defaults = function.__kwdefaults__ or {}
        if "initial_backoff" not in defaults:
            raise TypeError(f"{function.__qualname__}: expected the setting initial_backoff, found {sorted(defaults)}")
        defaults["initial_backoff"] = _FIRST_WAIT
