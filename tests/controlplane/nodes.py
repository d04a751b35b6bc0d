"""Nodes as a kubelet registers them, and the labels and taints that GKE gives the nodes of a pool."""

import contextlib
from dataclasses import dataclass, field

import httpx
from api import Api, Object, Refused, now
from environment import ADDRESS
from pods import condition

CAPACITY = {"cpu": "180", "memory": "720Gi", "ephemeral-storage": "100Gi", "pods": "110"}
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
LEASE_SECONDS = 40

TERMINATION_TAINT = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
"""What GKE puts on a node of whose preemption it has heard."""


@dataclass
class Node:
    """A node of the agent."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Object] = field(default_factory=list)
    capacity: dict[str, str] = field(default_factory=dict)
    """More than CAPACITY, or other: {"google.com/tpu": "4"}."""
    alive: bool = True
    """Whether its lease is renewed."""
    leaving: bool = False

    def register(self, api: Api, port: int) -> None:
        """Create the Node, ready, with the port of the kubelet's API; Refused where it exists."""
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        capacity = CAPACITY | self.capacity
        status = {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": kind, "address": ADDRESS} for kind in ("InternalIP", "Hostname")],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "nodeInfo": {"kubeletVersion": "v0.0.0-agent", "operatingSystem": "linux"},
            "conditions": [self._ready(True)],
        }
        made = api.post(
            "/api/v1/nodes",
            {
                "metadata": {"name": self.name, "labels": labels | self.labels},
                "spec": {"taints": self.taints, "providerID": f"gce://test/us-east5-b/{self.name}"},
                "status": status,
            },
        )
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": made["metadata"]["uid"]}
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now(fine=True)}
        lease = {"metadata": {"name": self.name, "ownerReferences": [owner]}, "spec": spec}
        api.delete(f"{LEASES}/{self.name}")
        api.post(LEASES, lease)

    def beat(self, api: Api) -> None:
        """Renew the lease."""
        if self.alive:
            with contextlib.suppress(Refused, httpx.TransportError):
                api.patch(f"{LEASES}/{self.name}", {"spec": {"renewTime": now(fine=True)}})

    def announce_end(self, api: Api) -> None:
        """Say that the machine shuts down: nothing new is to come here."""
        self.leaving = True
        path = f"/api/v1/nodes/{self.name}"
        taints = [*api.get(path)["spec"].get("taints", []), TERMINATION_TAINT]
        api.patch(path, {"spec": {"taints": taints}})
        api.patch(f"{path}/status", {"status": {"conditions": [self._ready(False)]}}, "strategic")

    def _ready(self, ready: bool) -> Object:
        if ready:
            found = condition("Ready", True, "KubeletReady", "kubelet is posting ready status")
        else:
            found = condition("Ready", False, "KubeletNotReady", "node is shutting down")
        return found | {"lastHeartbeatTime": now()}


def pool(
    name: str,
    nodes: int,
    *,
    accelerator: str = "",
    topology: str = "",
    machine: str = "",
    chips: int = 0,
    gpus: int = 0,
    spot: bool = False,
) -> list[Node]:
    """The nodes of a GKE node pool: "tpu-v6e-slice", "4x4", "ct6e-standard-4t" with 4 chips each, for example."""
    labels = {
        "cloud.google.com/gke-nodepool": name,
        "topology.kubernetes.io/region": "us-east5",
        "topology.kubernetes.io/zone": "us-east5-b",
    }
    if machine:
        labels["node.kubernetes.io/instance-type"] = machine
    taints, capacity = [], {}
    if chips:
        labels |= {"cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": topology}
        taints.append({"key": "google.com/tpu", "value": "present", "effect": "NoSchedule"})
        capacity["google.com/tpu"] = str(chips)
    if gpus:
        labels["cloud.google.com/gke-accelerator"] = accelerator
        taints.append({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"})
        capacity["nvidia.com/gpu"] = str(gpus)
    if spot:
        labels["cloud.google.com/gke-spot"] = "true"
        taints.append({"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"})
    return [Node(f"gke-nanocode-{name}-{index}", labels, taints, capacity) for index in range(nodes)]
