"""A site's side of what travels beside messages: fetched from the server and left there, through the site's sidecar.

A link that breaks is tried again for as long as Flower's own node would: what has come is not asked for again, nor is a
part that was taken sent again. The server ends it by closing the hold or the dock.
"""

import http.client
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict

from federation.freight import Dock, FreightError, Item, digest_of, loaded, packed, parts, places, unloaded, unpacked
from federation.settings import SettingsError

logger = logging.getLogger(__name__)

_READ_BYTES = 2**20
_SECONDS = 150.0
"""Without a byte. The sidecar answers after two minutes where the server does not."""
_LONGEST_WAIT = 15.0
_UNREACHABLE = (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE, http.client.GATEWAY_TIMEOUT)
_TAKEN = (http.client.CREATED, http.client.NO_CONTENT)


class _BrokenError(Exception):
    """The link broke off; to be tried again."""


@dataclass(kw_only=True)
class Carrier:
    """The way to one dock of the server."""

    address: str
    """HOST:PORT of the site's sidecar."""
    certificate: Path
    """What the sidecar shows on this machine's loopback."""
    dock: Dock
    _connection: http.client.HTTPSConnection | None = None
    _places: Iterator[str] = field(default_factory=places)

    def load(self, content: RecordDict) -> RecordDict:
        """What the server meant by a message. Raises FreightError where it is gone or other than its digest."""
        return loaded(unpacked(content), self._fetch)

    def unload(self, content: RecordDict) -> RecordDict:
        """What the reply is in place of this, once its arrays are at the server. Raises FreightError."""
        return packed(unloaded(content, self._leave))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _fetch(self, item: Item) -> np.ndarray:
        content = np.empty(item.num_bytes, np.uint8)
        come = 0

        def go_on() -> bool:
            nonlocal come
            with self._answer("GET", f"{self.dock.hold}/sent/{item.digest}", start=come) as answer:
                if answer.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
                    raise _refused(answer, f"{item.num_bytes:,} bytes of the model")
                come = 0 if answer.status == http.client.OK else come
                while got := answer.readinto(content.data[come : come + _READ_BYTES]):
                    come += got
            return come == item.num_bytes

        _until(go_on)
        item.check(content)
        return content

    def _leave(self, content: np.ndarray) -> str:
        for part in parts(content):
            place = next(self._places, None)
            if place is None:
                raise FreightError("expected arrays that fit the server's dock, found more; use a smaller model")
            _until(lambda part=part, place=place: self._put(part, place))
        return digest_of(content)

    def _put(self, part: np.ndarray, place: str) -> bool:
        with self._answer("PUT", f"{self.dock.hold}/dock/{self.dock.name}/{place}", body=part) as answer:
            answer.read()
            if answer.status not in _TAKEN:
                raise _refused(answer, f"a place for {part.nbytes:,} bytes of the reply")
        return True

    @contextmanager
    def _answer(
        self, method: str, path: str, *, start: int = 0, body: np.ndarray | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The server's answer; a link that breaks meanwhile is _BrokenError."""
        connection = self._connection = self._connection or self._connect()
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            connection.request(method, f"/v1/freight/{path}", body=None if body is None else body.data, headers=headers)
            answer = connection.getresponse()
            if answer.status in _UNREACHABLE:
                raise _BrokenError(f"{answer.status} {answer.reason}")
            yield answer
        except (OSError, http.client.HTTPException, _BrokenError) as error:
            self.close()
            raise _BrokenError(str(error)) from None

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection(self.address, context=context, timeout=_SECONDS)


def carrier(context: Context, content: RecordDict) -> Carrier | None:
    """The way to the dock that a message names, as the site's node is told it; None where all is in the message.

    Raises SettingsError where the node was told none.
    """
    dock = Dock.of(content)
    if dock is None:
        return None
    address, certificate = (str(context.node_config.get(key, "")) for key in ("freight", "freight_certificate"))
    if not address or not certificate:
        raise SettingsError(
            "this node's configuration lacks freight and freight_certificate, by which it fetches models: start the "
            "site with the `dipro-fed site start` of this version"
        )
    return Carrier(address=address, certificate=Path(certificate), dock=dock)


def _until(done: Callable[[], bool]) -> None:
    """Try until it is done, ever more slowly while the link is broken."""
    wait = 0.5
    while True:
        try:
            if done():
                return
            reason = "it ended early"
        except _BrokenError as error:
            reason = str(error)
        logger.warning("a transfer broke off (%s): going on in %g s", reason, wait)
        time.sleep(wait)
        wait = min(_LONGEST_WAIT, 2 * wait)


def _refused(answer: http.client.HTTPResponse, what: str) -> FreightError:
    return FreightError(
        f"expected {what} of the server, found {answer.status} {answer.reason}: it has gone on without this site, or "
        "its disk is full"
    )
