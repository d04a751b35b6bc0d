"""The images, built from the Dockerfile and run as pods run them: everything but the accelerators is real."""

import json
import os
import shlex
from pathlib import Path

import images
import pytest
from images import COMMIT, TARGETS, podman, run
from test_dockerfile import pins, sources

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.config import PROJECT
from nanocode_core.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

USER = 1000
# MB above the base image, with room for a new version of a package.
LARGEST = {"worker": 1700, "trainer-cpu": 1700, "trainer-tpu": 2200, "trainer-cuda": 7000}

LOOK = """
import json, shutil
from importlib import metadata
from packaging.requirements import Requirement
found = {d.name.lower().replace("_", "-").replace(".", "-"): d for d in metadata.distributions(path=[PLACE])}
unmet = []
for name, package in found.items():
    for line in package.requires or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        other = found.get(wanted.name.lower().replace("_", "-").replace(".", "-"))
        if other is None or not wanted.specifier.contains(other.version, prereleases=True):
            unmet.append(f"{name} wants {line}")
tools = [tool for tool in ("gcc", "cc", "make", "pip", "uv", "git", "pytest", "mypy", "ruff") if shutil.which(tool)]
print(json.dumps({"versions": {n: d.version for n, d in found.items()}, "unmet": unmet, "tools": tools}))
""".replace("PLACE", "'/opt/nanocode/lib/python3.11/site-packages'")

PLAN = """
import json
from nanocode_core.config import load_config
from nanocode_core.jobs.gke.manifest import render
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.jobs.stage import plan
from nanocode_core.store import Store
from tasks import STAGES
ON = {"pretrain": "v6e-1", "sft": "h100-1"}
jobs = []
for stage in STAGES:
    sets = ["run.store=/store", 'gke.environment={"JAX_PLATFORMS": "cpu"}']
    config = load_config("smoke", [*sets, f"gke.accelerator={ON.get(stage.name, 'cpu')}"])
    planned = plan(STAGES, config, Store.of(config))[stage.name]
    container = render(JobSpec.of(planned, config))["spec"]["template"]["spec"]["containers"][0]
    environment = {item["name"]: item["value"].replace("$$", "$") for item in container["env"]}
    jobs.append([stage.name, planned.fingerprint, container["image"], container["command"], environment])
print(json.dumps(jobs))
"""

CONFINED = """
import json, os, tempfile
from pathlib import Path
from nanocode_core.agent.sandbox import Sandbox
with Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
    held = sandbox.isolation
    command = "echo $(id -u) > mine; python -c 'print(6 * 7)'; cat mine; ls /tmp; cat /app/SOUL.md; "
    command += "python -c 'import socket; socket.socket()'"
    done = sandbox.run(command, Path(folder), 30)
print(json.dumps({"network": held.network, "processes": held.processes, "files": held.files, "output": done.output}))
"""

SERVE = """
prefect server start --host 127.0.0.1 > /tmp/log 2>&1 &
python -c '
import os, time, urllib.request
address = "http://127.0.0.1:" + os.environ["PREFECT_SERVER_API_PORT"]
for _ in range(300):
    try:
        urllib.request.urlopen(address + "/api/health", timeout=5).read()
        break
    except OSError:
        time.sleep(1)
print(urllib.request.urlopen(address + "/", timeout=30).read().decode())
' || cat /tmp/log
kill $!
"""


@pytest.fixture(scope="module", autouse=True)
def _base() -> None:
    images.need_tools()
    images.CACHE.mkdir(parents=True, exist_ok=True)
    images.make_base()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory that belongs to the images' user."""
    path = tmp_path / "volume"
    path.mkdir()
    os.chown(path, USER, USER)
    return path


