"""The JobSet controller: its configuration, its resource definition and its webhooks, all of its own module."""

from pathlib import Path

import yaml
from api import Api, Object, Refused
from certs import Authority
from programs import find_config

PODS = 1
"""Index of the webhook of pods in either manifest; a patch limits it to the pods of JobSets."""


def definition() -> list[Object]:
    """The CustomResourceDefinition."""
    return list(yaml.safe_load_all((find_config() / "crd/bases/jobset.x-k8s.io_jobsets.yaml").read_text()))


def configure(directory: Path, authority: Authority, webhook: int, health: int) -> list[str]:
    """Write the configuration; the options with which the controller starts."""
    serving = directory / "jobset"
    serving.mkdir()
    for source, name in zip(authority.issue("jobset"), ("tls.crt", "tls.key"), strict=True):
        source.rename(serving / name)
    config = {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(serving)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
    }
    path = directory / "jobset.yaml"
    path.write_text(yaml.safe_dump(config))
    return [f"--config={path}"]


def webhooks(port: int, bundle: str) -> list[Object]:
    """The webhook configurations, by URL instead of by a Service, since the controller runs in no pod."""
    root = find_config() / "webhook"
    found = list(yaml.safe_load_all((root / "manifests.yaml").read_text()))
    for configuration, patch in zip(found, ("mutating-patch", "validating-patch"), strict=True):
        (change,) = yaml.safe_load((root / "patches" / f"{patch}.yaml").read_text())
        assert (change["op"], change["path"]) == ("replace", f"/webhooks/{PODS}")
        configuration["webhooks"][PODS] = change["value"]
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}
    return found


def works(api: Api) -> bool:
    """Whether a JobSet gets its defaults, which come from a webhook."""
    pod = {"spec": {"containers": [{"name": "job", "image": "none"}], "restartPolicy": "Never"}}
    probe = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"replicatedJobs": [{"name": "workers", "template": {"spec": {"template": pod}}}]},
    }
    try:
        return "startupPolicy" in api.apply(probe, dry_run=True)["spec"]
    except Refused:
        return False
