"""The GKE launcher: a job is a Kubernetes Job or JobSet, which goes on whatever happens to who follows it.

`run` creates the object, or adopts the one there is, since its name follows from the fingerprint; then it
shows why pods wait, the log of host 0, restarts, and how the job ended. Nothing is deleted when the
follower ends: who comes next adopts the job. `cancel` is for who wants it gone.
"""

import time
from collections.abc import Callable
from typing import Any

from nanocode_core.errors import StorageError, UserError
from nanocode_core.jobs.gke.cluster import Cluster, Pod, State
from nanocode_core.jobs.gke.log import LogFollower
from nanocode_core.jobs.gke.manifest import RUN, job_name, render
from nanocode_core.jobs.gke.progress import Progress
from nanocode_core.jobs.launcher import JobFailed
from nanocode_core.jobs.spec import BAD_INPUT, BUG, OUTAGE, PREEMPTED, JobSpec
from nanocode_core.store import Store

LOOK_SECONDS = 2.0
"""Between two looks at a job and its pods."""
GONE_SECONDS = 60.0
"""How long to wait for an old object of the same name to go."""
SILENCE_SECONDS = 60.0
"""After so long without a line of the log the job's progress is looked up in the store."""
TERMINATED = 143
"""Exit code of a process that SIGTERM ended before it could answer."""


class GKELauncher:
    """Runs jobs on the cluster of the current context.

    Args:
        run: id of the run that the jobs are for; `cancel` finds them by it.
        client: a kubernetes.client.ApiClient; None: as the environment says.
    """

    def __init__(self, run: str | None = None, client: Any = None) -> None:
        self._run, self._client = run, client

    def run(self, spec: JobSpec, line: Callable[[str], None]) -> None:
        """Build the artifact of `spec`; see Launcher.run.

        Raises:
            UserError: the job, or the cluster, refused it.
            JobFailed: it ended with a bug, crashed again and again, or was deleted.
        """
        if Store.of(spec.config).files.directory is not None:
            raise UserError(
                f"run.launcher=gke needs a store that the cluster reaches: set run.store=gs://bucket/prefix "
                f"(it is {spec.config.run.store})"
            )
        cluster = Cluster(spec.config.gke.namespace, self._client)
        body = render(_portable(spec), self._run)
        self._begin(cluster, body, line)
        _Follower(cluster, spec, body["kind"], line).follow()

    def _begin(self, cluster: Cluster, body: dict[str, Any], line: Callable[[str], None]) -> None:
        """Create the object, or adopt the one that is there and has not failed."""
        kind, name = body["kind"], body["metadata"]["name"]
        while not cluster.create(body):
            state = cluster.state(kind, name)
            if state is None:
                continue  # gone in between
            if not state.finished:
                line(f"{kind} {name} is there already: following it")
                cluster.adopt(kind, name, {RUN: self._run} if self._run else {})
                return
            line(f"{kind} {name} of an earlier run has ended ({state.finished}): making it anew")
            cluster.delete(kind, name, wait=GONE_SECONDS)
        line(f"created {kind} {name} in namespace {body['metadata']['namespace']}")


def cancel(run: str, namespace: str, client: Any = None) -> list[str]:
    """Delete every job of a run; their names."""
    cluster = Cluster(namespace, client)
    found = cluster.named(run)
    for kind, name in found:
        cluster.delete(kind, name)
    return [name for _, name in found]


