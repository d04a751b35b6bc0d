"""What we ask of a Kubernetes API server about one job: its object, its pods, their events and logs."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from nanocode_core.errors import UserError
from nanocode_core.jobs.gke.manifest import CONTAINER, JOB, RUN

T = TypeVar("T")

KINDS = {
    "Job": {"group": "batch", "version": "v1", "plural": "jobs"},
    "JobSet": {"group": "jobset.x-k8s.io", "version": "v1alpha2", "plural": "jobsets"},
}
TRIES = 8
"""Of a request that the network or the server fails, with growing pauses: about two minutes."""


@dataclass(frozen=True)
class State:
    """How a Job or JobSet stands.

    Attributes:
        finished: "", "Complete" or "Failed".
        reason, message: of the failure.
        suspended: waiting for a queue to admit it.
        run: the run that follows it, as its label says.
    """

    uid: str
    finished: str
    reason: str
    message: str
    suspended: bool
    run: str | None


@dataclass(frozen=True)
class Pod:
    """One pod of a job.

    Attributes:
        index: of its host; 0 for a job on one.
        phase: Pending, Running, Succeeded or Failed.
        waiting: why it does not run yet, as "Reason: message"; "" where nothing is known.
        exit_code: of the container, once it has ended.
        reason: why it ended, as the node says: Completed, Error, OOMKilled ...
        disrupted: whether it was taken away: preempted, drained, evicted.
    """

    name: str
    uid: str
    node: str | None
    index: int
    created: datetime
    phase: str
    waiting: str
    exit_code: int | None
    reason: str
    disrupted: bool


class Cluster:
    """The API server of the current context, or of the cluster that this process runs in."""

    def __init__(self, namespace: str, client: Any = None) -> None:
        """Connect.

        Args:
            namespace: of the jobs.
            client: a kubernetes.client.ApiClient; None: as the environment says.

        Raises:
            UserError: the package kubernetes is not installed, or neither a kubeconfig nor a service account is there.
        """
        try:
            from kubernetes import client as api
        except ImportError:
            raise UserError(
                "run.launcher=gke needs the package kubernetes: install nanocode with its extra `gke`"
            ) from None
        client = client or _default_client()
        self._namespace = namespace
        self._core: Any = api.CoreV1Api(client)
        # One way for Jobs and JobSets, as plain dictionaries.
        self._objects: Any = api.CustomObjectsApi(client)

    def create(self, body: dict[str, Any]) -> bool:
        """Create a Job or JobSet; False where there is one of this name.

        Raises:
            UserError: the server refuses it; its reason in one line.
        """
        from kubernetes.client.exceptions import ApiException

        try:
            self._ask(lambda: self._objects.create_namespaced_custom_object(**self._of(body["kind"]), body=body))
        except ApiException as error:
            if error.status == 409:
                return False
            raise UserError(f"the cluster refuses the job {body['metadata']['name']}: {_said(error)}") from None
        return True

    def state(self, kind: str, name: str) -> State | None:
        """How a Job or JobSet stands; None where there is none."""
        from kubernetes.client.exceptions import ApiException

        try:
            return _state(self._ask(lambda: self._objects.get_namespaced_custom_object(**self._of(kind), name=name)))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def adopt(self, kind: str, name: str, labels: dict[str, str]) -> None:
        """Lay labels over those of a Job or JobSet."""
        body = {"metadata": {"labels": labels}}
        self._ask(lambda: self._objects.patch_namespaced_custom_object(**self._of(kind), name=name, body=body))

    def delete(self, kind: str, name: str, wait: float = 0.0) -> None:
        """Delete a Job or JobSet with its pods; fine where there is none.

        Args:
            wait: seconds to wait, at most, until it is gone.
        """
        from kubernetes.client.exceptions import ApiException

        try:
            self._ask(
                lambda: self._objects.delete_namespaced_custom_object(
                    **self._of(kind), name=name, propagation_policy="Foreground"
                )
            )
        except ApiException as error:
            if error.status != 404:
                raise
        until = time.monotonic() + wait
        while time.monotonic() < until and self.state(kind, name) is not None:
            time.sleep(0.5)

    def named(self, run: str) -> list[tuple[str, str]]:
        """Kind and name of every Job and JobSet that a run follows, by its label."""

        def names(kind: str) -> list[tuple[str, str]]:
            selector = f"{RUN}={run}"
            found = self._ask(
                lambda: self._objects.list_namespaced_custom_object(**self._of(kind), label_selector=selector)
            )
            # The Jobs of a JobSet go with it.
            own = [item["metadata"] for item in found["items"] if not item["metadata"].get("ownerReferences")]
            return [(kind, metadata["name"]) for metadata in own]

        return [*names("JobSet"), *names("Job")]

    def active(self, selector: str) -> bool:
        """Whether a Job with these labels has a pod that has not ended."""
        found = self._ask(
            lambda: self._objects.list_namespaced_custom_object(**self._of("Job"), label_selector=selector)
        )
        return any(item.get("status", {}).get("active") for item in found["items"])

    def pods(self, name: str) -> list[Pod]:
        """The pods of a job, oldest first; ended ones too, as long as the server keeps them."""
        found = self._ask(lambda: self._core.list_namespaced_pod(self._namespace, label_selector=f"{JOB}={name}"))
        return sorted((_pod(pod) for pod in found.items), key=lambda pod: (pod.created, pod.index))

    def events(self, name: str) -> list[str]:
        """What was said about an object, newest last: "Reason: message" of its warnings."""
        found = self._ask(
            lambda: self._core.list_namespaced_event(self._namespace, field_selector=f"involvedObject.name={name}")
        )
        items = [item for item in found.items if item.type == "Warning" or item.reason == "TriggeredScaleUp"]
        # Events carry either of two times, by the age of what wrote them.
        items.sort(key=lambda item: item.last_timestamp or item.event_time or item.metadata.creation_timestamp)
        return [f"{item.reason}: {' '.join((item.message or '').split())}" for item in items]

    def log(self, pod: str, since: datetime | None = None) -> Iterator[tuple[datetime, str]]:
        """The lines of a pod's log, each with its time, as they come, until the container ends.

        Args:
            since: begin with the lines of this second.
        """
        seconds = None if since is None else max(1, int((datetime.now(since.tzinfo) - since).total_seconds()) + 1)
        response: Any = self._core.read_namespaced_pod_log(
            pod,
            self._namespace,
            container=CONTAINER,
            follow=True,
            timestamps=True,
            since_seconds=seconds,
            _preload_content=False,
            _request_timeout=(10, 300),
        )
        try:
            rest = b""
            for chunk in response.stream(amt=None):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    stamp, _, text = line.decode(errors="replace").partition(" ")
                    yield _time(stamp), text
        finally:
            response.close()

    def _of(self, kind: str) -> dict[str, str]:
        """Where the API server has objects of a kind."""
        return {**KINDS[kind], "namespace": self._namespace}

    def _ask(self, request: Callable[[], T]) -> T:
        """The answer to a request, tried again where the network or the server fails it."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        for attempt in range(TRIES):
            try:
                return request()
            except ApiException as error:
                if error.status not in (0, 429, 500, 502, 503, 504) or attempt == TRIES - 1:
                    raise
            except HTTPError:
                if attempt == TRIES - 1:
                    raise
            time.sleep(min(30, 2**attempt))
        raise AssertionError


