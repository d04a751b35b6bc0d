"""Prefect around the cluster: a server of this machine, the worker's Deployment of k8s/base, and the runs of flows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from api import Object
from cluster import Cluster, free_ports, wait_for
from installation import NAMESPACE
from programs import TETHER

from flows import server
from nanocode_core.config import PROJECT

START_SECONDS = 240
"""How long the server, or the worker, may take to come up on a busy machine."""


class Conductor:
    """A client of a Prefect server, as its UI is one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        # Of a database that is busy the server says so, and clients come again.
        answer = wait_for(
            lambda: (found := self.client.request(method, path, json=body)).status_code != 503 and found, path, 60
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment of the flow `nanocode`; its id."""
        found = self.ask("GET", f"/deployments/name/nanocode/{deployment}")
        given = {"parameters": found["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        return str(self.ask("POST", f"/deployments/{found['id']}/create_flow_run", given)["id"])

    def run(self, run: str) -> Object:
        return dict(self.ask("GET", f"/flow_runs/{run}"))

    def state(self, run: str) -> str:
        return str(self.run(run)["state"]["name"])

    def states(self, run: str) -> list[str]:
        """The names of all states so far, oldest first."""
        found = self.ask("GET", f"/flow_run_states/?flow_run_id={run}")
        return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]

    def log(self, run: str) -> list[str]:
        """What was logged so far, oldest first."""
        lines: list[str] = []
        while True:
            asked = {
                "logs": {"flow_run_id": {"any_": [run]}},
                "sort": "TIMESTAMP_ASC",
                "offset": len(lines),
                "limit": 200,
            }
            found = self.ask("POST", "/logs/filter", asked)
            lines += [line["message"] for line in found]
            if len(found) < 200:
                return lines

    def hears(self, run: str, text: str, times: int = 1, seconds: float = 30) -> None:
        """Wait until a text was logged so often; lines come some seconds late."""
        try:
            wait_for(lambda: sum(text in line for line in self.log(run)) >= times, f"{text!r} in a log", seconds)
        except TimeoutError as error:
            raise TimeoutError("\n".join([f"{error}: {self.states(run)}", *self.log(run)])) from None

    def cancel(self, run: str) -> None:
        self.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def ends(self, run: str, *states: str, seconds: float = 300) -> str:
        """The name of the state in which a run ends, waited for; other ends than `states` are a failure."""
        wait_for(lambda: self.run(run)["state"]["type"] in ENDS, f"the end of {run}", seconds)
        found = self.state(run)
        assert found in states, "\n".join([f"{run} is {found}: {self.states(run)}", *self.log(run)])
        return found


ENDS = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@contextmanager
def prefect_server(home: Path) -> Iterator[Conductor]:
    """A server with its database in `home`, and its client."""
    (port,) = free_ports(1)
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": server.api_url(port),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT__SERVER_FINAL": "1",
        "DO_NOT_TRACK": "1",
        "PATH": "/usr/bin:/bin",
    }
    with (home / "server.log").open("wb") as log:
        command = [*TETHER, sys.executable, "-m", *server.command(port)]
        process = subprocess.Popen(command, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: server.healthy(server.api_url(port)) or process.poll() is not None, "Prefect", START_SECONDS)
        assert process.poll() is None, (home / "server.log").read_text()
        yield Conductor(server.api_url(port))
    finally:
        process.kill()
        process.wait()


def start_worker(cluster: Cluster, conductor: Conductor, settings: dict[str, str]) -> None:
    """Apply the worker's Deployment as it is, but for the address of the server, and wait until it takes runs."""
    (port,) = free_ports(1)
    deployment = yaml.safe_load((PROJECT / "k8s" / "base" / "prefect-worker.yaml").read_text())
    deployment["metadata"]["namespace"] = NAMESPACE
    pod = deployment["spec"]["template"]["spec"]
    own = {"PREFECT_API_URL": conductor.url, "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    for container in [*pod["initContainers"], *pod["containers"]]:
        others = [variable for variable in container["env"] if variable["name"] not in own]
        container["env"] = [*others, *({"name": name, "value": value} for name, value in own.items())]
        container["image"] = "worker:test"
    metadata = {"name": "settings", "namespace": NAMESPACE}
    cluster.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": settings}, deployment])

    def online() -> bool:
        if conductor.client.get("/work_pools/gke").status_code == 404:
            return False
        workers = conductor.ask("POST", "/work_pools/gke/workers/filter", {})
        return any(worker["status"] == "ONLINE" for worker in workers)

    try:
        wait_for(online, "the worker", START_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"{error}:\n{worker_log(cluster)}") from None


def pods(cluster: Cluster, selector: str) -> list[Object]:
    """The pods of the namespace with these labels, oldest first."""
    found = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=selector)["items"]
    return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])


def worker_log(cluster: Cluster) -> str:
    """What the worker's pods have printed."""
    from kubernetes import client

    core, lines = client.CoreV1Api(cluster.client), []
    for pod in pods(cluster, "app.kubernetes.io/component=prefect-worker"):
        for container in ("deployments", "worker", "sweep"):
            try:
                said = core.read_namespaced_pod_log(pod["metadata"]["name"], NAMESPACE, container=container)
            except client.ApiException as error:
                said = str(error.reason)
            lines.append(f"== {pod['metadata']['name']} {container}\n{said}")
    return "\n".join(lines)
