"""The launcher on a real control plane, with a store on gs://: how jobs begin, wait, end, crash and are adopted."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from agent import Agent
from cluster import Cluster, wait_for
from gcs import environment
from installation import install_accounts
from urllib3.exceptions import HTTPError

from nanocode_core.config import PROJECT, load_config
from nanocode_core.errors import UserError
from nanocode_core.jobs.gke.cluster import Cluster as Asked
from nanocode_core.jobs.gke.launcher import GKELauncher, cancel
from nanocode_core.jobs.gke.manifest import job_name
from nanocode_core.jobs.launcher import JobFailed
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.jobs.stage import Stage, plan
from nanocode_core.store import Store

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def agent(cluster: Cluster, gcs: str) -> Iterator[Agent]:
    """Machines whose images hold this project, the toy stages, and the way to the store."""
    install_accounts(cluster)
    image = {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests' / 'jobs'}", **environment(gcs)}
    with cluster.agent(environment=image) as agent:
        yield agent


class World:
    """Launches toy stages and keeps what they say."""

    def __init__(self, cluster: Cluster, root: str, cache: Path) -> None:
        self.cluster, self.root, self.cache = cluster, root, cache
        self.lines: list[str] = []
        self.failures: list[Exception] = []
        self.client = cluster.token("nanocode", "nanocode-worker")
        self.asked = Asked("nanocode", cluster.client)

    def spec(self, function: str, *sets: str) -> JobSpec:
        stage = Stage(name="toy", version=1, build=f"toy_stages:{function}", inputs=(), identity=("seed",))
        small = ["gke.cpus=1", "gke.memory_gib=1", "gke.disk_gib=1", "gke.spot=false", "run.lease_seconds=4"]
        places = [f"run.store={self.root}", f"run.cache={self.cache}", "run.launcher=gke", "run.mirror_seconds=1"]
        config = load_config("smoke", [*places, *small, *sets])
        return JobSpec.of(plan([stage], config, self.store)["toy"], config)

    @property
    def store(self) -> Store:
        return Store(self.root, cache=self.cache)

    def launch(self, spec: JobSpec, run: str | None = None) -> None:
        GKELauncher(run, self.client).run(spec, self.lines.append)

    def begin(self, spec: JobSpec, run: str | None = None) -> threading.Thread:
        """Launch in a thread, which keeps what the launch failed with."""

        def launch() -> None:
            try:
                self.launch(spec, run)
            except Exception as error:
                self.failures.append(error)

        thread = threading.Thread(target=launch, daemon=True)
        thread.start()
        return thread

    def name(self, spec: JobSpec) -> str:
        return job_name(spec.stage, spec.fingerprint)

    def value(self, spec: JobSpec) -> str:
        return (self.store.open("toy", spec.fingerprint).path / "value.txt").read_text()

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def world(cluster: Cluster, agent: Agent, request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(cluster, f"gs://bucket/{request.node.name}", tmp_path / "cache")


@pytest.fixture
def node(agent: Agent, request: pytest.FixtureRequest) -> Iterator[str]:
    name = agent.add_node(f"node-{abs(hash(request.node.name)) % 10**8}")
    yield name
    with contextlib.suppress(RuntimeError):  # the test has preempted it
        agent.remove_node(name)


def test_a_job_is_created_followed_and_reused(world: World, node: str) -> None:
    spec = world.spec("write", "seed=7")
    world.launch(spec)
    assert world.value(spec) == "7"
    assert world.said(f"created Job {world.name(spec)} in namespace nanocode")
    assert world.lines.count("toy: written") == 1
    # The object of an earlier run does not keep a new one from working.
    world.store.remove("toy", spec.fingerprint)
    world.launch(spec)
    assert world.said("has ended (Complete): making it anew")
    assert world.value(spec) == "7"


def test_a_refusal_is_the_jobs_own_line(world: World, node: str) -> None:
    with pytest.raises(UserError, match=r"^corpus.sources: no file matches 'x'; give another glob$"):
        world.launch(world.spec("refuse"))


def test_a_bug_fails_at_once_with_its_traceback(world: World, node: str) -> None:
    spec = world.spec("crash")
    with pytest.raises(JobFailed, match="failed with a bug"):
        world.launch(spec)
    assert world.said("ZeroDivisionError: integer division or modulo by zero")
    assert len(world.asked.pods(world.name(spec))) == 1


def test_a_crash_loop_stops_after_three_without_progress(world: World, node: str) -> None:
    spec = world.spec("vanish")
    with pytest.raises(JobFailed, match=r"crashed 3 times without getting beyond .*ended with exit code 1"):
        world.launch(spec)
    wait_for(lambda: world.asked.state("Job", world.name(spec)) is None, "the job's end", 60)


def test_an_out_of_memory_kill_says_so(world: World, node: str) -> None:
    spec = world.spec("swallow", "gke.crashes=1")
    with pytest.raises(JobFailed, match=r"ran out of memory \(OOMKilled\): give it more, or a larger accelerator"):
        world.launch(spec)
    wait_for(lambda: world.asked.state("Job", world.name(spec)) is None, "the job's end", 60)


def test_a_job_that_loses_its_store_for_a_time_is_started_again(world: World, node: str) -> None:
    spec = world.spec("lose_the_store")
    world.launch(spec)
    assert world.said("could not reach its store")
    assert world.value(spec) == "found again"
    with pytest.raises(UserError, match=r"^store gs://bucket: could not read x"):
        world.launch(world.spec("lose_the_store", "seed=1"))


def test_why_a_pod_waits_is_told_within_a_minute(world: World, agent: Agent) -> None:
    spec = world.spec("write", "seed=8")
    thread = world.begin(spec)
    wait_for(lambda: world.said("is waiting: Unschedulable: "), "the reason", 60)
    agent.image_pull_error(".*")
    name = agent.add_node("node-late")
    wait_for(lambda: world.said("ImagePullBackOff"), "the other reason", 60)
    agent.image_pull_error(None)
    thread.join(60)
    assert not thread.is_alive()
    assert world.value(spec) == "8"
    agent.remove_node(name)


def test_a_preempted_job_goes_on_elsewhere(world: World, agent: Agent, node: str) -> None:
    spec = world.spec("count", 'gke.environment={"TOY_PACE": "0.4"}')
    thread = world.begin(spec)
    wait_for(lambda: world.said("steps ("), "its first steps", 60)
    time.sleep(2)  # so that something was saved
    other = agent.add_node("node-other")
    agent.preempt(node, grace=15, wait=False)
    thread.join(120)
    assert not thread.is_alive()
    assert world.said("was preempted") or world.said("was told to go away")
    begun = [int(line.rpartition(" ")[2]) for line in world.lines if line.startswith("toy: from ")]
    assert begun[0] == 0
    assert begun[-1] > 0
    assert world.value(spec) == "40"
    agent.remove_node(other)


@pytest.mark.parametrize("log", ["never", "late", "always"])
def test_progress_comes_from_the_store_where_the_log_does_not_say_it(
    world: World, node: str, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    reach = Asked.log

    def unreachable(cluster: Asked, name: str, since: datetime | None) -> Iterator[tuple[datetime, str]]:
        if log == "never" or not world.said("steps ("):
            raise HTTPError("no route to the node")
        return reach(cluster, name, since)

    if log != "always":
        monkeypatch.setattr(Asked, "log", unreachable)
    monkeypatch.setattr("nanocode_core.jobs.gke.launcher.SILENCE_SECONDS", 1.0)
    spec = world.spec("count", 'gke.environment={"TOY_PACE": "0.4"}')
    world.launch(spec)
    assert world.value(spec) == "40"
    steps = [int(found[1]) for line in world.lines if (found := re.match(r"toy: (\d+)/40 steps \(", line))]
    assert len(steps) > 1
    assert len(steps) == len(set(steps)), "a line was said twice"
    assert log != "never" or steps == sorted(steps)  # a log that comes late goes back to its beginning
    assert world.said("toy: from") == (log != "never")


def test_who_comes_back_follows_the_same_job_and_a_cancellation_deletes_it(world: World, node: str) -> None:
    spec = world.spec("sleep_with_child")
    world.begin(spec, run="run-1")
    wait_for(lambda: world.said("toy: pids"), "the job", 60)
    uid = world.asked.state("Job", world.name(spec)).uid
    second = World(world.cluster, world.root, world.cache)
    thread = second.begin(spec, run="run-2")
    wait_for(lambda: second.said("is there already: following it"), "the second follower", 30)
    wait_for(lambda: second.said("toy: pids"), "the log from its beginning", 30)
    assert world.asked.state("Job", world.name(spec)).uid == uid
    assert cancel("run-1", "nanocode", world.client) == []
    begin = time.monotonic()
    assert cancel("run-2", "nanocode", world.client) == [world.name(spec)]
    wait_for(lambda: world.asked.state("Job", world.name(spec)) is None, "the job's end", 30)
    assert time.monotonic() - begin < 30
    thread.join(30)
    assert isinstance(second.failures[0], JobFailed)
    assert "was deleted" in str(second.failures[0])
