"""Small manifests, and a namespace of a cluster as a test looks at it."""

from typing import Any

from api import Object
from cluster import Cluster, wait_for

JOBSET = "jobset.x-k8s.io/v1alpha2"
WAIT_FOR_TERM = "trap 'echo asked to stop; exit 75' TERM; echo up; while :; do sleep 0.05; done"
ON_DISRUPTION = [{"type": "DisruptionTarget"}]


def pod(script: str, **more: Any) -> Object:
    """The spec of a pod with one container `job`; `container` in `more` adds to that."""
    container = {"name": "job", "image": "trainer:1", "command": ["sh", "-c", script]} | more.pop("container", {})
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container], **more}


def job(namespace: str, name: str, spec: Object, **more: Any) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"spec": spec}, **more},
    }


class Scene:
    """A namespace of a cluster as a test looks at it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        from kubernetes import client

        self.cluster = cluster
        self.namespace = namespace
        self.core = client.CoreV1Api(cluster.client)

    def see(self, kind: str, name: str) -> Object:
        group = {"jobs": "/apis/batch/v1", "jobsets": f"/apis/{JOBSET}", "pods": "/api/v1"}[kind]
        return self.cluster.api.get(f"{group}/namespaces/{self.namespace}/{kind}/{name}")

    def pods(self) -> list[Object]:
        found = self.cluster.api.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def events(self, reason: str) -> list[str]:
        found = self.cluster.api.get(f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return [event["message"] for event in found if event["reason"] == reason]

    def condition(self, kind: str, name: str, *types: str) -> Object:
        """The first true condition of one of these types, waited for."""

        def found() -> Object | None:
            conditions = self.see(kind, name).get("status", {}).get("conditions", [])
            return next((each for each in conditions if each["type"] in types and each["status"] == "True"), None)

        return wait_for(found, f"{name} to be one of {types}", 60)

    def running(self, count: int = 1, but: set[str] | None = None) -> list[Object]:
        """The pods that run and say "up", waited for; without those of the names `but`."""

        def found() -> list[Object]:
            up = [each for each in self.pods() if each["status"]["phase"] == "Running"]
            up = [each for each in up if each["metadata"]["name"] not in (but or set())]
            return up if len(up) == count and all("up" in self.log(each) for each in up) else []

        return wait_for(found, f"{count} running pods", 60)

    def log(self, pod: Object, **options: Any) -> str:
        return self.core.read_namespaced_pod_log(pod["metadata"]["name"], self.namespace, **options)


def state(pod: Object) -> Object:
    return pod["status"]["containerStatuses"][0]["state"]
