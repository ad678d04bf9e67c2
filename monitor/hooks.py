"""Where alarms go: a webhook, which is posted JSON, and a command, which reads it from its standard input."""

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

PATIENCE_SECONDS = 20.0
"""Longest wait for a webhook's answer or a command's end."""
_SECRETS = ("DIPRO_FED_WEBHOOK", "DIPRO_FED_DATABASE")
"""What a command need not know; both may hold passwords."""
_SHOWN = 200
"""Characters of what a command complained of."""


class HookError(ValueError):
    """A webhook or command that cannot be one; says what was expected."""


class SendError(Exception):
    """An alarm that did not arrive; the text says why, and nothing that is secret."""

    def __init__(self, reason: str, *, is_refusal: bool) -> None:
        """`is_refusal` is an answer that is likely to be the same the next time."""
        super().__init__(reason)
        self.is_refusal = is_refusal


class Hook(Protocol):
    """Where alarms go."""

    @property
    def kind(self) -> str:
        """webhook or command; of each kind an alarm goes to one."""
        ...

    @property
    def name(self) -> str:
        """What people may read."""
        ...

    def send(self, alarm: Mapping[str, Any]) -> None:
        """Deliver an alarm, plain values. Raises SendError."""
        ...


@dataclass(frozen=True)
class Webhook:
    """A URL that takes a POST of JSON and answers with 2xx; redirections are not followed."""

    url: httpx.URL
    kind: str = "webhook"

    @property
    def name(self) -> str:
        """Without the path, which often is the secret."""
        port = "" if self.url.port is None else f":{self.url.port}"
        return f"webhook {self.url.scheme}://{self.url.host}{port}"

    def send(self, alarm: Mapping[str, Any]) -> None:
        try:
            status = asyncio.run(self._post(json.dumps(alarm).encode()))
        except TimeoutError:
            raise SendError(f"no answer within {PATIENCE_SECONDS:g} s", is_refusal=False) from None
        except (httpx.HTTPError, OSError) as error:
            # Its text may repeat the URL.
            raise SendError(f"not reached ({type(error).__name__})", is_refusal=False) from None
        if not 200 <= status < 300:
            may_pass = status in (408, 429) or status >= 500
            raise SendError(f"answered {status}", is_refusal=not may_pass)

    async def _post(self, content: bytes) -> int:
        """The answer's status; its content, of whatever length, is left."""
        headers = {"Content-Type": "application/json", "User-Agent": "dipro-fed"}
        async with (
            asyncio.timeout(PATIENCE_SECONDS),  # httpx's own bounds each part of an answer, not all of it
            httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client,
            client.stream("POST", self.url, content=content, headers=headers) as answer,
        ):
            return answer.status_code


@dataclass(frozen=True)
class Command:
    """A program and its words, run as they are: no shell reads them, and nothing of an alarm is among them."""

    words: tuple[str, ...]
    kind: str = "command"

    @property
    def name(self) -> str:
        return f"command {self.words[0]}"

    def send(self, alarm: Mapping[str, Any]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        with tempfile.TemporaryFile() as complaints:  # a pipe would stay open as long as what the command started
            try:
                process = subprocess.Popen(
                    self.words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise SendError(f"does not start ({error.strerror})", is_refusal=True) from None
            try:
                process.communicate(json.dumps(alarm).encode() + b"\n", PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                raise SendError(f"did not end within {PATIENCE_SECONDS:g} s", is_refusal=True) from None
            finally:
                _end(process)
            if process.returncode:
                raise SendError(f"exit code {process.returncode}{_last_words(complaints)}", is_refusal=True)


def make_hooks(webhook: str | None, command: str | None) -> list[Hook]:
    """The hooks of a command line. Raises HookError for what can never take an alarm."""
    hooks: list[Hook] = []
    if webhook:
        hooks.append(Webhook(_url(webhook)))
    if command:
        hooks.append(Command(_words(command)))
    return hooks


def _url(text: str) -> httpx.URL:
    """The text itself is in no message: it may hold a token."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise HookError("--webhook: expected a URL, https://HOST/..., found a text that is none") from None
    if url.scheme not in ("https", "http") or not url.host:
        raise HookError(f"--webhook: expected https://HOST/..., found {url.scheme or 'no scheme'}")
    return url


def _words(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise HookError(f"--alarm-command: expected words, quoted where they hold spaces ({error})") from None
    if not words or shutil.which(words[0]) is None:
        named = words[0] if words else ""
        raise HookError(f"--alarm-command: expected a program that can be run, found none of the name {named!r}")
    return words


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that is still at work, and what it started in its own group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()


def _last_words(complaints: Any) -> str:
    complaints.seek(0)
    lines = complaints.read(1 << 16).decode(errors="backslashreplace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {said[:_SHOWN]}" if said else ""
