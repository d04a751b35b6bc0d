"""What kustomize makes of k8s/, as a whole: valid for the real API server, complete, confined, consistent.

The server judges what is written, not what it does: no network plugin enforces the policies here, no Kueue
admits, and no adapter serves the figure that the autoscaler asks for.
"""

import re
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
from api import Object, Refused
from cluster import Cluster, wait_for
from installation import build, install_accounts, install_definitions, rendered
from programs import DEFINITIONS, find_program

from nanocode_core.config import PROJECT
from nanocode_core.planning.accelerators import accelerators

pytestmark = [pytest.mark.k8s]

DIRECTORIES = ["base", "overlays/dev", "overlays/gke", "teacher/tpu", "teacher/gpu", "kueue"]
TEACHERS = ["teacher/tpu", "teacher/gpu"]
DEPLOYED = ["overlays/gke", *TEACHERS]


@pytest.fixture(scope="module")
def ready(cluster: Cluster) -> Cluster:
    """The cluster with the namespace, its accounts, and every kind of object that k8s/ has."""
    install_accounts(cluster)
    install_definitions(cluster)
    return cluster


def pod(workload: Object) -> Object:
    """The pod template of a Deployment, Job or JobSet."""
    if workload["kind"] == "JobSet":
        workload = workload["spec"]["replicatedJobs"][0]["template"]
    return workload["spec"]["template"]


def the(documents: tuple[Object, ...], kind: str) -> Object:
    (found,) = [item for item in documents if item["kind"] == kind]
    return found


def deployments(*directories: str) -> list[Object]:
    return [item for name in directories for item in build(name) if item["kind"] == "Deployment"]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_the_server_takes_every_manifest(ready: Cluster, name: str) -> None:
    made = ready.apply(list(build(name)), dry_run=True)
    assert {item["kind"] for item in made} == {item["kind"] for item in build(name)}
    assert len(made) > 3


def test_a_field_that_does_not_exist_is_refused(ready: Cluster) -> None:
    for name, kind in (("kueue", "ResourceFlavor"), ("teacher/gpu", "PodMonitoring"), ("overlays/gke", "Deployment")):
        document = deepcopy(next(item for item in build(name) if item["kind"] == kind))
        document.setdefault("spec", {})["surprise"] = 1
        with pytest.raises(Refused, match="surprise"):
            ready.apply([document], dry_run=True)


def test_every_container_says_what_it_takes_and_how_it_is_judged() -> None:
    for item in deployments("overlays/dev", *DEPLOYED):
        inner = pod(item)["spec"]
        for container in [*inner.get("initContainers", []), *inner["containers"]]:
            name = f"{item['metadata']['name']}/{container['name']}"
            assert re.search(r":(?!latest$)[\w.-]+$|@sha256:[0-9a-f]{64}$", container["image"]), name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            # One that listens is asked whether it lives; of another only its end tells.
            assert "ports" not in container or "livenessProbe" in container, name


def admitted(cluster: Cluster, namespace: str, template: Object) -> bool:
    """Whether Pod Security lets a pod of a template into a namespace."""
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "generateName": "pod-"}}
    # An account of another namespace, and nothing that Pod Security looks at.
    body["spec"] = {key: value for key, value in template["spec"].items() if key != "serviceAccountName"}
    try:
        return bool(cluster.api.post(f"/api/v1/namespaces/{namespace}/pods", body, dryRun="All"))
    except Refused as refused:
        if "violates PodSecurity" not in str(refused):
            raise
        return False


def test_all_but_the_pods_on_tpus_pass_the_strictest_standard(ready: Cluster) -> None:
    level = "pod-security.kubernetes.io/enforce"
    for name in ("restricted", "baseline"):
        ready.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": f"pods-{name}", "labels": {level: name}},
            }
        )
    workloads = [*deployments(*DEPLOYED), *(rendered(name) for name in ("cpu", "h100-8", "v6e-8", "v6e-16"))]
    seen = set()
    for workload in workloads:
        template = pod(workload)
        on_tpu = "cloud.google.com/gke-tpu-topology" in template["spec"].get("nodeSelector", {})
        seen.add(on_tpu)
        for name in ("restricted", "baseline"):
            assert admitted(ready, f"pods-{name}", template) != on_tpu, (name, workload["metadata"]["name"])
    assert seen == {True, False}


