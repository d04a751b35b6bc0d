"""What we would send to a cluster, judged by a real API server: every job, every permission."""

import pytest
from cluster import Cluster
from installation import build, rendered
from kubernetes.client import ApiClient, AuthorizationV1Api

from nanocode_core.planning.accelerators import accelerators

pytestmark = [pytest.mark.k8s]


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> list[dict]:
    """The overlay of GKE, applied."""
    documents = sorted(build("overlays/gke"), key=lambda document: document["kind"] != "Namespace")
    # Its pods have no images here.
    cluster.apply([document for document in documents if document["kind"] != "Deployment"])
    cluster.apply([document for document in documents if document["kind"] == "Deployment"], dry_run=True)
    return documents


@pytest.mark.parametrize("name", accelerators())
def test_the_server_takes_a_job_for_every_accelerator(cluster: Cluster, installed: list[dict], name: str) -> None:
    for extra in ([], ["gke.spot=false", "gke.queue=tpus", "gke.priority=system-node-critical"]):
        body = rendered(name, "pretrain", *extra, run="7d7f3f6e-0000-4000-8000-000000000000")
        (made,) = cluster.apply([body], dry_run=True)
        assert made["kind"] == body["kind"]


ALLOWED = {
    ("batch", "jobs"): {"create", "get", "list", "watch", "patch", "delete"},
    ("jobset.x-k8s.io", "jobsets"): {"create", "get", "list", "patch", "delete"},
    ("", "pods"): {"list", "watch"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"list"},
}
OTHERS = [
    ("", "secrets"),
    ("", "configmaps"),
    ("", "serviceaccounts"),
    ("", "serviceaccounts/token"),
    ("", "pods/status"),
    ("", "pods/exec"),
    ("", "pods/eviction"),
    ("", "services"),
    ("", "persistentvolumeclaims"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("networking.k8s.io", "networkpolicies"),
]
VERBS = ("create", "get", "list", "watch", "patch", "update", "delete", "deletecollection")


def may(client: ApiClient, verb: str, group: str, resource: str, namespace: str | None) -> bool:
    name, _, sub = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": name, "subresource": sub, "namespace": namespace}
    review = AuthorizationV1Api(client).create_self_subject_access_review({"spec": {"resourceAttributes": attributes}})
    return bool(review.status.allowed)


def test_the_worker_may_do_its_work_and_nothing_else(cluster: Cluster, installed: list[dict]) -> None:
    client = cluster.token("nanocode", "nanocode-worker")
    for (group, resource), verbs in (ALLOWED | {key: set[str]() for key in OTHERS}).items():
        found = {verb for verb in VERBS if may(client, verb, group, resource, "nanocode")}
        assert found == verbs, resource
        assert not any(may(client, verb, group, resource, "kube-system") for verb in VERBS), resource
    for resource in ("nodes", "namespaces", "persistentvolumes"):
        assert not any(may(client, verb, "", resource, None) for verb in VERBS), resource


def test_the_jobs_and_the_teacher_may_do_nothing(cluster: Cluster, installed: list[dict]) -> None:
    for account in ("nanocode-trainer", "nanocode-teacher"):
        client = cluster.token("nanocode", account)
        for group, resource in [*ALLOWED, *OTHERS]:
            assert not any(may(client, verb, group, resource, "nanocode") for verb in VERBS), (account, resource)
