"""The life of a pod on a node of the agent, from its binding to its end: one thread each, as a kubelet has it."""

import contextlib
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

import httpx
from api import Object, Refused, now
from containers import HOME, PATH, Container, Host
from environment import ADDRESS, Unready, expand, quantity, variables
from names import hostname
from volumes import Mount, mounts, prepare

TICK = 0.1
"""Seconds between two looks at the containers."""

RESTART_SECONDS = 1.0, 10.0
"""The first and the longest wait before a container starts again; a kubelet waits 10 s to 300 s."""

DELETED, PREEMPTED, VANISHED = "deleted", "preempted", "vanished"
SHUTDOWN = "Pod was terminated in response to imminent node shutdown."

T = TypeVar("T")


class Ending(Exception):
    """Somebody has asked for the pod's end."""


class Pod:
    """A pod and its thread."""

    def __init__(self, host: Host, pod: Object) -> None:
        self.host = host
        self.pod = pod
        self.node = pod["spec"]["nodeName"]
        self.directory = host.root / "pods" / pod["metadata"]["uid"]
        self.phase = "Pending"
        self.started = now()
        self.init = [self._container(spec) for spec in pod["spec"].get("initContainers", [])]
        self.main = [self._container(spec) for spec in pod["spec"]["containers"]]
        self.volumes: dict[str, Path] = {}
        self.conditions: dict[str, Object] = {}
        self.initialized = not self.init
        self.why = ""
        """Why it ends, if it has not ended of itself."""
        self.deadline = 0.0
        self.deleted = False
        self.over = Event()
        self.thread = Thread(target=self._run, name=pod["metadata"]["name"], daemon=True)

    def _container(self, spec: Object) -> Container:
        directory = self.directory / spec["name"]
        directory.mkdir(parents=True)
        return Container(spec, directory)

    def end(self, why: str, grace: float) -> None:
        """End the pod within `grace` seconds: DELETED, PREEMPTED by its node, or VANISHED with nothing to report."""
        deadline = time.monotonic() + grace
        self.deadline = min(self.deadline, deadline) if self.why else deadline
        self.deleted = self.deleted or why != PREEMPTED
        self.why = why if why == VANISHED else self.why or why
        if self.over.is_set():
            self._remove()

    def _run(self) -> None:
        hosts = self.directory / "hosts"
        self.host.names.open(hosts, self.pod)
        try:
            self._report()
            self._live([Mount(hosts, "/etc/hosts")])
        except Ending:
            self._stop()
        except Exception:
            traceback.print_exc()
            self.phase = "Failed"
        finally:
            self.host.names.close(hosts)
            for container in self.init + self.main:
                container.kill()
        if self.why != VANISHED:
            self._report()
        self.over.set()
        self._remove()

    def _live(self, own: list[Mount]) -> None:
        self.volumes = self._insist(lambda: prepare(self.host.api, self.pod, self.directory / "volumes"))
        policy = self.pod["spec"].get("restartPolicy", "Always")
        for container in self.init:
            self._start(container, own)
            while self._running([container], own, "Never" if policy == "Never" else "OnFailure"):
                self._tick()
            if container.code != 0:
                self.phase = "Failed"
                return
        self.initialized = True
        for container in self.main:
            self._start(container, own)
        while self._running(self.main, own, policy):
            self._tick()
        self.phase = "Succeeded" if all(container.code == 0 for container in self.main) else "Failed"

    def _start(self, container: Container, own: list[Mount]) -> None:
        self._pull(container)
        base = {
            "PATH": PATH,
            "HOME": HOME,
            "HOSTNAME": hostname(self.pod),
            **self.host.environment,
            "KUBERNETES_SERVICE_HOST": ADDRESS,
            "KUBERNETES_SERVICE_PORT": str(self.host.api.client.base_url.port),
        }
        self.event("Pulled", f'Container image "{container.spec["image"]}" already present on machine', container)
        env = self._insist(lambda: variables(self.host.api, self.pod, container.spec, base), container)
        words = [*container.spec.get("command", []), *container.spec.get("args", [])]
        places = [*own, *mounts(container.spec, self.volumes)]
        container.again = 0.0
        container.start(self.host, self.pod, [expand(word, env) for word in words], env, places)
        self.event("Started", f"Container started: {container.name}", container)
        if container in self.main:
            self.phase = "Running"
        self._report()

    def _pull(self, container: Container) -> None:
        """Wait as long as the container's image cannot be pulled."""
        image, tried = container.spec["image"], 0
        while self.host.broken and self.host.broken.search(image):
            failed = f'Failed to pull image "{image}": not found'
            if tried == 0:
                self.event("Failed", failed, container)
                self.event("Failed", "Error: ErrImagePull", container)
                self._wait_in(container, "ErrImagePull", failed)
            else:
                self._wait_in(
                    container, "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {failed}'
                )
            if tried == 1:
                self.event("BackOff", f'Back-off pulling image "{image}"', container)
                self.event("Failed", "Error: ImagePullBackOff", container)
            tried += 1
            self._pause(0.5)

    def _insist(self, action: Callable[[], T], container: Container | None = None) -> T:
        """The result of an action, tried until it has what it needs."""
        said = ""
        while True:
            if self.why:
                raise Ending
            try:
                return action()
            except Unready as unready:
                if str(unready) != said:
                    said = str(unready)
                    if container is None:
                        self.event("FailedMount", f"MountVolume.SetUp failed: {said}")
                    else:
                        self.event("Failed", f"Error: {said}", container)
                        self._wait_in(container, unready.reason, said)
                self._pause(0.5)

    def _wait_in(self, container: Container, reason: str, message: str) -> None:
        if container.state.get("waiting", {}).get("reason") != reason:
            container.state = {"waiting": {"reason": reason, "message": message}}
            self._report()

    def _running(self, containers: list[Container], own: list[Mount], policy: str) -> bool:
        """Take in what has ended, start again what should be; whether there is something to wait for."""
        for container in containers:
            limit = container.spec.get("resources", {}).get("limits", {}).get("memory")
            if limit and "running" in container.state and container.memory() > quantity(limit):
                container.kill("OOMKilled")
            if container.poll():
                again = policy == "Always" or (policy == "OnFailure" and container.code != 0)
                self._report()
                if again:
                    self._back_off(container)
            elif container.again and time.monotonic() > container.again:
                container.restarts += 1
                self._start(container, own)
        return any("terminated" not in container.state for container in containers)

    def _back_off(self, container: Container) -> None:
        shortest, longest = RESTART_SECONDS
        wait = min(longest, shortest * 2**container.restarts)
        container.last, container.again = container.state, time.monotonic() + wait
        self.event("BackOff", f"Back-off restarting failed container {container.name}", container)
        self._wait_in(container, "CrashLoopBackOff", f"back-off {wait:.0f}s restarting failed container")

    def _stop(self) -> None:
        """End what runs, and say how the pod has ended."""
        if self.why == VANISHED:
            return
        running = [container for container in self.init + self.main if "running" in container.state]
        for container in running:
            self.event("Killing", f"Stopping container {container.name}", container, "Normal")
            container.terminate()
        while any("running" in container.state for container in running):
            for container in running:
                if time.monotonic() > self.deadline:
                    container.kill()
                container.poll()
            time.sleep(TICK / 2)
        done = all(container.code == 0 for container in self.main)
        self.phase = "Succeeded" if done and self.why == DELETED else "Failed"

    def _tick(self) -> None:
        if self.why:
            raise Ending
        time.sleep(TICK)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tick()

    @property
    def path(self) -> str:
        metadata = self.pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    def status(self) -> Object:
        """The PodStatus as the kubelet's part of it."""
        ended = self.phase in ("Succeeded", "Failed")
        ready = self.phase == "Running" and all("running" in container.state for container in self.main)
        reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(self.phase, "")
        reason = reason or ("" if ready else "ContainersNotReady")
        self._set("PodReadyToStartContainers", not ended)
        self._set("Initialized", self.initialized)
        self._set("ContainersReady", ready, reason)
        self._set("Ready", ready, reason)
        if self.why == PREEMPTED:
            self._set("DisruptionTarget", True, "TerminationByKubelet", SHUTDOWN)
        found = {
            "phase": self.phase,
            "startTime": self.started,
            "hostIP": ADDRESS,
            "hostIPs": [{"ip": ADDRESS}],
            "podIP": ADDRESS,
            "podIPs": [{"ip": ADDRESS}],
            "conditions": list(self.conditions.values()),
            "containerStatuses": [container.status() for container in self.main],
        }
        if self.init:
            found["initContainerStatuses"] = [container.status() for container in self.init]
        if self.why == PREEMPTED:
            found |= {"reason": "Terminated", "message": SHUTDOWN}
        return found

    def _set(self, kind: str, true: bool, reason: str = "", message: str = "") -> None:
        before, found = self.conditions.get(kind, {}), condition(kind, true, reason, message)
        if before.get("status") == found["status"]:
            found["lastTransitionTime"] = before["lastTransitionTime"]
        self.conditions[kind] = found

    def _report(self) -> None:
        patch = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": self.status()}
        for _ in range(20):
            try:
                self.host.api.patch(f"{self.path}/status", patch, "strategic")
                return
            except Refused as refused:
                if refused.status not in (404, 409, 422):
                    print(f"{self.path}: {refused}", file=sys.stderr, flush=True)
                if refused.status != 500:
                    return  # gone, or another pod of this name
            except httpx.TransportError as error:
                print(f"{self.path}: {error}", file=sys.stderr, flush=True)
            time.sleep(0.5)

    def _remove(self) -> None:
        """Take a deleted pod out of the API, and what it had on this machine away once it is gone."""
        if self.deleted and self.why != VANISHED:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
            with contextlib.suppress(httpx.TransportError):
                self.host.api.delete(self.path, options)
        if self.deleted:
            shutil.rmtree(self.directory, ignore_errors=True)

    def event(self, reason: str, message: str, container: Container | None = None, kind: str = "") -> None:
        """Write an Event about the pod."""
        metadata = self.pod["metadata"]
        about = {"kind": "Pod", "apiVersion": "v1"} | {key: metadata[key] for key in ("name", "namespace", "uid")}
        if container is not None:
            about["fieldPath"] = f"spec.containers{{{container.name}}}"
        body = {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": kind or ("Normal" if reason in ("Pulled", "Started") else "Warning"),
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet",
            "reportingInstance": self.node,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        with contextlib.suppress(Refused, httpx.TransportError):
            self.host.api.post(f"/api/v1/namespaces/{metadata['namespace']}/events", body)


def condition(kind: str, true: bool, reason: str = "", message: str = "") -> Object:
    """A condition of a pod or a node, as of now."""
    return {"type": kind, "status": str(true), "reason": reason, "message": message, "lastTransitionTime": now()}
