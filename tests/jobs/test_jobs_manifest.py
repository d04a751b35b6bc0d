"""The Kubernetes objects of jobs: what they say, for every accelerator there is."""

import json
import re

import pytest

from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.jobs.gke.launcher import GKELauncher
from nanocode_core.jobs.gke.manifest import TEMPLATES, job_name, render
from nanocode_core.jobs.spec import BAD_INPUT, BUG, PREEMPTED, VARIABLE, JobSpec
from nanocode_core.planning.accelerators import accelerators, find_accelerator

FINGERPRINT = "0123456789abcdef"


def spec(*sets: str, stage: str = "pretrain", accelerated: bool = True) -> JobSpec:
    config = load_config("smoke", ["run.store=gs://bucket/x", "run.launcher=gke", *sets])
    return JobSpec(
        stage=stage,
        version=1,
        build="a:b",
        fingerprint=FINGERPRINT,
        identity={},
        inputs={},
        config=config,
        accelerated=accelerated,
    )


def pod_of(body: dict) -> dict:
    if body["kind"] == "Job":
        return body["spec"]["template"]["spec"]
    return body["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def variables(body: dict) -> dict[str, object]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in pod_of(body)["containers"][0]["env"]}


@pytest.mark.parametrize("name", accelerators())
def test_one_host_is_a_job_and_several_are_a_jobset(name: str) -> None:
    accelerator = find_accelerator(name)
    body = render(spec(f"gke.accelerator={name}"))
    limits = pod_of(body)["containers"][0]["resources"]["limits"]
    assert body["kind"] == ("JobSet" if accelerator.hosts > 1 else "Job")
    chips = sum(int(value) for key, value in limits.items() if key in ("google.com/tpu", "nvidia.com/gpu"))
    assert chips * accelerator.hosts == (0 if name == "cpu" else accelerator.chips)
    if accelerator.hosts > 1:
        job = body["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (accelerator.hosts,) * 2 + (0,)
        assert variables(body)["JAX_NUM_PROCESSES"] == str(accelerator.hosts)
        own = f"nanocode-pretrain-{FINGERPRINT[:10]}"
        assert variables(body)["JAX_COORDINATOR_ADDRESS"] == f"{own}-workers-0-0.{own}:8476"


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("v6e-8", ("tpu-v6e-slice", "2x4", "ct6e-standard-8t")),
        ("v6e-16", ("tpu-v6e-slice", "4x4", "ct6e-standard-4t")),
        ("v5e-1", ("tpu-v5-lite-podslice", "1x1", "ct5lp-hightpu-1t")),
        ("v5p-16", ("tpu-v5p-slice", "2x2x2", "ct5p-hightpu-4t")),
    ],
)
def test_a_slice_is_found_by_chip_topology_and_machine(name: str, selector: tuple[str, ...]) -> None:
    pod = pod_of(render(spec(f"gke.accelerator={name}")))
    labels = ("cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology")
    found = pod["nodeSelector"]
    assert tuple(found[key] for key in (*labels, "node.kubernetes.io/instance-type")) == selector
    assert found["cloud.google.com/gke-spot"] == "true"
    assert {item["key"] for item in pod["tolerations"]} == {"cloud.google.com/gke-spot", "google.com/tpu"}


def test_only_training_and_evaluation_take_the_accelerator() -> None:
    body = render(spec("gke.accelerator=v6e-16", stage="tokens", accelerated=False))
    assert body["kind"] == "Job"
    assert "google.com/tpu" not in pod_of(body)["containers"][0]["resources"]["limits"]
    assert pod_of(body)["securityContext"]["runAsNonRoot"]


def test_only_what_drives_a_tpu_runs_as_root() -> None:
    """The images' own user is 1000, so a pod that needs root has to say so."""
    tpu, other = pod_of(render(spec())), pod_of(render(spec("gke.accelerator=h100-8")))
    assert tpu["containers"][0]["securityContext"] == {"privileged": True, "runAsUser": 0, "runAsGroup": 0}
    assert "runAsNonRoot" not in tpu["securityContext"]
    assert other["securityContext"]["runAsUser"] == 1000
    assert other["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_name_follows_from_the_fingerprint_and_is_one_of_kubernetes() -> None:
    assert render(spec()) == render(spec())
    name = job_name("synthetic", FINGERPRINT)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    # JobSet appends "-workers-0-<host>-<five letters>" to what is a pod's name, of 63 characters at most.
    assert len(f"{name}-workers-0-63-abcde") <= 63


def test_the_spec_arrives_as_it_was_given_dollars_and_all() -> None:
    given = spec('gke.environment={"PATTERN": "$(HOME)$$"}', "gke.images=host/project/nanocode", "gke.tag=abc")
    body = render(given, run="run-1")
    value = variables(body)[VARIABLE]
    assert "$$(HOME)$$$$" in value
    assert JobSpec.model_validate_json(value.replace("$$", "$")) == given
    assert pod_of(body)["containers"][0]["image"] == "host/project/nanocode/trainer-tpu:abc"
    assert body["metadata"]["labels"]["nanocode/run"] == "run-1"


def test_queue_priority_account_and_secret() -> None:
    body = render(spec("gke.priority=low", stage="synthetic", accelerated=False))
    pod = pod_of(body)
    assert pod["priorityClassName"] == "low"
    assert not any("kueue" in label for label in body["metadata"]["labels"])
    # In a queue the priority is the queue's, and no PriorityClass of that name has to exist.
    queued = render(spec("gke.queue=tpus", "gke.priority=urgent"))
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "urgent"
    assert "priorityClassName" not in pod_of(queued)
    assert pod["serviceAccountName"] == "nanocode-trainer"
    assert not pod["automountServiceAccountToken"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "nanocode-secrets", "optional": True}}]
    assert "envFrom" not in pod_of(render(spec()))["containers"][0]


def test_the_templates_know_the_exit_codes() -> None:
    for name in ("job", "jobset"):
        text = (TEMPLATES / f"{name}.yaml").read_text()
        assert f"[{BAD_INPUT}, {BUG}]" in text
        assert f"[{PREEMPTED}, 143]" in text


def test_what_can_not_be_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"unknown accelerator 'v6e-9'"):
        render(spec("gke.accelerator=v6e-9"))
    with pytest.raises(UserError, match=r"gke.hosts is for jobs on cpu; v6e-16 has 4 hosts"):
        render(spec("gke.accelerator=v6e-16", "gke.hosts=2"))
    with pytest.raises(UserError, match=r"needs a store that the cluster reaches: set run.store=gs://"):
        GKELauncher().run(spec(f"run.store={tmp_path}"), print)


def test_secrets_do_not_travel_in_the_spec(monkeypatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HF_TOKEN", "hf-very-secret")
    assert "very-secret" not in json.dumps(render(spec(stage="synthetic", accelerated=False)))
