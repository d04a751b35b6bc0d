"""An HTTP proxy that does to the requests of storage clients what networks and servers do to them now and then.

It stands in front of the storage server of the tests, and every client goes through it: addresses of
the server in answers (resumable uploads, links to downloads) become its own. Which requests are
disturbed follows from a seed and from their order. Bodies are held in memory.
"""

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import httpx

PRINCIPAL = "trainer@my-project.iam.gserviceaccount.com"
DOWNLOADS = re.compile(r"^/download/|[?&]alt=media|^/(?!storage/|upload/)[^/]+/[^?]+$")
HOP_BY_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"upgrade", b"host", b"expect")


@dataclass
class Faults:
    """Shares of the requests that meet a fault, and limits.

    Attributes:
        unavailable: answered with 503, not forwarded.
        reset: the connection is reset before the request reaches the server.
        lost: the server has done what was asked; the connection is reset instead of an answer.
        cut: a body that is read ends early, against its Content-Length.
        short: a download ends early, and its Content-Length says so too.
        stall: the answer comes `stall_seconds` late, at most `stalls` times in all.
        in_a_row: so many faults one and the same request meets at most, one after the other.
    """

    unavailable: float = 0.0
    reset: float = 0.0
    lost: float = 0.0
    cut: float = 0.0
    short: float = 0.0
    stall: float = 0.0
    stall_seconds: float = 10.0
    stalls: int = 3
    in_a_row: int = 3


@dataclass(frozen=True)
class Rule:
    """Requests that are always answered with one status: those whose "METHOD bucket/object" fits the pattern.

    After requests that bring bytes of an upload begun earlier stands " part".
    """

    pattern: str
    status: int
    message: str


@dataclass
class FaultProxy:
    """The proxy at `address`; its attributes may be changed at any time.

    Attributes:
        upstream: address of the server.
        short_once: pattern of "GET bucket/object"; the first download of each part of what fits comes short.
        met: how many requests there were ("requests"), and how many met each fault.
    """

    upstream: str
    address: str = ""
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    rules: list[Rule] = field(default_factory=list)
    short_once: str | None = None
    met: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._row: Counter[str] = Counter()
        self._shortened: set[str] = set()

    def refuse(self, pattern: str, status: int = 403, message: str | None = None) -> None:
        """Answer requests for "METHOD bucket/object" that fit the pattern with a status, as Google words it."""
        if message is None:
            message = f"{PRINCIPAL} does not have storage.objects access to the Google Cloud Storage object."
        self.rules.append(Rule(pattern, status, message))

    def calm(self) -> None:
        """Let all requests pass from now on."""
        self.faults, self.rules, self.short_once = Faults(), [], None

    async def serve(
        self, client: httpx.AsyncClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection of a client; `client` is that to the server."""
        connection = h11.Connection(h11.SERVER)
        try:
            while (asked := await _receive(connection, reader, writer)) is not None:
                if (answer := await self._answer(*asked, client)) is None:
                    writer.transport.abort()
                    return
                await _send(connection, writer, answer)
                if connection.our_state is not h11.DONE:
                    return
                connection.start_next_cycle()
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _answer(self, request: h11.Request, body: bytes, client: httpx.AsyncClient) -> "Answer | None":
        """The answer to a request; None: the connection is to be reset."""
        method, path = request.method.decode(), request.target.decode()
        name = f"{method} {target_of(path, body)}" + (" part" if "upload_id=" in path else "")
        self.met["requests"] += 1
        for rule in self.rules:
            if re.search(rule.pattern, name):
                self.met[str(rule.status)] += 1
                return _refusal(rule, path)
        fault = self._choose(f"{name} {path}", method, path)
        part = f"{name} {dict(request.headers).get(b'range')!r}"
        if self.short_once and re.search(self.short_once, name) and DOWNLOADS.search(path):
            fault = fault if part in self._shortened else "short"
            self._shortened.add(part)
        if fault:
            self.met[fault] += 1
        if fault == "unavailable":
            return _refusal(Rule("", 503, "Backend error."), path)
        if fault == "reset":
            return None
        headers = [(key, value) for key, value in request.headers if key not in HOP_BY_HOP]
        sent = client.build_request(method, f"{self.upstream}{path}", headers=headers, content=body)
        response = await client.send(sent, stream=True)
        data = b"".join([chunk async for chunk in response.aiter_raw()])
        await response.aclose()
        if fault == "lost":
            return None
        if fault == "stall":
            await asyncio.sleep(self.faults.stall_seconds)
        old, new = self.upstream.encode(), self.address.encode()
        if "json" in response.headers.get("Content-Type", ""):
            data = data.replace(old, new)
        back = [(k, v.replace(old, new)) for k, v in response.headers.raw if k.lower() not in HOP_BY_HOP]
        length = len(data)
        if method == "HEAD":
            return Answer(response.status_code, back, b"", int(response.headers.get("Content-Length", 0)), whole=True)
        if fault in ("cut", "short") and data and response.is_success:
            data = data[: self._random.randrange(length)]
            length = len(data) if fault == "short" else length
        return Answer(response.status_code, back, data, length, whole=len(data) == length)

    def _choose(self, key: str, method: str, path: str) -> str | None:
        """The fault that this request meets."""
        faults, number = self.faults, self._random.random()
        possible = {
            "unavailable": faults.unavailable,
            "reset": faults.reset,
            "lost": faults.lost,
            "cut": faults.cut if method == "GET" else 0.0,
            "short": faults.short if method == "GET" and DOWNLOADS.search(path) else 0.0,
            "stall": faults.stall if self.met["stall"] < faults.stalls else 0.0,
        }
        if self._row[key] < faults.in_a_row:
            for name, share in possible.items():
                number -= share
                if number < 0:
                    self._row[key] += 1
                    return name
        del self._row[key]
        return None


@contextmanager
def fault_proxy(upstream: str, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy before the server at `upstream`, in a thread of this process; without faults until it is told some."""
    proxy = FaultProxy(upstream, seed=seed)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
            server = await asyncio.start_server(partial(proxy.serve, client), "127.0.0.1", 0, limit=2**22)
            proxy.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await end.wait()
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="fault-proxy")
    thread.start()
    try:
        assert ready.wait(30)
        yield proxy
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