class _Follower:
    """Follows one job to its end."""

    def __init__(self, cluster: Cluster, spec: JobSpec, kind: str, line: Callable[[str], None]) -> None:
        self._cluster, self._spec, self._kind, self._line = cluster, spec, kind, line
        self._name = job_name(spec.stage, spec.fingerprint)
        self._log = LogFollower(cluster, line)
        self._progress = Progress(spec)
        self._told: set[tuple[str, str]] = set()
        self._ended: dict[str, Pod] = {}
        self._heard = time.time()

    def follow(self) -> None:
        """Until the job has ended well; raises as GKELauncher.run does."""
        uid = None
        try:
            while True:
                state = self._cluster.state(self._kind, self._name)
                pods = self._cluster.pods(self._name)
                self._look(pods)
                self._listen()
                if state is None or (uid is not None and state.uid != uid):
                    raise JobFailed(f"{self._kind} {self._name} was deleted; run again to go on from its last save")
                uid = state.uid
                if state.suspended:
                    self._tell("queue", "waiting for its queue to admit it")
                if state.finished:
                    self._log.finish()
                    self._end(state, self._cluster.pods(self._name))
                    return
                time.sleep(LOOK_SECONDS)
        finally:
            self._log.close()

    def _look(self, pods: list[Pod]) -> None:
        for pod in pods:
            if pod.phase == "Pending" and pod.waiting:
                self._tell(pod.name, f"{pod.name} is waiting: {pod.waiting}", pod.waiting.partition(":")[0])
                for event in self._cluster.events(pod.name):
                    self._tell(pod.name, f"{pod.name}: {event}", event)
            if pod.index == 0 and pod.phase != "Pending":
                self._log.follow(pod)
            if (pod.exit_code is not None or pod.disrupted) and pod.uid not in self._ended:
                self._ended[pod.uid] = pod
                if pod.exit_code != 0:
                    self._line(f"{pod.name} on {pod.node} {_how(pod)}")
                    self._judge(pod)

    def _listen(self) -> None:
        """Where the log is silent (its node may be out of reach), say how far the job was at its last save."""
        self._heard = max(self._heard, self._log.newest)
        if time.time() - self._heard < SILENCE_SECONDS:
            return
        self._heard = time.time()
        try:
            saved = self._progress.line(self._log.newest)
        except StorageError as error:
            self._line(f"could not look at the job's saves: {error}")
            return
        if saved:
            self._log.give(*saved)

    def _judge(self, pod: Pod) -> None:
        """Stop a job that crashes again and again without getting anywhere."""
        if pod.disrupted or pod.exit_code in (PREEMPTED, TERMINATED, BAD_INPUT, BUG):
            return
        most = self._spec.config.gke.crashes
        try:
            crashes, reached = self._progress.crashed()
        except StorageError as error:
            self._line(f"could not look at the job's saves: {error}")
            return
        if crashes >= most:
            self._cluster.delete(self._kind, self._name)
            raise JobFailed(
                f"the {self._spec.stage} job crashed {crashes} times without getting beyond {reached}: it "
                f"{_how(pod)}; its log is above"
            )

    def _end(self, state: State, pods: list[Pod]) -> None:
        self._look(pods)
        if state.finished == "Complete":
            return
        codes = {pod.exit_code for pod in [*self._ended.values(), *pods]}
        stage = self._spec.stage
        if BAD_INPUT in codes:
            raise UserError(self._log.error or f"the {stage} job refused its input; see its log")
        if BUG in codes:
            raise JobFailed(f"the {stage} job failed with a bug; its log is above")
        last = max(self._ended.values(), key=lambda pod: pod.created, default=None)
        how = f"its last pod {_how(last)}" if last else f"{state.reason}: {state.message}"
        raise JobFailed(f"the {stage} job failed: {how}; its log is above; run again to go on from its last save")

    def _tell(self, who: str, text: str, key: str | None = None) -> None:
        """Write a line once."""
        if (who, key or text) not in self._told:
            self._told.add((who, key or text))
            self._line(f"{self._spec.stage}: {text}")


def _how(pod: Pod) -> str:
    """How a pod ended, in words."""
    if pod.reason == "OOMKilled":
        return "was killed because it ran out of memory (OOMKilled): give it more, or a larger accelerator"
    if pod.disrupted:
        return "was preempted"
    if pod.exit_code in (PREEMPTED, TERMINATED):
        return "was told to go away, or left by a peer"
    if pod.exit_code == OUTAGE:
        return "could not reach its store, or its other hosts"
    if pod.exit_code is not None and pod.exit_code > 128:
        return f"was killed by signal {pod.exit_code - 128}"
    return f"ended with exit code {pod.exit_code}"


def _portable(spec: JobSpec) -> JobSpec:
    """The spec for another machine: with the constitution itself, and without this machine's cache."""
    with open(spec.config.soul, encoding="utf-8") as file:
        soul = file.read()
    run = spec.config.run.model_copy(update={"cache": "/scratch", "launcher": "local"})
    return spec.model_copy(update={"soul": soul, "config": spec.config.model_copy(update={"run": run})})
