"""Which code runs: a digest that the server sends and every site compares with its own.

Flower's simulation can start clients from another folder than the server's, and a deployed site runs the bundle it
was sent; a difference between the two would change results in silence.
"""

import hashlib
from functools import cache
from pathlib import Path

PACKAGES = ("dipro_model", "federation", "client", "server")
_FOLDERS = (*PACKAGES, "federation/secure")


@cache
def code_digest() -> str:
    """SHA-256 over the names and contents of the packages' Python files, those that Flower's bundle carries."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in _FOLDERS for path in (root / folder).glob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
