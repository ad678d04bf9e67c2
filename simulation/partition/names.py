"""Names of sites that are made of groups: names of files and records, so letters, digits and a few signs."""

import re
from collections.abc import Sequence

_MAX_LETTERS = 56
"""Leaves room for a number behind it: a site's name has 64 letters at most."""


def group_names(sites: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each site from its groups, all different: the groups' own words where these are not too long."""
    names: list[str] = []
    for groups in sites:
        words = [re.sub(r"[^A-Za-z0-9._-]+", " ", group).strip(" ._-") or "group" for group in groups]
        name = " and ".join(words)
        if len(name) > _MAX_LETTERS:
            name = words[0][:_MAX_LETTERS].strip() if len(words) == 1 else f"{len(words)} small groups"
        number = 2
        free = name
        while free in names or free == "pooled":
            free, number = f"{name} {number}", number + 1
        names.append(free)
    return names
