"""A site's process that has the large libraries in memory, and forks for every message that Flower's node gets.

Flower starts a process for every message, and importing torch and MONAI takes longer than the rest of a small round.
Nothing of this project's code is imported before the fork, but for this: what the fork runs is what the bundle holds,
behind the guard (guarded_clientapp.py).
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

from deployment.work import KIT

_LIBRARIES = (
    "torch",
    "torch._dynamo",  # which every optimizer imports when it is made
    "jaxtyping",
    "monai.networks.nets.resnet",
    "pandas",
    "pyarrow.parquet",
    "sklearn.metrics",
    "duckdb",
    "cryptography.x509",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.asymmetric.x25519",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "flwr.clientapp",
    "flwr.supernode.cli",
    "flwr.supernode.runtime.run_clientapp",
)
_SOCKET = "clientapps.sock"
_TAKEN = b"taken"
_LONGEST = 64 * 1024


def await_message(kit: Path) -> list[str]:
    """Fork for every message; returns in the fork alone, with the words that `flwr-clientapp` was called with."""
    listener = _listen(kit / "run")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that have ended leave nothing
    while True:
        caller, _ = listener.accept()
        with caller:
            caller.settimeout(1.0)
            try:
                words = json.loads(caller.recv(_LONGEST))
            except (OSError, ValueError):
                continue
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                caller.sendall(_TAKEN)
                return words


def hand_over(kit: Path, words: list[str]) -> bool:
    """Let the kit's process do what `flwr-clientapp` was called for; whether it does."""
    here = Path.cwd()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            os.chdir(kit / "run")  # the system wants a socket's path to be short
            caller.connect(_SOCKET)
            caller.sendall(json.dumps(words).encode())
            return caller.recv(len(_TAKEN)) == _TAKEN
    except OSError:
        return False
    finally:
        os.chdir(here)


def start() -> None:
    """`flwr-clientapp` at a site: by the process that waits for it, or, while there is none, in this one."""
    kit = os.environ.get(KIT, "")
    if kit and hand_over(Path(kit), sys.argv[1:]):
        return
    if kit:
        print("the site's process for messages is not there (yet): starting one for this message", file=sys.stderr)
    _run()


def main() -> None:
    """Wait for messages of the kit that the environment names."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    # What is imported stays: no fork goes through all of it again looking for garbage, which would also copy every page
    # of it, half a second in each visit.
    gc.collect()
    gc.freeze()
    sys.argv = ["flwr-clientapp", *await_message(Path(os.environ[KIT]))]
    _run()


def _listen(folder: Path) -> socket.socket:
    here = Path.cwd()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        Path(_SOCKET).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o077)
        try:
            listener.bind(_SOCKET)
        finally:
            os.umask(before)
        listener.listen()
        return listener
    finally:
        os.chdir(here)


def _run() -> None:
    from deployment import guarded_clientapp

    guarded_clientapp.main()


if __name__ == "__main__":
    main()
