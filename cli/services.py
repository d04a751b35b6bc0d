"""`nanocode up` and `nanocode down`: Prefect as lasting services of this machine.

`up` starts a server with the UI and a process worker, each detached, deploys what prefect.yaml
lists, and writes the server's address into prefect.toml, so that a plain `prefect` command in the
project finds it. `down` ends them with everything they started. Both may be called at any time:
what is there is left, what is missing is made.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from cli.deploy import HEARTBEAT_SECONDS, deploy_flows, prepare
from flows import server
from nanocode_core.config import PROJECT
from nanocode_core.errors import UserError

POOL = "local"
PORT = 4200
_MARK = "# Written by `nanocode up` and removed by `nanocode down`: where this project's Prefect server is.\n"


def up() -> None:
    """Start the server and the worker if they are not there, deploy, print the UI's address.

    Raises:
        UserError: the server or the worker did not start, or a deployment was refused.
    """
    server.home().mkdir(parents=True, exist_ok=True)
    given = os.environ.get("PREFECT_API_URL")
    state = server.read_state()
    url = _server(state)
    server.apply({**server.environment(), "PREFECT_API_URL": url})
    prepare(POOL)
    _worker(state)
    print("deploying prefect.yaml", flush=True)
    deploy_flows(POOL)
    found = _write_toml(url) and given in (None, url)
    print(f"\nPrefect UI: {url.removesuffix('/api')}\nlogs:       {server.home()}\n")
    print(f"in {PROJECT}:" if found else f"in your shell, after `export PREFECT_API_URL={url}`:")
    print("  prefect deployment run nanocode/full-speedrun --param preset=demo --watch")
    print("  prefect deployment run nanocode/synthetic-data")
    print("nanocode down stops it all")


def down() -> None:
    """Stop the worker, the runs it has started, and the server."""
    state = server.read_state()
    if _process(state.get("server")) is not None:
        _close_pool(str(state.get("url")))
    stopped = [name for name in ("worker", "server") if _stop(state.get(name))]
    server.state_file().unlink(missing_ok=True)
    toml = PROJECT / "prefect.toml"
    if toml.is_file() and toml.read_text().startswith(_MARK):
        toml.unlink()
    print(f"stopped the {' and the '.join(stopped)}" if stopped else "nothing is running")


def _server(state: dict[str, Any]) -> str:
    """The API address of the lasting server, started if need be."""
    url = state.get("url")
    if _process(state.get("server")) is not None and url and server.healthy(url, seconds=10.0):
        print(f"the Prefect server is up at {url.removesuffix('/api')}")
        return str(url)
    _stop(state.get("server"))
    preferred = int(os.environ.get("PREFECT_SERVER_API_PORT") or PORT)
    port = server.free_port(preferred)
    if port != preferred:
        print(f"port {preferred} is taken, using {port}")
    url = server.api_url(port)
    print("starting the Prefect server", flush=True)
    # The port in the environment is what the UI is told to talk to.
    settings = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_API_URL": url, "PREFECT__SERVER_FINAL": "1"}
    process = _detach("server", server.command(port), settings)
    end = time.monotonic() + server.STARTUP_SECONDS
    while not server.healthy(url):
        if process.poll() is not None or time.monotonic() > end:
            _stop(_mark(process.pid))
            raise UserError(
                f"the Prefect server did not start; see {server.home() / 'server.log'} "
                f"(if its database is broken, delete {server.home() / 'prefect.db'}: that loses history only)"
            )
        time.sleep(0.2)
    _remember(state, url=url, server=_mark(process.pid))
    return url


def _worker(state: dict[str, Any]) -> None:
    """The worker of the pool, started if need be."""
    if _process(state.get("worker")) is not None:
        print("the worker is up")
        return
    print("starting the worker", flush=True)
    settings = {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }
    process = _detach("worker", ["prefect", "worker", "start", "--pool", POOL, "--type", "process"], settings)
    _remember(state, worker=_mark(process.pid))


def _close_pool(url: str) -> None:
    """Let the worker take no more runs: those that end now would be started once more. `up` opens the pool again."""
    change = urllib.request.Request(
        f"{url}/work_pools/{POOL}", b'{"is_paused": true}', {"Content-Type": "application/json"}, method="PATCH"
    )
    with contextlib.suppress(OSError):  # a server that does not answer gives no runs either
        urllib.request.urlopen(change, timeout=10).close()


def _detach(name: str, module: list[str], settings: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start `python -m module...` as a service: its own session, its own log file."""
    with open(server.home() / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=PROJECT,
            env={**os.environ, **server.environment(), **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _write_toml(url: str) -> bool:
    """Point plain `prefect` commands in the project to the server; False where a file of the user is in the way."""
    path = PROJECT / "prefect.toml"
    if path.is_file() and not path.read_text().startswith(_MARK):
        return False
    text = f"{_MARK}home = {json.dumps(str(server.home()))}\n\n[api]\nurl = {json.dumps(url)}\n"
    partial = Path(f"{path}.tmp")
    partial.write_text(text)
    partial.replace(path)
    return True


def _mark(pid: int) -> dict[str, Any]:
    """A process by its id and its birth, so that a later process with the same id is not taken for it."""
    try:
        return {"pid": pid, "born": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "born": 0.0}


def _process(mark: Any) -> psutil.Process | None:
    """The process that `_mark` described, if it still lives."""
    if not isinstance(mark, dict):
        return None
    try:
        process = psutil.Process(int(mark["pid"]))
        alive = process.create_time() == mark["born"] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return None
    return process if alive else None


def _remember(state: dict[str, Any], **values: Any) -> None:
    state.update(values)
    partial = server.state_file().with_suffix(".tmp")
    partial.write_text(json.dumps(state))
    partial.replace(server.state_file())


def _stop(mark: Any) -> bool:
    """End a service: first the runs that it has started, which end their jobs, then itself."""
    process = _process(mark)
    if process is None:
        return False
    runs, everything = process.children(), process.children(recursive=True)
    for processes in (runs, [process], everything):
        _end(processes)
    return True


def _end(processes: list[psutil.Process], seconds: float = 25.0) -> None:
    """SIGTERM, and SIGKILL to what is still there after `seconds`."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5.0)
