"""Who may see the page: on loopback whoever asks from this machine, beyond it whoever knows the password."""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

_LEAST_LENGTH = 12
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    # The page needs its own scripts and styles and nothing else; Plotly writes styles of its own into it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class AccessError(ValueError):
    """A page that would be open to people who should not see it; says what to do."""


Next = Callable[[Request], Awaitable[Response]]


def read_password(path: Path) -> str:
    """The first line of a file that only its owner may read. Raises AccessError for any other."""
    if not path.is_file():
        raise AccessError(f"{path}: expected a file with the password, found none")
    if path.stat().st_mode & 0o077:
        raise AccessError(f"{path}: others may read this password; chmod 600 it")
    password = (path.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    if len(password) < _LEAST_LENGTH:
        raise AccessError(f"{path}: expected a password of {_LEAST_LENGTH} characters or more, found {len(password)}")
    return password


def require_login(host: str, password: str | None) -> None:
    """Raises AccessError for an address that others reach without a password."""
    if password is None and not _is_loopback(host):
        raise AccessError(
            f"--host {host}: others can reach this address, so the page needs a login: name a file that has a password "
            "with --password-file, or leave --host out"
        )


def guard(password: str | None) -> Callable[[Request, Next], Awaitable[Response]]:
    """What every request passes: the password where there is one, else a name of this very machine."""

    async def checked(request: Request, go_on: Next) -> Response:
        if password is not None and not _knows(request, password):
            challenge = {"WWW-Authenticate": 'Basic realm="dipro-fed monitor", charset="UTF-8"'}
            return PlainTextResponse("The password is asked for; any user name will do.\n", 401, challenge)
        if password is None and not _is_own(request):
            # Another site's name that leads to loopback would let its scripts read the page.
            return PlainTextResponse("Expected localhost or 127.0.0.1 as the page's address.\n", 400)
        response = await go_on(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return checked


def _knows(request: Request, password: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        said = base64.b64decode(given, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return False
    return hmac.compare_digest(said.encode(), password.encode())


def _is_own(request: Request) -> bool:
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name in _OWN_NAMES


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
