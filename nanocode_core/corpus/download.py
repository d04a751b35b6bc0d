"""Downloads that end with the right bytes: resumed, retried with growing pauses, verified.

A file grows as `<name>.part` and gets its name when size and checksum are right. A kill, a reset
or a truncated body costs what was not received; wrong bytes cost the file. Errors are told apart:
what another try may cure (5xx, 429, transport) and what it will not (any other 4xx).
"""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from nanocode_core.corpus import tables

R = TypeVar("R")
_CHUNK = 1 << 20


class RefusedError(Exception):
    """The server's answer is final; `status` is its HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class UnreachableError(Exception):
    """Every try failed for want of a network, a server or a whole body; the message is the last reason."""


class _AgainError(Exception):
    """This try failed, the next may not. `pause`: seconds the server asks for; `progress`: bytes came."""

    def __init__(self, reason: str, pause: float = 0.0, progress: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.progress = pause, progress


@dataclass(frozen=True)
class Retry:
    """How often to try without progress, and how long to pause: `seconds`, doubled up to `longest`."""

    tries: int = 6
    seconds: float = 1.0
    longest: float = 30.0

    def run(self, once: Callable[[], R]) -> R:
        """The result of `once`.

        Raises:
            UnreachableError: no try succeeded.
            RefusedError: the server said no.
        """
        failed = 0
        while True:
            try:
                return once()
            except (_AgainError, httpx.TransportError) as error:
                asked = error.pause if isinstance(error, _AgainError) else 0.0
                failed += not (isinstance(error, _AgainError) and error.progress)
                if failed >= self.tries:
                    raise UnreachableError(_reason(error)) from error
                time.sleep(min(self.longest, max(asked, self.seconds * 2 ** max(0, failed - 1))))


@dataclass(frozen=True)
class Checksum:
    """What a file must be: its size, and its sha256 or (where git holds it itself) its git blob id."""

    size: int
    sha256: str | None
    blob: str | None = None

    def matches(self, path: Path) -> bool:
        """Whether the file is there and has this size and checksum."""
        if not path.exists() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            if self.sha256:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            if self.blob:
                value = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
                while chunk := file.read(_CHUNK):
                    value.update(chunk)
                return value.hexdigest() == self.blob
        return True


def get_json(client: httpx.Client, url: str, headers: Mapping[str, str], retry: Retry) -> tuple[object, httpx.Response]:
    """A JSON answer and the response it came with. Raises RefusedError or UnreachableError."""

    def once() -> tuple[object, httpx.Response]:
        response = client.get(url, headers=dict(headers))
        _check(response)
        try:
            return response.json(), response
        except ValueError:
            raise _AgainError("the answer is not JSON") from None

    return retry.run(once)


def download(
    client: httpx.Client, url: str, headers: Mapping[str, str], target: Path, checksum: Checksum, retry: Retry
) -> bool:
    """Have the file as `target`; returns whether anything had to be fetched.

    A `target` that is there already is verified, and fetched again where it is damaged. Two
    processes that want the same file take turns.

    Raises:
        RefusedError, UnreachableError: it can't be had.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if checksum.matches(target):
            return False
        target.unlink(missing_ok=True)
        part = target.with_name(target.name + ".part")
        retry.run(lambda: _once(client, url, headers, part, checksum))
        tables.put(part, target)
        return True


def _once(client: httpx.Client, url: str, headers: Mapping[str, str], part: Path, checksum: Checksum) -> None:
    """One request for what `part` lacks; returns when it is whole and right."""
    have = part.stat().st_size if part.exists() else 0
    if have < checksum.size:
        wanted = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with client.stream("GET", url, headers=wanted) as response:
            if response.status_code == 416:  # the part does not belong to this file
                part.unlink()
                raise _AgainError("the server has no such range")
            _check(response)
            resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status_code == 206 and not resumed:
                raise _AgainError("the server sent another range than asked")
            start = have if response.status_code == 206 else 0
            try:
                with part.open("ab" if start else "wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            except httpx.TransportError as error:
                raise _AgainError(_reason(error), progress=part.stat().st_size > have) from error
        if have < part.stat().st_size < checksum.size:
            raise _AgainError("the body ended early", progress=True)
        if part.stat().st_size <= have:
            raise _AgainError("the body is empty")
    if not checksum.matches(part):
        part.unlink()
        raise _AgainError("size or checksum of what came is wrong")


def _check(response: httpx.Response) -> None:
    """Raise for any status but success."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _AgainError(f"HTTP {status}", pause=float(after) if after.isdigit() else 0.0)
    if not response.is_success:
        raise RefusedError(status)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the file's lock; the kernel drops it however the process ends."""
    with target.with_name(target.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    """One line; messages of httpx hold no headers, so no token."""
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def client() -> httpx.Client:
    """An HTTP client for many threads; proxies and certificates come from the environment."""
    return httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30, connect=15))