def size(image: str) -> int:
    """Bytes of an image's files."""
    return int(podman("image", "inspect", "--format={{.Size}}", image).stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_has_what_its_lock_says_and_nothing_else(target: str) -> None:
    image = images.build(target)
    found = json.loads(run(image, "python", "-c", LOOK))
    locks = {"trainer-tpu": "requirements-tpu.lock", "trainer-cuda": "requirements-cuda.lock"}
    locked = pins("docker/trainer.lock" if target in locks else "docker/worker.lock")
    if target in locks:
        locked |= pins(locks[target])
    assert {name: locked[name.replace("_", "-")][0] for name in found["versions"]} == found["versions"]
    assert found["unmet"] == []
    assert found["tools"] == []

    told = run(image, "sh", "-c", "id -u; echo $NANOCODE_COMMIT; ls -A /app").split()
    tops = ["SOUL.md", "cli", "flows", "k8s", "nanocode_core", "prefect.yaml", "tasks"]
    assert told == [str(USER), COMMIT, *tops]
    # What an attacker could change: nothing but the places that pods mount anyway.
    search = r"find / -xdev ! -type l \( -user 1000 -o -group 1000 -o -perm -0002 \) -print 2>/dev/null || true"
    writable = run(image, "sh", "-c", search).split()
    assert set(writable) <= {"/tmp", "/var/tmp", "/run/lock", "/dev/shm"}

    megabytes = (size(image) - size("docker.io/library/debian:12.15-slim")) / 1e6
    print(f"{target}: {megabytes:.0f} MB above its base")
    assert megabytes < LARGEST[target]


def test_the_worker_s_image_runs_the_server_the_worker_and_the_command_line(volume: Path) -> None:
    image = images.build("worker")
    assert "speedrun" in run(image, "nanocode", "--help")
    assert "3.8.8" in run(image, "prefect", "version")
    assert "--pool" in run(image, "prefect", "worker", "start", "--help")
    assert "--pool" in run(image, "nanocode", "deploy", "--help")
    run(image, "python", "-c", "import prefect_kubernetes, flows.nanocode")
    environment = {"PREFECT_HOME": "/data", "PREFECT_SERVER_API_PORT": "4311", "PREFECT_UI_API_URL": "/api"}
    page = run(image, "sh", "-c", SERVE, environment=environment, volumes={volume: "/data"})
    assert "<title>" in page, page


def test_a_run_s_jobs_go_through_in_the_images_that_the_cluster_gives_them(volume: Path) -> None:
    """Planned in the worker's image like a flow run, each job then as the container of its pod."""
    worker = images.build("worker")
    store, scratch = volume / "store", volume / "scratch"
    for path in (store, scratch):
        path.mkdir()
        os.chown(path, USER, USER)
    jobs = json.loads(run(worker, "python", "-c", PLAN, volumes={store: "/store"}))
    used = set()
    for stage, fingerprint, image, command, environment in jobs:
        target = image.partition(":")[0]
        output = run(
            images.build(target), *command, environment=environment, volumes={store: "/store", scratch: "/scratch"}
        )
        record = Store(str(store)).record(stage, fingerprint)
        assert record is not None, output
        assert record.provenance["commit"] == COMMIT
        used.add(target)
    assert used == {"trainer-cpu", "trainer-tpu", "trainer-cuda"}
    # What a flow run says the embedded corpus is made of is what a job finds.
    look = "from nanocode_core.corpus.identity import *; print(source_identity(Config()))"
    assert run(worker, "python", "-c", look) == run("nanocode/trainer-cpu", "python", "-c", look)


def test_commands_of_a_model_are_confined_as_far_as_a_pod_allows() -> None:
    """The profile of containerd denies user namespaces: seccomp keeps the network away, Landlock the files."""
    image = images.build("trainer-cpu")
    found = json.loads(run(image, "python", "-c", CONFINED))
    with Sandbox() as sandbox:
        here = sandbox.isolation
    assert (found["network"], found["processes"], found["files"]) == (True, False, here.files)
    assert found["output"].startswith("42\n1000\n")
    assert "PermissionError" in found["output"]
    if here.files:
        assert "ls: cannot open directory '/tmp': Permission denied" in found["output"]
        assert "cat: /app/SOUL.md: Permission denied" in found["output"]


def test_the_accelerators_programs_are_there() -> None:
    """libtpu describes a slice without one; the CUDA plugin misses nothing but the driver."""
    tpu, cuda = images.build("trainer-tpu"), images.build("trainer-cuda")
    environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v6e-8"}
    code = "from jax.experimental import topologies as t; print(len(t.get_topology_desc(platform='tpu', "
    code += "topology_name='v6e:2x4', chips_per_host_bounds=(2, 4, 1)).devices))"
    assert run(tpu, "python", "-c", code, environment=environment).split()[-1] == "8"
    code = "import os, jax_plugins.xla_cuda12 as p; print(os.path.dirname(p.__file__))"
    place = run(cuda, "python", "-c", code, environment={"JAX_PLATFORMS": "cpu"}).split()[-1]
    missing = run(cuda, "sh", "-c", f"ldd {shlex.quote(place)}/*.so | grep 'not found' || true")
    assert {line.split()[0] for line in missing.splitlines()} <= {"libcuda.so.1"}


def test_files_beside_the_code_do_not_get_into_an_image(tmp_path: Path) -> None:
    """A build of everything that .dockerignore lets through, made of nothing else."""
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    out = tmp_path / "out"
    done = podman("build", f"--file={dockerfile}", f"--output=type=local,dest={out}", str(PROJECT))
    images.check(done)
    assert not [path for path in out.rglob("*") if path.name in ("__pycache__", "settings.env")]
    tops = {source.partition("/")[0] for source in sources()}
    assert {path.name for path in out.iterdir()} == tops
