"""Programs written in Go that tests run: found where they are, else built from published modules into a cache.

The versions are those of controlplane/go.mod; a change there builds anew. A test that needs one skips
where there is neither the program nor a Go toolchain.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[1] / "controlplane"
PACKAGES = {
    "fake-gcs-server": "github.com/fsouza/fake-gcs-server",
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "jobset": "sigs.k8s.io/jobset",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
DEFINITIONS = {
    "kueue": ("sigs.k8s.io/kueue@v0.19.1", "config/components/crd/bases"),
    "prometheus-engine": ("github.com/GoogleCloudPlatform/prometheus-engine@v0.17.2", "charts/operator/crds"),
}
"""Where modules keep their CustomResourceDefinitions. Nothing of them is built, so go.mod knows nothing of them:
their requirements would move the versions of Kubernetes."""

TETHER = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""Put before a command, ends its process when the thread that started it ends, however that happens."""

VERSION = "k8s.io/component-base/version"
"""Package whose variables say which Kubernetes this is; a build outside its repository leaves them empty."""


def find_program(name: str) -> str:
    """The path of a program: of $KUBEBUILDER_ASSETS, of the cache, else built now."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).exists():
        return str(Path(assets) / name)
    program = cache() / name
    if not program.exists():
        if not has_go():
            pytest.skip(f"needs {name}: install Go, which builds it from {MODULE.name}/go.mod")
        build(name, program)
    return str(program)


def has_go() -> bool:
    """Whether programs can be built here."""
    return shutil.which("go") is not None


def cache() -> Path:
    """Where the programs of these versions lie."""
    root = Path(os.environ.get("NANOCODE_CACHE") or Path.home() / ".cache" / "nanocode")
    versions = hashlib.sha256((MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes())
    return root / "bin" / versions.hexdigest()[:12]


def build(name: str, target: Path) -> None:
    """Build a program, unless another process has just done it; it appears at `target` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(name, target)


def _build(name: str, target: Path) -> None:
    partial = target.with_name(f".{name}-{os.getpid()}")
    major, minor, _ = kubernetes().split(".")
    values = {"gitVersion": f"v{kubernetes()}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(["-s", "-w", *(f"-X {VERSION}.{key}={value}" for key, value in values.items())])
    command = ["go", "build", "-C", str(MODULE), "-trimpath", "-ldflags", flags, "-o", str(partial), PACKAGES[name]]
    subprocess.run(command, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    os.replace(partial, target)


def find_config() -> Path:
    """JobSet's manifests ("crd", "webhook" ...) of the version that is built."""
    return _manifests("jobset-config", PACKAGES["jobset"], "config/components")


def find_definitions(name: str) -> Path:
    """The directory with the resource definitions of one of DEFINITIONS."""
    module, source = DEFINITIONS[name]
    return _manifests(f"{name}-{module.partition('@')[2]}", module, source)


def _manifests(name: str, module: str, source: str) -> Path:
    """Manifests of a module, kept beside the programs under a name: a cache may outlive Go."""
    kept = cache() / name
    if not kept.exists():
        if not has_go():
            pytest.skip(f"needs the manifests of {module}: install Go, which finds them")
        command = ["go", "mod", "download", "-json", module]
        found = json.loads(subprocess.run(command, cwd=MODULE, check=True, capture_output=True).stdout)
        partial = kept.with_name(f".{name}-{os.getpid()}")
        root = Path(found["Dir"], source)
        for file in root.rglob("*.yaml"):
            copy = partial / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        os.replace(partial, kept)
    return kept


def kubernetes() -> str:
    """The version of Kubernetes, "1.2.3"."""
    lines = (MODULE / "go.mod").read_text().splitlines()
    return next(line.split()[1].removeprefix("v") for line in lines if line.strip().startswith("k8s.io/kubernetes v"))
