"""`nanocode deploy`: what a Prefect server has to know before a worker can run the flow in a work pool.

That is the pool with its base job template, the deployments of prefect.yaml, and two automations. What is there
already is brought up to date, so it may be given again at any time: by `nanocode up` on one machine, by the worker's
pod before each of its starts in a cluster.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import timedelta
from typing import Any

import httpx

from flows import server
from nanocode_core.config import PROJECT, load_config
from nanocode_core.errors import UserError

POOLS = {"local": "process", "gke": "kubernetes"}
"""The type of each work pool."""
HEARTBEAT_SECONDS = 30
"""How often a flow says that it lives; set where flows start (cli/services.py, k8s/prefect/flow-run.yaml)."""
WAIT_SECONDS = 300.0
"""How long a server may take to answer for the first time."""
ONCE_IN = timedelta(days=7)
"""A run that crashes again sooner than this after its second start stays crashed."""
FLOW_RUN = PROJECT / "k8s" / "prefect" / "flow-run.yaml"
"""The Job of a flow run in the pool `gke`."""
PASSED_ON = (
    "NANOCODE_STORE",
    "NANOCODE_WORK",
    "NANOCODE_IMAGES",
    "NANOCODE_TAG",
    "NANOCODE_ACCELERATOR",
    "NANOCODE_SPOT",
)
"""Settings of this environment that flow runs in the pool `gke` have too."""


def deploy(pool: str, wait: float = WAIT_SECONDS) -> None:
    """Make sure of everything on the server at PREFECT_API_URL, else (pool `local`) that of `nanocode up`.

    Args:
        wait: seconds to wait for the server.

    Raises:
        UserError: an unknown pool, no server, one that does not answer, settings that are missing, or a refusal.
    """
    if pool not in POOLS:
        raise UserError(f"unknown work pool {pool!r}; choose from {', '.join(POOLS)}")
    url = os.environ.get("PREFECT_API_URL") or (server.read_state().get("url") if pool == "local" else None)
    if not url:
        remedy = "start one with `nanocode up`, or set PREFECT_API_URL" if pool == "local" else "set PREFECT_API_URL"
        raise UserError(f"no Prefect server is known: {remedy} (http://HOST:4200/api)")
    job_template = template() if pool == "gke" else None
    wait_for_server(url, wait)
    server.apply({**server.environment(), "PREFECT_API_URL": url})
    try:
        prepare(pool, job_template)
    except httpx.HTTPError as error:
        raise UserError(f"the Prefect server at {url} refused: {' '.join(str(error).split())}") from None
    deploy_flows(pool)
    print(f"deployed prefect.yaml to the work pool {pool} of {url}", flush=True)


def prepare(pool: str, job_template: dict[str, Any] | None = None) -> None:
    """The pool and the automations, on the server of this process's Prefect settings.

    Args:
        job_template: base job template of the pool; None: Prefect's own.

    Raises:
        UserError: there is a pool of this name, of another type.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _pool(client, pool, job_template)
        for automation in _automations():
            _automation(client, automation)


def deploy_flows(pool: str) -> None:
    """The deployments of prefect.yaml, in a pool that is there.

    Raises:
        UserError: one was refused; Prefect's own words stand above.
    """
    # On one machine flows run in the project; a pod may write in /tmp only.
    settings = {"NANOCODE_POOL": pool, "NANOCODE_DIRECTORY": str(PROJECT) if pool == "local" else "/tmp"}
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt"],
        cwd=PROJECT,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        print(result.stdout, file=sys.stderr)
        raise UserError("`prefect deploy` failed (its output is above)")


def template() -> dict[str, Any]:
    """The base job template of the pool `gke`: prefect-kubernetes' own variables around our Job (FLOW_RUN).

    Images and buckets are those of this environment, as the settings of the cluster give them to the worker's pod.

    Raises:
        UserError: a setting is missing, or the package prefect-kubernetes.
    """
    import yaml

    try:
        from prefect_kubernetes.worker import KubernetesWorker
    except ImportError:
        raise UserError(
            "the work pool gke needs the package prefect-kubernetes: install nanocode with its extra `gke`"
        ) from None
    config = load_config()
    if "://" not in config.run.store:
        raise UserError(
            f"NANOCODE_STORE must be gs://bucket/prefix, which flow runs in a cluster reach (it is {config.run.store})"
        )
    if not config.gke.images:
        raise UserError("NANOCODE_IMAGES is not set: where the images lie, REGION-docker.pkg.dev/PROJECT/nanocode")
    made: dict[str, Any] = KubernetesWorker.get_default_base_job_template()
    made["job_configuration"]["job_manifest"] = yaml.safe_load(FLOW_RUN.read_text())
    defaults = {
        "namespace": config.gke.namespace,
        "image": f"{config.gke.images.rstrip('/')}/worker:{config.gke.tag}",
        "service_account_name": "nanocode-worker",
        "finished_job_ttl": 86400,
        "cpu_request": "250m",
        "memory_request": "1Gi",
        "memory_limit": "2Gi",
        "env": {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)},
    }
    # A variable that our Job does not use would be an empty promise in the UI.
    used = json.dumps(made["job_configuration"])
    properties = {name: field for name, field in made["variables"]["properties"].items() if f"{{{{ {name} }}}}" in used}
    for name, value in defaults.items():
        properties[name] = {**properties[name], "default": value}
    made["variables"]["properties"] = properties
    return made


