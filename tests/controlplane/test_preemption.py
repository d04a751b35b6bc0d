"""A training job on two hosts, preempted at every bad moment: it ends by itself, with the same bytes."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent import Agent
from cluster import Cluster, wait_for
from gcs import environment
from installation import install_accounts

from flows.pipeline import prepare, run_plainly
from nanocode_core.config import PROJECT, Config, load_config
from nanocode_core.jobs.gke.cluster import Cluster as Asked
from nanocode_core.jobs.gke.launcher import GKELauncher
from nanocode_core.jobs.gke.manifest import job_name
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.jobs.stage import Planned
from nanocode_core.store import Record

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(1200)]

HOSTS = 2
SETTINGS = [
    "run.launcher=gke",
    "run.lease_seconds=4",
    "run.mirror_seconds=1",
    "gke.accelerator=cpu",
    f"gke.hosts={HOSTS}",
    "gke.cpus=1",
    "gke.memory_gib=2",
    "gke.disk_gib=1",
    'gke.environment={"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}',
    "training.steps=60",
    "training.validate_every=25",
    "checkpoints.steps=3",
]


@pytest.fixture(scope="module")
def agent(cluster: Cluster, gcs: str) -> Iterator[Agent]:
    """Machines whose images hold this project and the way to the store."""
    install_accounts(cluster)
    image = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **environment(gcs)}
    with cluster.agent(environment=image) as agent:
        yield agent


class Training:
    """A run of the stage `pretrain` in a store of its own."""

    def __init__(self, cluster: Cluster, root: str, cache: Path) -> None:
        places = [f"run.store={root}", f"run.cache={cache}"]
        before = prepare(load_config("smoke", places), ["corpus", "tokenizer", "tokens"])
        run_plainly(before, lambda text: None, lambda outcome: None)
        self.config: Config = load_config("smoke", [*places, *SETTINGS])
        self.schedule = prepare(self.config, ["pretrain"])
        self.lines: list[str] = []
        self.failure: Exception | None = None
        self.asked = Asked("nanocode", cluster.client)
        self.client = cluster.token("nanocode", "nanocode-worker")
        self.thread = threading.Thread(target=self._run, daemon=True)

    @property
    def planned(self) -> Planned:
        return self.schedule.planned["pretrain"]

    @property
    def name(self) -> str:
        return job_name("pretrain", self.planned.fingerprint)

    def record(self) -> Record | None:
        return self.schedule.store.record("pretrain", self.planned.fingerprint)

    def files(self) -> list[str]:
        folder = f"work/pretrain/{self.planned.fingerprint}/checkpoints"
        return [path.removeprefix(f"{folder}/") for path in self.schedule.store.files.list(folder)]

    def saved(self) -> int:
        """The step of the newest complete checkpoint, or 0."""
        return max((int(path.partition("/")[0]) for path in self.files() if path.endswith("/manifest.json")), default=0)

    def running(self) -> int:
        return sum(pod.phase == "Running" for pod in self.asked.pods(self.name))

    def _run(self) -> None:
        try:
            GKELauncher("run", self.client).run(JobSpec.of(self.planned, self.config), self.lines.append)
        except Exception as error:
            self.failure = error


class Machines:
    """The nodes of a pool that are there now."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self._made, self.names = agent, 0, list[str]()

    def add(self, count: int = 1) -> None:
        labels = {"cloud.google.com/gke-spot": "true"}
        for _ in range(count):
            self._made += 1
            # One pod each, as on a slice.
            self.names.append(self._agent.add_node(f"spot-{self._made}", labels, capacity={"cpu": "1"}))

    def preempt(self, *names: str, grace: float = 15.0) -> None:
        self._agent.preempt(*names, grace=grace)
        self.names = [name for name in self.names if name not in names]

    def end(self) -> None:
        for name in self.names:
            self._agent.remove_node(name)
        self.names = []


@pytest.fixture
def machines(agent: Agent) -> Iterator[Machines]:
    found = Machines(agent)
    yield found
    found.end()


def test_preempted_at_every_bad_moment(cluster: Cluster, machines: Machines, gcs: str, tmp_path: Path) -> None:
    chance = random.Random(4)
    whole = Training(cluster, f"gs://bucket/{tmp_path.name}/whole", tmp_path / "a")
    machines.add(HOSTS)
    whole.thread.start()
    whole.thread.join(300)
    assert whole.failure is None, whole.lines
    expected = whole.record()
    assert expected is not None

    run = Training(cluster, f"gs://bucket/{tmp_path.name}/run", tmp_path / "b")
    lost: dict[str, float] = {}

    def goes_on(case: str) -> None:
        """Bring new machines and wait for the next save: how long that takes is noted."""
        begin, after = time.monotonic(), run.saved()
        machines.add(HOSTS - len(machines.names))
        wait_for(lambda: run.failure or run.saved() > after, f"a save after: {case}\n" + "\n".join(run.lines), 200)
        lost[case] = round(time.monotonic() - begin, 1)

    run.thread.start()
    wait_for(lambda: run.saved() >= 3, "the first save", 200)
    machines.preempt(chance.choice(machines.names))
    goes_on("one host")

    machines.preempt(*machines.names)
    goes_on("all hosts")

    def saving() -> bool:
        names = {path.partition("/")[0] for path in run.files()}
        return any(f"{name}/manifest.json" not in run.files() for name in names)

    wait_for(saving, "a save under way", 100)
    machines.preempt(*machines.names, grace=0.0)
    goes_on("during a save, without notice")

    machines.preempt(*machines.names)
    machines.add(1)
    wait_for(lambda: run.running() == 1, "one of two hosts", 120)
    machines.preempt(*machines.names)
    goes_on("while the other is pending")

    machines.preempt(*machines.names)
    machines.add(HOSTS)
    wait_for(lambda: run.running() == HOSTS, "the next start", 120)
    machines.preempt(chance.choice(machines.names), grace=1.0)
    goes_on("right after the start")

    run.thread.join(400)
    assert run.failure is None, run.lines
    made = run.record()
    assert made is not None
    assert made.digest == expected.digest
    found = cluster.api.get(f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/nanocode/jobsets/{run.name}")["status"]
    assert found["restarts"] >= 5
    assert found.get("restartsCountTowardsMax", 0) == 0
    print("seconds from new machines to the next save:", lost)
