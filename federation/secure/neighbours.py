"""Which sites of a round share masks: all with all, or each with some, on a ring that nobody can choose.

Bell et al. 2020, section 3.2: a Harary graph over sites in random order. Every site is joined to the same number of
nearest ones on the ring, so that fewer losses than this number never cut the sites into two.
"""

import hashlib
from collections.abc import Collection
from typing import Literal


def neighbours_of(sites: Collection[str], number: Literal["all"] | int, digest: bytes) -> dict[str, tuple[str, ...]]:
    """Each site's neighbours in the order of the names, the same at all who know these sites and the round's digest.

    The digest is of every site's fresh keys, so that the order is random to whoever does not choose all of them.
    """
    if number == "all" or number >= len(sites) - 1:
        return {site: tuple(sorted(other for other in sites if other != site)) for site in sites}
    ring = sorted(sites, key=lambda site: hashlib.sha256(digest + site.encode()).digest())
    steps = [step for step in range(-(number // 2), number // 2 + 1) if step]
    return {site: tuple(sorted(ring[(place + step) % len(ring)] for step in steps)) for place, site in enumerate(ring)}


def holders_of(site: str, neighbours: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Who holds a share of a site's secrets, the site itself too, each with the number of its share."""
    return {holder: place for place, holder in enumerate(sorted((site, *neighbours[site])), start=1)}
