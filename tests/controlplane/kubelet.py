"""The process of a node agent: it obeys the orders that agent.py writes to its standard input.

An order is a line of JSON, [name, arguments]; the answer is one too: {"answer": ...} or {"error": ...}. When
the input ends, the agent ends with all that it has started.
"""

import contextlib
import json
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from api import Api, Object, Refused
from containers import Container, Host, can_isolate
from logs import LogServer
from names import Names
from nodes import Node
from pods import DELETED, PREEMPTED, VANISHED, Pod

BEAT_SECONDS = 2.0


class Kubelet:
    """All nodes of an agent."""

    def __init__(self, options: Object) -> None:
        self.api = Api(options["kubeconfig"])
        root = Path(options["directory"])
        isolate = options["isolate"] and can_isolate(root)
        self.host = Host(self.api, root, Names(), options["environment"], isolate)
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        certificates = [Path(options[name]) for name in ("certificate", "key", "authority")]
        self.server = LogServer(self.find, *certificates)
        self.port = self.server.server_address[1]
        for target in (self.server.serve_forever, self.follow_pods, self.follow_services, self.beat):
            Thread(target=target, daemon=True).start()

    def find(self, namespace: str, name: str, container: str) -> Container | None:
        """A container of a pod here."""
        for pod in reversed(self.pods.values()):
            metadata = pod.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return next((each for each in pod.init + pod.main if each.name == container), None)
        return None

    def beat(self) -> None:
        """Renew the leases, for ever."""
        while True:
            for node in list(self.nodes.values()):
                node.beat(self.api)
            time.sleep(BEAT_SECONDS)

    def follow_services(self) -> None:
        """Learn the names of Services, for ever."""
        for kind, service in self.api.watch("/api/v1/services"):
            if kind != "LISTED":
                self.host.names.see_service(kind, service)

    def follow_pods(self) -> None:
        """Start and end pods as the API has them, for ever."""
        for kind, pod in self.api.watch("/api/v1/pods"):
            try:
                if kind == "LISTED":
                    there = {item["metadata"]["uid"] for item in pod["items"]}
                    for uid in set(self.pods) - there:
                        self.pods.pop(uid).end(VANISHED, 0)
                else:
                    self.host.names.see_pod(kind, pod)
                    self.see(kind, pod)
            except Exception:
                traceback.print_exc()

    def see(self, kind: str, pod: Object) -> None:
        """Take in a change of a pod."""
        metadata, uid = pod["metadata"], pod["metadata"]["uid"]
        ours = self.pods.get(uid)
        node = self.nodes.get(pod["spec"].get("nodeName", ""))
        ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if kind == "DELETED":
            if ours is not None:
                self.pods.pop(uid).end(VANISHED, 0)
        elif ours is None and node is not None and node.alive and not ended:
            ours = Pod(self.host, pod)
            if node.leaving:
                self.reject(ours)
                return
            self.pods[uid] = ours
            ours.thread.start()
        if kind != "DELETED" and ours is not None and "deletionTimestamp" in metadata:
            ours.end(DELETED, metadata.get("deletionGracePeriodSeconds", 30))

    def reject(self, pod: Pod) -> None:
        """Refuse a pod that came to a node which shuts down."""
        message = "Pod was rejected as the node is shutting down."
        status = {"phase": "Failed", "reason": "NodeShutdown", "message": message}
        self.api.patch(f"{pod.path}/status", {"status": status}, "strategic")

    def order_add_node(self, **options: Any) -> None:
        """Register a node."""
        node = Node(**options)
        self.nodes[node.name] = node
        try:
            node.register(self.api, self.port)
        except Refused:
            del self.nodes[node.name]
            raise

    def order_remove_node(self, name: str) -> None:
        """Take a node away, with what runs there."""
        self.order_power_off(name)
        self.api.delete(f"/api/v1/nodes/{name}")
        del self.nodes[name]

    def order_power_off(self, name: str) -> None:
        """End all of a node at once; the API hears nothing of it."""
        self.nodes[name].alive = False
        for pod in self.on(name):
            pod.end(VANISHED, 0)
            pod.thread.join()

    def order_preempt(self, names: list[str], grace: float, wait: bool) -> None:
        """Preempt nodes, all at once."""
        for name in names:
            self.nodes[name].leaving = True
        threads = [Thread(target=self.preempt, args=(name, grace)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads if wait else []:
            thread.join()

    def preempt(self, name: str, grace: float) -> None:
        """Announce a node's end, end its pods within `grace` seconds, then take it away."""
        node = self.nodes[name]
        node.announce_end(self.api)
        pods = self.on(name)
        for pod in pods:
            pod.end(PREEMPTED, grace)
        for pod in pods:
            pod.thread.join()
        self.order_remove_node(name)

    def on(self, name: str) -> list[Pod]:
        """The pods of a node that live."""
        return [pod for pod in list(self.pods.values()) if pod.node == name and not pod.over.is_set()]

    def order_image_pull_error(self, pattern: str | None) -> None:
        """Let pulls of images that match a pattern fail; None: no more."""
        self.host.broken = re.compile(pattern) if pattern else None

    def order_isolated(self) -> bool:
        """Whether containers have a world of their own."""
        return self.host.isolate

    def order_close(self) -> None:
        """End all pods, and take them and the nodes out of the API."""
        pods = [pod for name in self.nodes for pod in self.on(name)]
        for name in list(self.nodes):
            self.order_remove_node(name)
        for pod in pods:
            self.api.delete(pod.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.pod["metadata"]["uid"]}})


def main() -> None:
    """Obey until the input ends."""
    options = json.loads(sys.argv[1])
    kubelet = Kubelet(options)
    print(json.dumps({"answer": "started"}), flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"answer": getattr(kubelet, f"order_{name}")(**arguments)}
        except (Refused, KeyError, httpx.TransportError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    for pod in list(kubelet.pods.values()):
        for container in pod.init + pod.main:
            with contextlib.suppress(OSError):
                container.kill()
    shutil.rmtree(options["directory"], ignore_errors=True)


if __name__ == "__main__":
    main()
