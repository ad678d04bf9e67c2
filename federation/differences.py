"""What differs between two trees of plain values, in words: settings, configurations, records of runs."""

from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = "nothing"


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that is not the same in both, "section.key: expected A, found B", in order of the names."""
    left, right = dict(_leaves(expected)), dict(_leaves(found))
    return [
        f"{key}: expected {left.get(key, _ABSENT)}, found {right.get(key, _ABSENT)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
