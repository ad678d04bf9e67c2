"""Long-term keys of simulated sites, so that a simulation goes through the same checks as a federation over a network.

They protect nothing: all of them, and the authority's own key, lie in the run's folder.
"""

from collections.abc import Mapping
from pathlib import Path

from deployment.authority import KEY, Authority, pem
from deployment.keys import make_key, write_key
from federation.files import write_whole
from federation.secure import identity

_DAYS = 3650
_PROJECT = "simulation"


def make_identities(authority: Path, sites: Mapping[str, Path]) -> None:
    """Give each site, by name, a signing key and a certificate in the folder named, unless it has them.

    The authority that vouches for them is made in its own folder where there is none.
    """
    own = Authority(authority) if (authority / KEY).exists() else Authority.create(authority, _PROJECT)
    for name, folder in sites.items():
        if (folder / identity.CERTIFICATE).exists():
            continue
        key = make_key()
        write_key(folder / identity.KEY, key)
        write_whole(folder / identity.AUTHORITY, pem(own.certificate))
        write_whole(folder / identity.CERTIFICATE, pem(own.issue("site", name, key.public_key(), days=_DAYS)))