def _default_client() -> Any:
    from kubernetes import client, config

    load: Any = config.load_config
    try:
        load()
    except config.ConfigException as error:
        raise UserError(
            f"no Kubernetes cluster is known here ({error}); run `gcloud container clusters get-credentials`, or set "
            "run.launcher=local"
        ) from None
    return client.ApiClient()


def _state(found: dict[str, Any]) -> State:
    status, spec = found.get("status") or {}, found["spec"]
    conditions = {c["type"]: c for c in status.get("conditions") or () if c["status"] == "True"}
    done = {"Completed": "Complete", "Complete": "Complete", "Failed": "Failed"}
    ended = next((name for name in done if name in conditions), "")
    condition = conditions.get(ended, {})
    return State(
        uid=found["metadata"]["uid"],
        finished=done.get(ended, ""),
        reason=condition.get("reason", ""),
        message=condition.get("message", ""),
        suspended=bool(spec.get("suspend")),
        run=(found["metadata"].get("labels") or {}).get(RUN),
    )


def _pod(pod: Any) -> Pod:
    status = pod.status
    containers = {item.name: item.state for item in status.container_statuses or ()}
    state = containers.get(CONTAINER)
    ended = state.terminated if state else None
    annotations = pod.metadata.annotations or {}
    conditions = {item.type: item for item in status.conditions or ()}
    disruption = conditions.get("DisruptionTarget")
    return Pod(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        node=pod.spec.node_name,
        index=int(annotations.get("batch.kubernetes.io/job-completion-index", 0)),
        created=pod.metadata.creation_timestamp,
        phase=status.phase or "Pending",
        waiting=_waiting(state, conditions.get("PodScheduled")),
        exit_code=ended.exit_code if ended else None,
        reason=(ended.reason if ended else None) or status.reason or "",
        disrupted=disruption is not None and disruption.status == "True",
    )


def _waiting(state: Any, scheduled: Any) -> str:
    """Why a pod does not run: no node takes it, or its container can't start."""
    if scheduled is not None and scheduled.status == "False":
        return f"{scheduled.reason}: {' '.join((scheduled.message or '').split())}"
    waiting = state.waiting if state else None
    if waiting is None or waiting.reason in (None, "ContainerCreating", "PodInitializing"):
        return ""
    return f"{waiting.reason}: {' '.join((waiting.message or '').split())}".rstrip(": ")


def _time(stamp: str) -> datetime:
    """A log line's time; the server gives nanoseconds, of which datetime keeps the first six digits."""
    moment, _, rest = stamp.partition(".")
    digits = rest.rstrip("Z")[:6] or "0"
    return datetime.fromisoformat(f"{moment.rstrip('Z')}.{digits:0<6}+00:00")


def _said(error: Any) -> str:
    """The server's own words."""
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason
    return " ".join(str(message).split())
