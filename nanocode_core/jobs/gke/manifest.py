"""The Kubernetes object of a job: the templates under k8s/jobs, filled in.

One host is a Job, several are a JobSet. The name follows from the fingerprint, so whoever wants the
same artifact finds the same object.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nanocode_core.config import PROJECT
from nanocode_core.jobs.gke.placement import Placement, place
from nanocode_core.jobs.spec import VARIABLE, JobSpec

TEMPLATES = PROJECT / "k8s" / "jobs"
WORKERS = "workers"
"""The replicated job of a JobSet."""
CONTAINER = "job"
PORT = 8476
"""Where host 0 waits for the others (jax.distributed)."""
STAGE, FINGERPRINT, JOB, RUN = "nanocode/stage", "nanocode/fingerprint", "nanocode/job", "nanocode/run"
"""Labels; JOB is on the pods too, RUN names the Prefect run that follows the job."""
QUEUE, QUEUE_PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
WITH_SECRETS = ("corpus", "synthetic", "eval")
"""Stages that may talk to others: the hub, a teacher, a judge."""


def job_name(stage: str, fingerprint: str) -> str:
    """The name of the job that builds an artifact."""
    return f"nanocode-{stage}-{fingerprint[:10]}"


def render(spec: JobSpec, run: str | None = None) -> dict[str, Any]:
    """The Job or JobSet of a spec.

    Args:
        run: id of the run that asks for it.

    Raises:
        UserError: an unknown accelerator.
    """
    settings = spec.config.gke
    placement = place(settings.accelerator if spec.accelerated else "cpu", settings)
    several = placement.hosts > 1
    body = deepcopy(_template("jobset" if several else "job"))
    name = job_name(spec.stage, spec.fingerprint)
    labels = {STAGE: spec.stage, FINGERPRINT: spec.fingerprint, JOB: name, **({RUN: run} if run else {})}
    body["metadata"] |= {"name": name, "namespace": settings.namespace}
    body["metadata"]["labels"] |= labels
    if settings.queue:
        body["metadata"]["labels"] |= {QUEUE: settings.queue}
        if settings.priority:
            body["metadata"]["labels"] |= {QUEUE_PRIORITY: settings.priority}
    pod = _pod(spec, placement, labels)
    if not several:
        body["spec"]["template"] = pod
        return body
    job = body["spec"]["replicatedJobs"][0]["template"]["spec"]
    job |= {"parallelism": placement.hosts, "completions": placement.hosts, "template": pod}
    if spec.accelerated and "google.com/tpu" in placement.resources:
        # All hosts of a slice on one node pool, and no other job on it.
        topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        body["metadata"]["annotations"] = topology
    return body


def _pod(spec: JobSpec, placement: Placement, labels: dict[str, str]) -> dict[str, Any]:
    """The pod template of a job."""
    settings, pod = spec.config.gke, deepcopy(_template("pod"))
    pod["metadata"]["labels"] |= labels
    inner, container = pod["spec"], pod["spec"]["containers"][0]
    inner["serviceAccountName"] = settings.service_account
    inner["nodeSelector"] = dict(placement.selector)
    inner["tolerations"] += [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in placement.tolerated
    ]
    if settings.priority and not settings.queue:
        inner["priorityClassName"] = settings.priority
    prefix = f"{settings.images.rstrip('/')}/" if settings.images else ""
    container["image"] = f"{prefix}{placement.image}:{settings.tag}"
    container["resources"] = {"requests": dict(placement.resources), "limits": dict(placement.resources)}
    if placement.image == "trainer-tpu":
        # The driver locks memory and opens device files; GKE's examples for slices run so.
        # The images' own user could not, whatever the container is granted.
        container["securityContext"] = {"privileged": True, "runAsUser": 0, "runAsGroup": 0}
    else:
        inner["securityContext"] |= {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
        container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # Kubernetes replaces $(NAME) in values; $$ is a dollar.
    container["env"].append({"name": VARIABLE, "value": spec.model_dump_json().replace("$", "$$")})
    container["env"] += [{"name": name, "value": value} for name, value in sorted(settings.environment.items())]
    if spec.stage in WITH_SECRETS:
        container["envFrom"] = [{"secretRef": {"name": settings.secret, "optional": True}}]
    if placement.hosts > 1:
        name = labels[JOB]
        container["env"] += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{WORKERS}-0-0.{name}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(placement.hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        ]
        container["ports"] = [{"containerPort": PORT}]
    return pod


@cache
def _template(name: str) -> dict[str, Any]:
    template: dict[str, Any] = yaml.safe_load(Path(TEMPLATES, f"{name}.yaml").read_text())
    return template
