"""What of k8s/ the tests install in the cluster, what kustomize makes of it, and the jobs made from k8s/jobs."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml
from api import Object, Refused
from cluster import Cluster, wait_for
from programs import find_definitions, find_program

from nanocode_core.config import PROJECT, load_config
from nanocode_core.jobs.gke.manifest import render
from nanocode_core.jobs.spec import JobSpec

NAMESPACE = "nanocode"
SETTINGS = """\
NANOCODE_STORE=gs://project-nanocode/store
NANOCODE_WORK=gs://project-nanocode-work
NANOCODE_IMAGES=region-docker.pkg.dev/project/nanocode
NANOCODE_TAG=0123456
WORKER_IMAGE=region-docker.pkg.dev/project/nanocode/worker:0123456
"""
KINDS = {
    "kueue": ("resourceflavors", "clusterqueues", "localqueues", "workloadpriorityclasses"),
    "prometheus-engine": ("podmonitorings",),
}


def install_accounts(cluster: Cluster) -> None:
    """The namespace with its service accounts and their rights; again: nothing changes."""
    documents = list(yaml.safe_load_all((PROJECT / "k8s" / "base" / "accounts.yaml").read_text()))
    for document in documents:
        document["metadata"]["namespace"] = NAMESPACE
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *documents])


@functools.cache
def build(name: str) -> tuple[Object, ...]:
    """The documents of a directory of k8s/ ("overlays/gke"), built as deploy/gke does it, in a copy."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "k8s")
        shutil.copytree(PROJECT / "k8s", copy)
        (copy / "overlays" / "gke" / "settings.env").write_text(SETTINGS)
        command = [find_program("kubectl"), "kustomize", str(copy / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def install_definitions(cluster: Cluster) -> None:
    """The resource definitions of Kueue and of Google's managed Prometheus that k8s/ needs, without controllers."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # they are long
    files = [next(find_definitions(name).glob(f"*_{kind}.yaml")) for name, kinds in KINDS.items() for kind in kinds]
    definitions = cluster.apply([yaml.load(file.read_text(), loader) for file in files])
    for spec in (one["spec"] for one in definitions):
        (version,) = [item["name"] for item in spec["versions"] if item["storage"]]
        known = (f"{spec['group']}/{version}", spec["names"]["kind"])
        wait_for(lambda known=known: _knows(cluster, *known), known[1], 60)


def _knows(cluster: Cluster, version: str, kind: str) -> bool:
    try:
        return bool(cluster.api.resource(version, kind))
    except Refused:
        return False


def rendered(accelerator: str, stage: str = "pretrain", *settings: str, run: str | None = None) -> Object:
    """The Job or JobSet of a stage of d24, as the launcher would send it."""
    spec = JobSpec(
        stage=stage,
        version=1,
        build="a:b",
        fingerprint="0123456789abcdef",
        identity={},
        inputs={},
        config=load_config("d24", [f"gke.accelerator={accelerator}", "run.store=gs://bucket/x", *settings]),
        accelerated=accelerator != "cpu",
    )
    return render(spec, run)
