"""`nanocode sweep`: ends what cancelled runs of the work pool `gke` have left in the cluster.

A flow run that lives deletes its jobs itself (flows/nanocode.py). One that is cancelled while it has no process,
between a crash or an eviction and its next start, cannot: Prefect leaves it Cancelling, or lets it end as Cancelled
without a word to the flow. The worker's pod runs this beside the worker.
"""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from nanocode_core.errors import UserError
from nanocode_core.jobs.gke.cluster import Cluster

POOL = "gke"
EVERY_SECONDS = 5.0
RECENT = timedelta(minutes=30)
"""How long ago a run may have ended to be looked at."""
FLOW_RUN = "prefect.io/flow-run-id"
"""Label of the Jobs that Prefect's worker makes."""


def sweep(namespace: str) -> None:
    """Look for cancelled runs, for ever; what fails is tried again.

    Raises:
        UserError: PREFECT_API_URL is not set, or no cluster is known.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise UserError("PREFECT_API_URL is not set (http://HOST:4200/api)")
    cluster, seen = Cluster(namespace), set[tuple[str, str]]()
    with httpx.Client(base_url=url, timeout=30) as server:
        while True:
            try:
                sweep_once(server, cluster, seen)
            except Exception as error:  # the server restarts, the cluster's API is away: this goes on
                print(f"sweep: {type(error).__name__}: {error}".splitlines()[0], flush=True)
            time.sleep(EVERY_SECONDS)


def sweep_once(server: httpx.Client, cluster: Cluster, seen: set[tuple[str, str]]) -> None:
    """Delete the jobs of the runs that were cancelled lately; end those of them that cannot do it themselves.

    Args:
        seen: runs and jobs that were told of already; it grows.
    """
    for run in _cancelled(server, datetime.now(UTC) - RECENT):
        ending = run["state"]["type"] == "CANCELLING"
        if ending and cluster.active(f"{FLOW_RUN}={run['id']}"):
            continue  # its process does it, or will find out when it starts
        for kind, name in cluster.named(run["id"]):
            cluster.delete(kind, name)
            if (run["id"], name) not in seen:
                print(f"sweep: deleted the job {name} of the cancelled run {run['name']}", flush=True)
            seen.add((run["id"], name))
        if ending:
            ended = {"type": "CANCELLED", "name": "Cancelled", "message": "Cancelled while it had no process."}
            server.post(f"/flow_runs/{run['id']}/set_state", json={"state": ended}).raise_for_status()
            print(f"sweep: ended the cancelled run {run['name']}", flush=True)


def _cancelled(server: httpx.Client, after: datetime) -> list[dict[str, Any]]:
    """The runs of the pool that are Cancelling, or were Cancelled after a time."""
    found: list[dict[str, Any]] = []
    for wanted in (
        {"state": {"type": {"any_": ["CANCELLING"]}}},
        {"state": {"type": {"any_": ["CANCELLED"]}}, "end_time": {"after_": after.isoformat()}},
    ):
        asked = {"flow_runs": wanted, "work_pools": {"name": {"any_": [POOL]}}}
        answer = server.post("/flow_runs/filter", json=asked)
        answer.raise_for_status()
        found += answer.json()
    return found
