"""The part of a kubelet's API that the API server asks for the logs of containers."""

import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from containers import Container

Find = Callable[[str, str, str], Container | None]
"""The container of a namespace, pod and name."""


class LogServer(ThreadingHTTPServer):
    """Serves `/containerLogs/{namespace}/{pod}/{container}` to holders of the authority's certificates."""

    daemon_threads = True

    def __init__(self, find: Find, certificate: Path, key: Path, authority: Path) -> None:
        self.find = find
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        self.context.load_cert_chain(certificate, key)
        self.context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(("127.0.0.1", 0), Handler)
        # The handshake is left to the thread of the connection: a slow client must not hold up the others.
        self.socket = self.context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)


class Handler(BaseHTTPRequestHandler):
    server: LogServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        container = self.server.find(*parts[1:]) if parts[0] == "containerLogs" and len(parts) == 4 else None
        if container is None or not self._log_of(container, query).exists():
            self.send_error(404, f"no log of {url.path}")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for text in self._texts(container, query):
                self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # the reader has gone

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""

    @staticmethod
    def _log_of(container: Container, query: dict[str, str]) -> Path:
        if query.get("previous") == "true":
            return container.log.with_name(f"{container.restarts - 1}.log")
        return container.log

    def _texts(self, container: Container, query: dict[str, str]) -> Iterator[bytes]:
        """The wanted lines as they are sent."""
        since = query.get("sinceTime", "")
        if "sinceSeconds" in query:
            since = (datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))).isoformat()
        left = int(query.get("limitBytes", 1 << 62))
        follow = query.get("follow") == "true" and query.get("previous") != "true"
        for line in lines(container, self._log_of(container, query), follow, int(query.get("tailLines", -1))):
            stamp, _, _, text = line.split(b" ", 3)
            if since and datetime.fromisoformat(stamp.decode()) < datetime.fromisoformat(since):
                continue
            sent = (line.replace(b" stdout F ", b" ", 1) if query.get("timestamps") == "true" else text)[:left]
            if sent:
                yield sent
            left -= len(sent)


def lines(container: Container, path: Path, follow: bool, tail: int = -1) -> Iterator[bytes]:
    """The lines of a log, the last `tail` of those that are there; with `follow` all until the container's end."""
    with path.open("rb") as log:
        there = log.readlines()
        rest = there.pop() if there and not there[-1].endswith(b"\n") else b""
        yield from there[max(0, len(there) - tail) if tail >= 0 else 0 :]
        while follow:
            running = "running" in container.state and container.log == path
            piece = log.readline()
            rest += piece
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
            elif not piece:
                if not running:
                    return
                time.sleep(0.05)
