"""The flow in the work pool gke: a real server, the worker's Deployment, flow runs in pods, their jobs on machines.

The tests share the worker, the machines and a store; each starts runs of its own.
"""

import contextlib
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from agent import Agent
from api import Object
from cluster import Cluster, wait_for
from conductor import Conductor, prefect_server, start_worker, worker_log
from gcs import environment
from installation import NAMESPACE, install_accounts

from nanocode_core.config import PROJECT
from nanocode_core.jobs.gke.manifest import RUN

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(900)]

JOBSETS = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"
SMALL = ["gke.cpus=1", "gke.memory_gib=2", "gke.disk_gib=1", "run.lease_seconds=4", "run.mirror_seconds=1"]
TWO_HOSTS = [
    *SMALL,
    "gke.hosts=2",
    'gke.environment={"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}',
    "checkpoints.steps=3",
]


@pytest.fixture(scope="module")
def conductor(cluster: Cluster, gcs: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conductor]:
    install_accounts(cluster)
    with prefect_server(tmp_path_factory.mktemp("prefect")) as conductor:
        yield conductor


@pytest.fixture(scope="module")
def agent(cluster: Cluster, gcs: str, conductor: Conductor) -> Iterator[Agent]:
    """A machine with the worker, one for flow runs, and two on spot for jobs."""
    image = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **environment(gcs)}
    with cluster.agent(environment=image) as agent:
        if not agent.isolated:
            pytest.skip("needs root: a pod finds the token of its service account at a fixed path")
        agent.add_node("worker")
        settings = {
            "NANOCODE_STORE": "gs://bucket/prefect",
            "NANOCODE_IMAGES": "images",
            "NANOCODE_TAG": "test",
            "NANOCODE_ACCELERATOR": "cpu",
        }
        start_worker(cluster, conductor, settings)
        cluster.api.patch("/api/v1/nodes/worker", {"spec": {"unschedulable": True}})
        agent.add_node("default-1")
        for number in range(2):
            agent.add_node(f"spot-{number}", {"cloud.google.com/gke-spot": "true"}, capacity={"cpu": "1"})
        yield agent
        assert "forbidden" not in worker_log(cluster)


@pytest.fixture(scope="module")
def inputs(agent: Agent, conductor: Conductor) -> str:
    """A run that makes what pretraining needs."""
    run = conductor.start("full-speedrun", preset="smoke", stages=["corpus", "tokenizer", "tokens"], set=SMALL)
    conductor.ends(run, "Completed")
    return run


def jobset(cluster: Cluster, run: str) -> Object | None:
    """The JobSet that a run follows."""
    found = cluster.api.get(JOBSETS, labelSelector=f"{RUN}={run}")["items"]
    return found[0] if found else None


def processes(command: str, variable: str, text: str) -> list[psutil.Process]:
    """The first processes of containers: by the end of their command and a text in a variable of theirs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if text in process.environ().get(variable, "") and process.name() != "unshare":
                found += [process] if " ".join(process.cmdline()).endswith(command) else []
    return found


def kill_flow_run(run: str) -> None:
    """End the container of a flow run as the kernel does it when memory is out."""
    (first,) = processes(" flow-run execute", "PREFECT__FLOW_RUN_ID", run)
    first.kill()


def hosts(text: str) -> list[psutil.Process]:
    """The processes of the two hosts of a job with a text in its spec, waited for."""

    def found() -> list[psutil.Process]:
        own = processes(" nanocode_core.jobs.worker", "NANOCODE_SPEC", text)
        return own if len(own) == 2 else []

    return list(wait_for(found, f"two hosts with {text}", 300))


@contextlib.contextmanager
def held(resting: list[psutil.Process]) -> Iterator[None]:
    """Let processes rest meanwhile. Young ones: what has met its peers would miss them."""
    for process in resting:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in resting:
            process.send_signal(signal.SIGCONT)


def pretrain(conductor: Conductor, *sets: str) -> str:
    return conductor.start("full-speedrun", preset="smoke", stages=["pretrain"], set=[*TWO_HOSTS, *sets])


def test_the_stages_of_a_deployment_run_in_the_cluster(conductor: Conductor, inputs: str) -> None:
    assert conductor.run(inputs)["work_pool_name"] == "gke"
    for stage in ("corpus", "tokenizer", "tokens"):
        conductor.hears(inputs, f"created Job nanocode-{stage}-")
        conductor.hears(inputs, f"{stage}: built ")


def test_a_flow_run_that_dies_comes_back_to_its_jobset_but_not_for_ever(
    cluster: Cluster, agent: Agent, conductor: Conductor, inputs: str
) -> None:
    run = pretrain(conductor, "training.steps=8")
    with held(hosts('"steps":8,"batch')):
        uid = jobset(cluster, run)["metadata"]["uid"]
        kill_flow_run(run)
        conductor.hears(run, "following it", 1, seconds=300)
        assert conductor.states(run).count("Crashed") == 1

        agent.add_node("default-2")
        agent.preempt("default-1", wait=False)
        conductor.hears(run, "following it", 2, seconds=300)
        assert conductor.states(run).count("Crashed") == 1

        kill_flow_run(run)
        wait_for(lambda: conductor.states(run).count("Crashed") == 2, "the second crash", 120)
        time.sleep(10)  # the first time it took two seconds
        assert conductor.state(run) == "Crashed"

        another = pretrain(conductor, "training.steps=8")
        conductor.hears(another, "following it", seconds=300)
        assert jobset(cluster, another)["metadata"]["uid"] == uid
    conductor.ends(another, "Completed")
    assert jobset(cluster, another)["metadata"]["uid"] == uid


def test_a_cancellation_takes_the_jobset_along(cluster: Cluster, conductor: Conductor, inputs: str) -> None:
    run = pretrain(conductor, "training.steps=100000")
    hosts('"steps":100000,')
    begin = time.monotonic()
    conductor.cancel(run)
    wait_for(lambda: jobset(cluster, run) is None, "the JobSet's end", 60)
    assert time.monotonic() - begin < 30
    conductor.ends(run, "Cancelled", seconds=60)


def test_a_run_that_is_cancelled_while_it_has_no_pod_leaves_nothing_either(
    cluster: Cluster, conductor: Conductor, inputs: str
) -> None:
    run = pretrain(conductor, "training.steps=100001")
    hosts('"steps":100001,')
    conductor.ask("PATCH", "/work_pools/gke", {"is_paused": True})
    kill_flow_run(run)
    wait_for(lambda: conductor.state(run) == "AwaitingRetry", "the end of the pod", 120)
    assert jobset(cluster, run)
    conductor.cancel(run)
    wait_for(lambda: jobset(cluster, run) is None, "the JobSet's end", 60)
    conductor.ends(run, "Cancelled", seconds=60)
    conductor.ask("PATCH", "/work_pools/gke", {"is_paused": False})


def test_a_bug_fails_the_run_at_once_with_its_traceback(conductor: Conductor, inputs: str) -> None:
    wrong = 'gke.environment={"JAX_PLATFORMS": "abacus"}'
    run = conductor.start("full-speedrun", preset="smoke", stages=["pretrain"], set=[*SMALL, wrong, "training.steps=7"])
    conductor.ends(run, "Failed")
    assert "failed with a bug" in conductor.run(run)["state"]["message"]
    conductor.hears(run, "Traceback (most recent call last)")
    conductor.hears(run, "RuntimeError: Unable to initialize backend 'abacus'")
