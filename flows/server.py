"""The Prefect server of this machine: find one that is up, or start one for a single run.

A server started here lives in PREFECT_HOME (else `.prefect/` in the project) with its SQLite
database, and is tethered: it ends with the process that started it, even on kill -9. `nanocode up`
starts a lasting one in the same place and writes its address into the state file there.
"""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanocode_core.config import PROJECT
from nanocode_core.jobs import tether

STARTUP_SECONDS = 90.0
"""A new database on a busy two-core machine needs the better part of half a minute."""

_RESTARTS = 3

_NOT_FOR_ONE_RUN = (
    "CANCELLATION_CLEANUP",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "SCHEDULER",
    "TRIGGERS",
)


def home() -> Path:
    """PREFECT_HOME, else `.prefect/` in the project."""
    return Path(os.environ.get("PREFECT_HOME") or PROJECT / ".prefect").absolute()


def state_file() -> Path:
    """Where `nanocode up` keeps what it started."""
    return home() / "services.json"


def environment() -> dict[str, str]:
    """The Prefect settings of this project, for the server and for its clients."""
    return {
        "PREFECT_HOME": str(home()),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Never start a server silently: the one that Prefect would start loses records at exit.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }


def api_url(port: int) -> str:
    """The address of the API of a server on this machine."""
    return f"http://127.0.0.1:{port}/api"


def free_port(preferred: int = 0) -> int:
    """`preferred` or the next port that nobody listens on; 0: any."""
    for port in range(preferred, preferred + 50) if preferred else [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port from {preferred} to {preferred + 49}")


def healthy(url: str, seconds: float = 2.0) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def running() -> str | None:
    """The API address of a server that is up: PREFECT_API_URL, or that of `nanocode up`."""
    for url in (os.environ.get("PREFECT_API_URL"), read_state().get("url")):
        if url and healthy(url):
            return str(url)
    return None


def read_state() -> dict[str, Any]:
    """What `nanocode up` wrote, empty if nothing."""
    try:
        value = json.loads(state_file().read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def command(port: int) -> list[str]:
    """Arguments of `python` that serve Prefect's API on `port` in one process."""
    app = "prefect.server.api.server:create_app"
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return ["uvicorn", "--factory", app, *where, "--log-level", "error", "--lifespan", "on"]


class RunServer:
    """A server for one run: one that was up before, or our own, which is restarted if it dies and ended by `stop`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        found = running()
        self.own = found is None
        self._port = free_port() if self.own else 0
        self.url = found or api_url(self._port)
        if self.own:
            home().mkdir(parents=True, exist_ok=True)
            self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        settings = {
            "PREFECT_SERVER_UI_ENABLED": "false",
            # This one is final: lets the server leave out what only a second app in the process needs.
            "PREFECT__SERVER_FINAL": "1",
            **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _NOT_FOR_ONE_RUN},
        }
        with open(home() / "run-server.log", "w") as log:
            return tether.popen(
                ["-m", "nanocode_core.jobs.tether", *command(self._port)],
                env={**os.environ, **environment(), **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float = STARTUP_SECONDS) -> str | None:
        """Wait until the server answers; None, or one line that says why there is none."""
        end = time.monotonic() + seconds
        while not healthy(self.url):
            if self._process is None:
                return f"the server at {self.url} went away"
            if self._process.poll() is not None:
                return (
                    f"the Prefect server did not start (see {home() / 'run-server.log'}; "
                    f"if its database is broken, delete {home() / 'prefect.db'}: that loses history only)"
                )
            if time.monotonic() > end:
                return f"the Prefect server was not up after {seconds:.0f} s (see {home() / 'run-server.log'})"
            time.sleep(0.1)
        if self.own:
            threading.Thread(target=self._watch, name="server-watch", daemon=True).start()
        return None

    def _watch(self) -> None:
        """Restart our server where it died under the run; clients find it again at the same port."""
        for _ in range(_RESTARTS):
            while self._process is not None and self._process.poll() is None:
                if self._stopping.wait(0.5):
                    return
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = self._start()

    @property
    def alive(self) -> bool:
        """Whether the server answers."""
        return healthy(self.url, seconds=10.0)

    def stop(self) -> None:
        """End our own server; leave one alone that was up before."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                end_group(self._process.pid, self._process)


def end_group(group: int, process: "subprocess.Popen[str] | None" = None, seconds: float = 10.0) -> None:
    """SIGTERM to a process group, SIGKILL to what is left of it after `seconds`."""
    for sign, limit in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + limit
        try:
            os.killpg(group, sign)
            while time.monotonic() < end:
                if process is not None:
                    process.poll()
                os.killpg(group, 0)
                time.sleep(0.05)
        except (ProcessLookupError, PermissionError):
            return


def apply(settings: Mapping[str, str]) -> None:
    """Put settings into this process's environment; call before Prefect is imported."""
    os.environ.update(settings)
