"""The images of docker/, really built and run: podman builds the Dockerfile on a Debian that debootstrap makes.

No registry of images is asked, and no daemon runs. Everything lies in a storage of its own in the cache (20 GB),
where a later run finds the layers that have not changed.
"""

import functools
import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from nanocode_core.config import PROJECT

DOCKERFILE = PROJECT / "docker" / "Dockerfile"
TARGETS = ("worker", "trainer-cpu", "trainer-tpu", "trainer-cuda")
COMMIT = "0123456789ab"
CACHE = Path(os.environ.get("NANOCODE_CACHE") or Path.home() / ".cache" / "nanocode") / "images"
PROFILE = Path("/usr/share/containers/seccomp.json")
# What containerd's default profile allows with CAP_SYS_ADMIN only, unlike podman's.
ADMIN = {"unshare", "setns", "mount", "umount", "umount2", "pivot_root", "clone3"}


def need_tools() -> None:
    """Skip where images can't be built."""
    missing = [name for name in ("podman", "runc", "debootstrap") if not shutil.which(name)]
    if missing or not PROFILE.exists():
        pytest.skip("needs podman, runc and debootstrap: apt-get install podman runc debootstrap")
    if os.geteuid() != 0:
        pytest.skip("needs root, for debootstrap and for containers with limits of their own")


def podman(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """A call of podman on the tests' storage; its output is captured."""
    storage = ["--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run"), "--runtime", "runc"]
    command = ["podman", *storage, *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def make_base() -> None:
    """The Dockerfile's base image: Debian's smallest system, of the release that the tag names."""
    tag = re.findall(r"^FROM (debian:\S+)", DOCKERFILE.read_text(), re.MULTILINE)[0]
    assert tag.startswith("debian:12."), "name the release of another base here"
    if podman("image", "exists", f"docker.io/library/{tag}").returncode == 0:
        return
    root, archive = CACHE / "debian", CACHE / "debian.tar"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    check(subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True))
    subprocess.run(["tar", "--create", "--directory", root, "--file", archive, "."], check=True)
    check(podman("import", str(archive), f"docker.io/library/{tag}"))
    shutil.rmtree(root)
    archive.unlink()


@functools.cache
def build(target: str) -> str:
    """Build an image of the Dockerfile, once in a session; its name."""
    name = f"nanocode/{target}"
    options = ["--pull=never", "--isolation=chroot", "--network=host", "--layers", f"--target={target}"]
    options += [f"--build-arg=COMMIT={COMMIT}", f"--file={DOCKERFILE}", f"--tag={name}", *_pip_settings()]
    check(podman("build", *options, str(PROJECT)))
    return name


def _pip_settings() -> list[str]:
    """Options that give the build's pip the certificates and the index which this machine's pip has."""
    settings = CACHE / "pip"
    settings.mkdir(parents=True, exist_ok=True)
    lines = ["[global]"]
    if certificates := os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        shutil.copyfile(certificates, settings / "certificates.pem")
        lines.append("cert = /run/pip/certificates.pem")
    if index := os.environ.get("PIP_INDEX_URL"):
        lines.append(f"index-url = {index}")
    (settings / "pip.conf").write_text("\n".join(lines) + "\n")
    return [f"--volume={settings}:/run/pip:ro", f"--volume={settings / 'pip.conf'}:/etc/pip.conf:ro"]


def run(
    image: str,
    *command: str,
    environment: dict[str, str] | None = None,
    volumes: dict[Path, str] | None = None,
    code: int = 0,
) -> str:
    """Run a command as a pod of ours does, and return its output.

    The user is the image's, the file system read-only but for /tmp and the volumes, without capabilities, and with
    a seccomp profile like containerd's.
    """
    hard = [resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
    files, processes = (str(min(limit, 4096) if limit > 0 else 4096) for limit in hard)
    options = ["--rm", "--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    options += [f"--security-opt=seccomp={_seccomp()}", f"--ulimit=nofile={files}", f"--ulimit=nproc={processes}"]
    options += [f"--env={name}={value}" for name, value in (environment or {}).items()]
    options += [f"--volume={place}:{inside}" for place, inside in (volumes or {}).items()]
    done = podman("run", *options, image, *command)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def _seccomp() -> Path:
    profile = json.loads(PROFILE.read_text())
    for rule in profile["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("includes"):
            rule["names"] = [name for name in rule["names"] if name not in ADMIN]
    path = CACHE / "seccomp.json"
    path.write_text(json.dumps(profile))
    return path


def check(done: "subprocess.CompletedProcess[str]") -> None:
    """Raise with the end of the output of a command that failed."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