def target_of(path: str, body: bytes) -> str:
    """ "bucket/object" of a request of the storage protocol; for a listing the prefix takes the object's place."""
    url = urlsplit(path)
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    api = re.search(r"/b/([^/]+)(?:/o(?:/(.*))?)?$", url.path)
    if api is None:
        return unquote(url.path).strip("/")
    found = unquote(api[2] or "") or query.get("name") or query.get("prefix")
    if not found and (named := re.search(rb'"name":\s*"((?:[^"\\]|\\.)*)"', body[:4096])):
        found = json.loads(b'"' + named[1] + b'"')
    return f"{unquote(api[1])}/{found or ''}"


@dataclass(frozen=True)
class Answer:
    """An answer that says it has `length` bytes; where it is not `whole` the connection is closed after `data`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    data: bytes
    length: int
    whole: bool


def _refusal(rule: Rule, path: str) -> Answer:
    """An answer of Google's: JSON, but plain text to a download."""
    body, kind = rule.message.encode(), b"text/html; charset=UTF-8"
    if not DOWNLOADS.search(path):
        reason = {"message": rule.message, "domain": "global", "reason": "forbidden"}
        body = json.dumps({"error": {"code": rule.status, "message": rule.message, "errors": [reason]}}).encode()
        kind = b"application/json; charset=UTF-8"
    return Answer(rule.status, [(b"Content-Type", kind)], body, len(body), whole=True)


async def _receive(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[h11.Request, bytes] | None:
    """The next request and its body; None: the client has closed the connection."""
    request, body = None, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            connection.receive_data(await reader.read(2**20))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            return request, bytes(body)
        else:
            return None


async def _send(connection: h11.Connection, writer: asyncio.StreamWriter, answer: Answer) -> None:
    headers = [*answer.headers, (b"Content-Length", str(answer.length).encode())]
    events = [h11.Response(status_code=answer.status, headers=headers), h11.Data(data=answer.data)]
    for event in (*events, h11.EndOfMessage()) if answer.whole else events:
        writer.write(connection.send(event) or b"")
    await writer.drain()
