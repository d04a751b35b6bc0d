"""The proving ground keeps its promises: what it shows of jobs, hosts and preemptions is what Kubernetes does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent import Agent
from api import Object, Refused
from cluster import Cluster, wait_for
from scene import JOBSET, ON_DISRUPTION, WAIT_FOR_TERM, Scene, job, pod, state

pytestmark = pytest.mark.k8s


@pytest.fixture
def scene(cluster: Cluster, namespace: str) -> Scene:
    return Scene(cluster, namespace)


def test_the_cluster_is_up_and_checks_what_it_is_given(cluster: Cluster, namespace: str) -> None:
    assert cluster.api.get("/version")["gitVersion"].startswith("v1.")
    wrong = job(namespace, "wrong", pod("true"), backoffLimits=1)
    with pytest.raises(Refused, match=r"\.spec\.backoffLimits: field not declared in schema"):
        cluster.apply([wrong], dry_run=True)
    policy = {"rules": [{"action": "Ignore", "onPodConditions": ON_DISRUPTION}]}
    always = job(namespace, "always", pod("true", restartPolicy="OnFailure"), podFailurePolicy=policy)
    with pytest.raises(Refused, match="restartPolicy: Invalid value"):
        cluster.apply([always])
    right = job(namespace, "right", pod("true"))
    assert cluster.apply([right], dry_run=True)[0]["spec"]["backoffLimit"] == 6
    assert not cluster.api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs")["items"]


def test_an_account_may_do_what_its_role_says(cluster: Cluster, namespace: str) -> None:
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException

    core = client.CoreV1Api(cluster.token(namespace, "default"))
    with pytest.raises(ApiException, match=r"pods is forbidden: User .*system:serviceaccount:.*:default"):
        core.list_namespaced_pod(namespace)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "reader", "namespace": namespace},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "reader", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    cluster.apply([role, binding])
    wait_for(lambda: not_refused(lambda: core.list_namespaced_pod(namespace)), "the role", 10)


def not_refused(action: Callable[[], Any]) -> bool:
    from kubernetes.client.exceptions import ApiException

    try:
        action()
    except ApiException:
        return False
    return True


INSPECT = """
echo "$INDEX $GREETING of $HOSTNAME at $IP, $LIMIT"; echo warning >&2
cat /settings/colour /made/note; test -d /dev/shm && echo memory > /dev/shm/file
python -c 'import nanocode_core' && echo found
echo the end > /dev/termination-log
"""
ACCOUNT = """
python - <<'END'
from kubernetes import client, config
config.load_incluster_config()
print("account", client.AuthenticationV1Api().create_self_subject_review({}).status.user_info.username)
END
"""


def test_a_job_gets_what_its_manifest_says(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    agent.add_node("machine")
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": namespace}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret", "namespace": namespace}}
    cluster.apply([settings | {"data": {"colour": "blue\n"}}, secret | {"stringData": {"WORD": "hello"}}])
    mounts = [
        {"name": "settings", "mountPath": "/settings"},
        {"name": "made", "mountPath": "/made"},
        {"name": "memory", "mountPath": "/dev/shm"},
    ]
    variables = [
        {"name": "INDEX", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['index']"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "GREETING", "value": "$(WORD)"},
    ]
    container = {
        "env": variables,
        "envFrom": [{"secretRef": {"name": "secret"}}],
        "volumeMounts": mounts,
        "resources": {"limits": {"memory": "2Gi"}},
    }
    first = {
        "name": "first",
        "image": "trainer:1",
        "command": ["sh", "-c", "echo prepared > /made/note"],
        "volumeMounts": mounts[1:2],
    }
    volumes = [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "made", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    account = f"account system:serviceaccount:{namespace}:default"
    script = f"{INSPECT}\n{ACCOUNT if agent.isolated else f'echo {account}'}\nexit 3"
    spec = pod(script, container=container, initContainers=[first], volumes=volumes)
    document = job(namespace, "job", spec, backoffLimit=0)
    document["spec"]["template"]["metadata"] = {"labels": {"index": "7"}}
    cluster.apply([document])
    assert scene.condition("jobs", "job", "Failed")["reason"] == "BackoffLimitExceeded"
    (done,) = scene.pods()
    ended = state(done)["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "the end\n")
    assert done["status"]["phase"] == "Failed"
    name = done["metadata"]["name"]
    lines = scene.log(done).splitlines()
    assert lines[0] == f"7 hello of {name} at 127.0.0.1, 2048"
    assert lines[1:] == ["warning", "blue", "prepared", "found", account]
    assert scene.log(done, tail_lines=1) == lines[-1] + "\n"
    assert scene.log(done, timestamps=True).splitlines()[0].startswith(ended["startedAt"][:13])
    if agent.isolated:
        assert not Path("/settings").exists()


def test_a_log_is_followed_while_it_is_written(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    agent.add_node("machine")
    cluster.apply([job(namespace, "job", pod("echo up; for i in 1 2 3; do sleep 0.5; echo $i; done"))])
    (running,) = scene.running()
    stream = scene.core.read_namespaced_pod_log(
        running["metadata"]["name"], namespace, follow=True, _preload_content=False
    )
    came = [(line, time.monotonic()) for line in stream]
    assert b"".join(line for line, _ in came) == b"up\n1\n2\n3\n"
    assert came[-1][1] - came[0][1] > 0.5


def test_a_container_starts_again_after_a_failure(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    agent.add_node("machine")
    container = {"volumeMounts": [{"name": "kept", "mountPath": "/kept"}]}
    script = "test -e /kept/file && echo again && exit 0; echo first; touch /kept/file; exit 1"
    volumes = [{"name": "kept", "emptyDir": {}}]
    spec = pod(script, container=container, volumes=volumes, restartPolicy="OnFailure")
    cluster.apply([job(namespace, "job", spec)])
    scene.condition("jobs", "job", "Complete")
    (only,) = scene.pods()
    (status,) = only["status"]["containerStatuses"]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 1)
    assert (scene.log(only, previous=True), scene.log(only)) == ("first\n", "again\n")


EXIT_MESSAGE = "failed with exit code 42 matching FailJob rule at index 0"


def test_a_policy_on_an_exit_code_ends_the_job(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    agent.add_node("machine")
    rule = {"action": "FailJob", "onExitCodes": {"containerName": "job", "operator": "In", "values": [42]}}
    cluster.apply([job(namespace, "job", pod("exit 42"), podFailurePolicy={"rules": [rule]}, backoffLimit=6)])
    failed = scene.condition("jobs", "job", "Failed")
    (only,) = scene.pods()
    name = f"{namespace}/{only['metadata']['name']}"
    assert failed["reason"] == "PodFailurePolicy"
    assert (
        failed["message"] == f"Container job for pod {name} failed with exit code 42 matching FailJob rule at index 0"
    )


def test_a_preempted_pod_comes_back_on_a_new_node(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    (old,) = agent.add_pool("v6e-1", accelerator="tpu-v6e-slice", topology="1x1", chips=1, spot=True)
    limits = {"resources": {"limits": {"google.com/tpu": "1"}}}
    tolerations = [{"key": key, "operator": "Exists"} for key in ("google.com/tpu", "cloud.google.com/gke-spot")]
    spec = pod(WAIT_FOR_TERM, container=limits, tolerations=tolerations)
    rule = {"action": "Ignore", "onPodConditions": ON_DISRUPTION}
    cluster.apply([job(namespace, "job", spec, podFailurePolicy={"rules": [rule]}, backoffLimit=0)])
    (first,) = scene.running()
    agent.preempt(old, grace=5)
    gone = scene.see("pods", first["metadata"]["name"])
    assert (gone["status"]["phase"], gone["status"]["reason"]) == ("Failed", "Terminated")
    assert state(gone)["terminated"]["exitCode"] == 75
    disrupted = [each for each in gone["status"]["conditions"] if each["type"] == "DisruptionTarget"]
    assert [(each["status"], each["reason"]) for each in disrupted] == [("True", "TerminationByKubelet")]
    with pytest.raises(Refused, match="not found"):
        cluster.api.get(f"/api/v1/nodes/{old}")
    wait_for(lambda: scene.events("FailedScheduling"), "a pod without a node", 30)
    agent.add_node("other", capacity={"google.com/tpu": "1"})
    (second,) = scene.running(but={first["metadata"]["name"]})
    assert second["spec"]["nodeName"] == "other"
    assert scene.see("jobs", "job")["status"].get("failed", 0) == 0


def test_a_process_that_does_not_stop_is_killed_after_its_grace(
    cluster: Cluster, agent: Agent, scene: Scene, namespace: str
) -> None:
    agent.add_node("machine")
    stubborn = pod("trap 'echo no' TERM; echo up; while :; do sleep 0.05; done", terminationGracePeriodSeconds=1)
    polite = pod(WAIT_FOR_TERM, terminationGracePeriodSeconds=30)
    for name, spec in (("stubborn", stubborn), ("polite", polite)):
        meta = {"name": name, "namespace": namespace, "finalizers": ["test/keep"]}
        cluster.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}])
    scene.running(2)
    before = time.monotonic()
    codes = {}
    for name in ("stubborn", "polite"):
        cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/{name}")
    for name in ("stubborn", "polite"):
        ended = wait_for(lambda name=name: state(scene.see("pods", name)).get("terminated"), f"{name}'s end", 20)
        codes[name] = ended["exitCode"]
        cluster.api.patch(f"/api/v1/namespaces/{namespace}/pods/{name}", {"metadata": {"finalizers": None}})
    assert codes == {"stubborn": 137, "polite": 75}
    assert time.monotonic() - before < 20
    wait_for(lambda: not scene.pods(), "the pods to be gone", 10)


EAT = "import time; print('up', flush=True); time.sleep(0.5); x = b'x' * 400_000_000; time.sleep(60)"


def test_a_container_over_its_memory_limit_is_killed(
    cluster: Cluster, agent: Agent, scene: Scene, namespace: str
) -> None:
    agent.add_node("machine")
    container = {"command": ["python", "-c", EAT], "resources": {"limits": {"memory": "200Mi"}}}
    cluster.apply([job(namespace, "job", pod("", container=container), backoffLimit=0)])
    scene.condition("jobs", "job", "Failed")
    (only,) = scene.pods()
    ended = state(only)["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_an_image_that_cannot_be_pulled_keeps_its_pod_waiting(
    cluster: Cluster, agent: Agent, scene: Scene, namespace: str
) -> None:
    agent.add_node("machine")
    agent.image_pull_error("^trainer:")
    cluster.apply([job(namespace, "job", pod("true"))])

    def reason() -> str:
        statuses = [each["status"].get("containerStatuses") for each in scene.pods()]
        return statuses[0][0]["state"].get("waiting", {}).get("reason", "") if statuses and statuses[0] else ""

    wait_for(lambda: reason() == "ImagePullBackOff", "the waiting pod", 30)
    assert 'Failed to pull image "trainer:1": not found' in scene.events("Failed")
    agent.image_pull_error(None)
    scene.condition("jobs", "job", "Complete")


def test_a_pod_without_a_node_says_why_it_waits(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    agent.add_node("machine")
    selector = {"cloud.google.com/gke-tpu-topology": "4x4"}
    cluster.apply([job(namespace, "job", pod("true", nodeSelector=selector))])
    (message,) = wait_for(lambda: scene.events("FailedScheduling"), "the event", 30)
    assert "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector." in message


HOSTS = """
until getent hosts set-workers-0-0.set && getent hosts set-workers-0-1.set; do sleep 0.1; done
echo "host $JOB_COMPLETION_INDEX of attempt $ATTEMPT"
trap 'exit 143' TERM; echo up; while :; do sleep 0.05; done
"""


def jobset(namespace: str, spec: Object, hosts: int, policy: Object) -> Object:
    """A JobSet `set` whose Jobs tell a preemption from a bug and from other failures."""
    codes = {"containerName": "job", "operator": "In", "values": [42]}
    rules = [
        {"action": "FailJob", "onPodConditions": ON_DISRUPTION},
        {"action": "FailJob", "onExitCodes": codes},
    ]
    inner = {
        "backoffLimit": 0,
        "completions": hosts,
        "parallelism": hosts,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": spec},
    }
    return {
        "apiVersion": JOBSET,
        "kind": "JobSet",
        "metadata": {"name": "set", "namespace": namespace},
        "spec": {"failurePolicy": policy, "replicatedJobs": [{"name": "workers", "template": {"spec": inner}}]},
    }


POLICY = {
    "maxRestarts": 1,
    "rules": [
        {
            "name": "bug",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": ["failed with exit code 42 "],
        },
        {
            "name": "preemption",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": ["has condition DisruptionTarget "],
        },
    ],
}


def test_a_jobset_starts_again_as_a_whole_after_a_preemption(
    cluster: Cluster, agent: Agent, scene: Scene, namespace: str
) -> None:
    nodes = agent.add_pool("v6e-8", 2, accelerator="tpu-v6e-slice", topology="2x4", chips=4)
    attempt = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"}}
    more = {"env": [{"name": "ATTEMPT", "valueFrom": attempt}], "resources": {"limits": {"google.com/tpu": "4"}}}
    tolerations = [{"key": "google.com/tpu", "operator": "Exists"}]
    cluster.apply([jobset(namespace, pod(HOSTS, container=more, tolerations=tolerations), 2, POLICY)])
    first = scene.running(2)
    index = "batch.kubernetes.io/job-completion-index"
    assert {each["metadata"]["labels"][index] for each in first} == {"0", "1"}
    assert {each["spec"]["nodeName"] for each in first} == set(nodes)
    agent.preempt(nodes[1], grace=1)
    agent.add_pool("v6e-8b", 1, accelerator="tpu-v6e-slice", topology="2x4", chips=4)
    second = scene.running(2, but={each["metadata"]["name"] for each in first})
    status = scene.see("jobsets", "set")["status"]
    assert (status["restarts"], status.get("restartsCountTowardsMax", 0)) == (1, 0)
    assert "terminalState" not in status
    logs = sorted(scene.log(each).splitlines()[-2] for each in second)
    assert logs == ["host 0 of attempt 1", "host 1 of attempt 1"]


@pytest.mark.parametrize(
    ("code", "reason", "restarts"), [(42, "FailJobSetFailurePolicyAction", 0), (1, "ReachedMaxRestarts", 1)]
)
def test_a_jobset_counts_the_restarts_after_other_failures(
    code: int, reason: str, restarts: int, cluster: Cluster, agent: Agent, scene: Scene, namespace: str
) -> None:
    agent.add_node("machine")
    cluster.apply([jobset(namespace, pod(f"exit {code}"), 1, POLICY)])
    assert scene.condition("jobsets", "set", "Failed")["reason"] == reason
    status = scene.see("jobsets", "set")["status"]
    assert (status["restarts"], status.get("restartsCountTowardsMax", 0)) == (restarts, restarts)


@pytest.mark.slow
def test_a_node_without_power_is_noticed(cluster: Cluster, agent: Agent, scene: Scene, namespace: str) -> None:
    agent.add_node("machine")
    cluster.apply([job(namespace, "job", pod(WAIT_FOR_TERM))])
    scene.running()
    agent.add_node("other")  # where all nodes of a zone are silent, Kubernetes blames the network and evicts nobody
    agent.power_off("machine")
    assert scene.pods()[0]["status"]["phase"] == "Running"  # as far as anybody knows

    def ready() -> str:
        conditions = cluster.api.get("/api/v1/nodes/machine")["status"]["conditions"]
        return next(each["status"] for each in conditions if each["type"] == "Ready")

    wait_for(lambda: ready() == "Unknown", "the node's lease to expire", 60)
    wait_for(lambda: "deletionTimestamp" in scene.pods()[0]["metadata"], "the pod's eviction", 30)
    conditions = scene.pods()[0]["status"]["conditions"]
    assert "DeletionByTaintManager" in [each.get("reason") for each in conditions]


def test_plain_processes_find_their_volumes_where_they_lie(cluster: Cluster, scene: Scene, namespace: str) -> None:
    made = {"name": "made", "emptyDir": {}}
    container = {
        "volumeMounts": [{"name": "made", "mountPath": "/made/here"}],
        "env": [{"name": "FILE", "value": "/made/here/file"}],
    }
    with cluster.agent(isolate=False) as agent:
        agent.add_node("machine")
        script = "echo hello > $FILE; cat /made/here/file; sh -c 'exit 7'"
        cluster.apply([job(namespace, "job", pod(script, container=container, volumes=[made]), backoffLimit=0)])
        scene.condition("jobs", "job", "Failed")
        (only,) = scene.pods()
        assert state(only)["terminated"]["exitCode"] == 7
        assert scene.log(only) == "hello\n"


LONELY = """
import sys, time
from cluster import Cluster
with Cluster() as cluster:
    agent = cluster.agent()
    agent.add_node("machine")
    container = {"name": "job", "image": "none", "command": ["sh", "-c", "sleep 1000 & sleep 1000"]}
    metadata = {"name": "pod", "namespace": "default"}
    cluster.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}])
    path = "/api/v1/namespaces/default/pods/pod"
    while cluster.api.get(path)["status"]["phase"] != "Running":
        time.sleep(0.1)
    print("up", flush=True)
    time.sleep(1000)
"""


def test_nothing_outlives_a_test_process_that_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    here = Path(__file__).parent
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "servers")]),
        "TMPDIR": str(tmp_path),
    }
    test = subprocess.Popen([sys.executable, "-c", LONELY], env=env, stdout=subprocess.PIPE, text=True)
    assert test.stdout is not None
    with test.stdout:
        assert test.stdout.readline() == "up\n"
        started = psutil.Process(test.pid).children(recursive=True)
        assert [each for each in started if each.name() == "sleep"]
        test.send_signal(signal.SIGKILL)
        test.wait()
        gone, alive = psutil.wait_procs(started, timeout=20)
    assert len(gone) >= 9
    assert not alive