def selects(selector: Object, labels: Object) -> bool:
    """Whether a label selector of the API selects an object with labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(item["operator"] == "In" for item in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(item["key"]) in item["values"] for item in expressions
    )


def test_whatever_selects_pods_selects_some() -> None:
    workloads = [*deployments(*DEPLOYED), *(rendered("cpu", stage) for stage in ("synthetic", "eval"))]
    labels = [pod(item)["metadata"]["labels"] for item in workloads]
    for item in (item for name in DEPLOYED for item in build(name)):
        selector = None
        match item["kind"]:
            case "Service":
                selector = {"matchLabels": item["spec"]["selector"]}
            case "NetworkPolicy":
                selector = item["spec"]["podSelector"]
            case "PodDisruptionBudget" | "PodMonitoring":
                selector = item["spec"]["selector"]
        if selector is not None:
            assert any(selects(selector, each) for each in labels), f"{item['kind']} {item['metadata']['name']}"


def test_what_runs_commands_of_a_model_reaches_no_private_address_but_those_it_needs() -> None:
    (policy,) = [item for item in build("base") if item["metadata"]["name"] == "jobs-with-a-sandbox"]
    assert policy["spec"]["policyTypes"] == ["Egress"]
    for stage, held in {"synthetic": True, "eval": True, "pretrain": False}.items():
        labels = pod(rendered("cpu", stage))["metadata"]["labels"]
        assert selects(policy["spec"]["podSelector"], labels) == held, stage
    wide = [rule for rule in policy["spec"]["egress"] if any("except" in to.get("ipBlock", {}) for to in rule["to"])]
    (rule,) = wide
    assert rule["ports"] == [{"port": 443}]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(
        rule["to"][0]["ipBlock"]["except"]
    )


@pytest.mark.parametrize("name", TEACHERS)
def test_jobs_find_the_teacher_under_the_address_of_the_guide(name: str) -> None:
    documents = build(name)
    service, deployment = the(documents, "Service"), the(documents, "Deployment")
    (port,) = service["spec"]["ports"]
    address = f"http://{service['metadata']['name']}:{port['port']}/v1"
    assert f"synthetic.base_url={address}" in (PROJECT / "docs" / "gke.md").read_text()
    (policy,) = [item for item in build("base") if item["metadata"]["name"] == "teacher"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": port["port"]}]
    assert any(
        selects(of["podSelector"], pod(rendered("cpu", "synthetic"))["metadata"]["labels"]) for of in rule["from"][:1]
    )
    (container,) = pod(deployment)["spec"]["containers"]
    assert f"--port={port['port']}" in container["args"]
    assert container["ports"] == [{"name": "http", "containerPort": port["port"]}]
    assert pod(deployment)["spec"]["serviceAccountName"] == "nanocode-teacher"


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_spans_the_accelerator_that_it_asks_for(name: str) -> None:
    (container,) = pod(the(build(name), "Deployment"))["spec"]["containers"]
    spec = pod(the(build(name), "Deployment"))["spec"]
    # The machine is one that a job can have: the same selector, but for spot, and the same number of chips.
    accelerator = {"teacher/tpu": "v6e-8", "teacher/gpu": "h100-1"}[name]
    ours = pod(rendered(accelerator, "pretrain", "gke.spot=false"))["spec"]
    assert spec["nodeSelector"] == ours["nodeSelector"]
    chips = {key: value for key, value in ours["containers"][0]["resources"]["limits"].items() if "/" in key}
    assert chips.items() <= container["resources"]["limits"].items()
    parallel = [arg.partition("=")[2] for arg in container["args"] if arg.startswith("--tensor-parallel-size")]
    assert (parallel or ["1"]) == list(chips.values())
    assert all(item in spec["tolerations"] for item in ours["tolerations"])


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_has_the_time_to_finish_what_it_answers(name: str) -> None:
    spec = pod(the(build(name), "Deployment"))["spec"]
    (container,) = spec["containers"]
    (drain,) = [int(arg.partition("=")[2]) for arg in container["args"] if arg.startswith("--shutdown-timeout=")]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teacher_grows_by_a_figure_that_is_collected(ready: Cluster, name: str) -> None:
    documents = build(name)
    scaler, monitoring = the(documents, "HorizontalPodAutoscaler"), the(documents, "PodMonitoring")
    deployment = the(documents, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "what the autoscaler decides would be undone by every apply"
    (metric,) = scaler["spec"]["metrics"]
    source, figure, kind = metric["pods"]["metric"]["name"].split("|")
    assert (source, kind) == ("prometheus.googleapis.com", "gauge")
    (endpoint,) = monitoring["spec"]["endpoints"]
    (relabeling,) = endpoint["metricRelabeling"]
    assert re.fullmatch(relabeling["regex"], figure)
    assert endpoint["port"] in [port["name"] for port in pod(deployment)["spec"]["containers"][0]["ports"]]
    none = deepcopy(scaler)
    none["spec"]["minReplicas"] = 0
    with pytest.raises(Refused, match="minReplicas"):
        ready.apply([none], dry_run=True)


def test_kubectl_makes_a_teacher_and_leaves_nothing_of_it(ready: Cluster, tmp_path: Path) -> None:
    """With the commands that deploy/gke gives, as its golden files have them."""
    place = [f"--kubeconfig={ready.kubeconfig}", f"--cache-dir={tmp_path}"]

    def kubectl(*arguments: str) -> str:
        command = [find_program("kubectl"), *arguments, *place]
        return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout

    def all_of_it() -> set[str]:
        kinds = "deployment,service,hpa,podmonitoring,pdb,configmap,replicaset,pod"
        label = "--selector=app.kubernetes.io/component=teacher"
        return set(kubectl("get", kinds, label, "--namespace=nanocode", "--output=name").split())

    for name in ("up", "down"):
        golden = (PROJECT / "tests" / "deploy" / "golden" / f"teacher-{name}.txt").read_text().replace("\\\n", " ")
        (command,) = [line for line in golden.splitlines() if re.match("kubectl (apply|delete)", line)]
        kubectl(*[word for word in shlex.split(command)[1:] if not word.startswith("--context=")])
        if name == "up":
            made = {one.partition("/")[0].partition(".")[0] for one in all_of_it()}
            assert made >= {item["kind"].lower() for item in build("teacher/tpu")}
    wait_for(lambda: not all_of_it(), "the end of the teacher", 60)


@pytest.mark.parametrize("name", [name for name in accelerators() if not name.startswith("tpu7x")])
def test_the_queue_has_a_kind_of_machine_and_a_quota_for_every_job(name: str) -> None:
    documents = build("kueue")
    flavors = {
        item["metadata"]["name"]: item.get("spec", {}).get("nodeLabels", {})
        for item in documents
        if item["kind"] == "ResourceFlavor"
    }
    groups = the(documents, "ClusterQueue")["spec"]["resourceGroups"]
    assert {flavor["name"] for group in groups for flavor in group["flavors"]} == flavors.keys()
    spec = pod(rendered(name))["spec"]
    for resource in spec["containers"][0]["resources"]["requests"]:
        (group,) = [group for group in groups if resource in group["coveredResources"]]
        # As Kueue does it: of the selector, only labels count that some flavor of the group has.
        keys = {key for flavor in group["flavors"] for key in flavors[flavor["name"]]}
        wanted = {key: value for key, value in spec["nodeSelector"].items() if key in keys}
        assert any(wanted == flavors[flavor["name"]] for flavor in group["flavors"]), (name, resource)


def test_the_queue_is_the_one_that_the_guide_names() -> None:
    documents = build("kueue")
    local = the(documents, "LocalQueue")
    assert local["spec"]["clusterQueue"] == the(documents, "ClusterQueue")["metadata"]["name"]
    assert local["metadata"]["namespace"] == "nanocode"
    assert f"gke.queue={local['metadata']['name']}" in (PROJECT / "docs" / "gke.md").read_text()


def test_the_definitions_are_those_of_the_kueue_that_is_installed() -> None:
    (version,) = re.findall(r"^KUEUE_VERSION=(\S+)$", (PROJECT / "deploy/lib/kubernetes.sh").read_text(), re.MULTILINE)
    assert DEFINITIONS["kueue"][0].endswith(f"@{version}")