def wait_for_server(url: str, seconds: float) -> None:
    """Wait until a Prefect API answers at `url`.

    Raises:
        UserError: none does within `seconds`, or something else does.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"PREFECT_API_URL is {url!r}; write http://HOST:4200/api")
    end, told = time.monotonic() + seconds, False
    while True:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/admin/version", timeout=10) as answer:
                json.loads(answer.read())
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(f"there is no Prefect API at {url} ({error}); its address ends with /api") from None
            reason = str(error)
        except ValueError:
            raise UserError(f"what answers at {url} is no Prefect API; its address ends with /api") from None
        except OSError as error:
            reason = str(getattr(error, "reason", error))
        if time.monotonic() > end:
            raise UserError(
                f"no Prefect server answered at {url} within {seconds:.0f} s ({reason}); is the address right?"
            )
        if not told:
            print(f"waiting for the Prefect server at {url}", flush=True)
            told = True
        time.sleep(1.0)


def _pool(client: Any, name: str, job_template: dict[str, Any] | None) -> None:
    """A pool of this name, with the template, and open."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    given: Any = {"base_job_template": job_template} if job_template else {}
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type=POOLS[name], **given))
        return
    found = client.read_work_pool(name)
    if found.type != POOLS[name]:
        raise UserError(
            f"the work pool {name} is of type {found.type}, not {POOLS[name]}; remove it with "
            f"`prefect work-pool delete {name}`, then give the same command again"
        )
    if name == "local":
        given["is_paused"] = False  # `nanocode down` closes it
    if given:
        client.update_work_pool(name, WorkPoolUpdate(**given))


def _automations() -> list[dict[str, Any]]:
    ours = {"prefect.resource.role": "flow", "prefect.resource.name": "nanocode"}
    return [
        {
            "name": "nanocode: a run without heartbeat has crashed",
            "description": "Frees the place of a run whose process vanished.",
            "trigger": {
                "type": "event",
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": ours,
                "after": ["prefect.flow-run.heartbeat"],
                # Any change of its state is a sign of life too, or its end.
                "expect": ["prefect.flow-run.*"],
                "for_each": ["prefect.resource.id"],
                "posture": "Proactive",
                "threshold": 1,
                "within": 3 * HEARTBEAT_SECONDS,
            },
            "actions": [
                {
                    "type": "change-flow-run-state",
                    "state": "CRASHED",
                    "message": "No sign of life: its process is gone.",
                }
            ],
        },
        {
            # The same run goes on, so parameters and jobs stay; it is a retry, which Prefect counts in its run_count.
            "name": "nanocode: a crashed run is started once more",
            "description": "Its jobs are found again, or go on from their last save. A second crash is left alone.",
            "trigger": {
                "type": "event",
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": ours,
                "expect": ["prefect.flow-run.Crashed"],
                "for_each": ["prefect.resource.id"],
                "posture": "Reactive",
                "threshold": 1,
                # Having fired for a run, a trigger does not fire for that run again within this time.
                "within": int(ONCE_IN.total_seconds()),
            },
            "actions": [
                {
                    "type": "change-flow-run-state",
                    "state": "SCHEDULED",
                    "name": "AwaitingRetry",
                    "message": "It crashed: started once more.",
                }
            ],
        },
    ]


def _automation(client: Any, wanted: dict[str, Any]) -> None:
    """An automation of this name that does just this; one that does is left, with what it has counted."""
    from prefect.events.schemas.automations import AutomationCore

    core = AutomationCore.model_validate(wanted)
    found = client.read_automations_by_name(core.name)
    if not found:
        client.create_automation(core)
    elif _plain(found[0]) != _plain(core):
        client.update_automation(found[0].id, core)
    for extra in found[1:]:
        client.delete_automation(extra.id)


def _plain(automation: Any) -> dict[str, Any]:
    """What an automation says, without what the server adds."""
    whole = automation.model_dump(mode="json")
    return {name: whole[name] for name in ("description", "enabled", "trigger", "actions")}
