"""A fake Google Cloud with a fake cluster in it: `gcloud` and `kubectl` as far as deploy/gke calls them.

The real ones can't be had in a test. This one keeps what was made in a JSON file (FAKE_CLOUD), notes each call
in a second one beside it, and is unforgiving where deploy/gke could go wrong: it refuses to make what is there,
to make what needs something that isn't there, to remove what is in use, and any command that it doesn't know.
It says nothing about flags, values and times: whether Google takes those, only Google shows.

FAKE_FAIL="container clusters create: MESSAGE" makes one command fail.
"""

import json
import os
import re
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_CLOUD"])
PROJECT, NUMBER = "my-project", "123456789012"
GROUPS = {
    "compute networks subnets": "subnet",
    "compute networks": "network",
    "compute routers nats": "nat",
    "compute routers": "router",
    "iam service-accounts": "account",
    "artifacts docker images": "image",
    "artifacts repositories": "registry",
    "storage buckets": "bucket",
    "container clusters": "cluster",
    "container node-pools": "pool",
}
GOES_WITH = {"nat": "router", "image": "registry", "pool": "cluster"}
"""What is removed together with the thing that it needs."""


class Refused(Exception):
    """What the command says on stderr before it ends with 1."""


def main(program, arguments):
    state = json.loads(STATE.read_text()) if STATE.exists() else {"things": {}, "policies": {}, "cluster": {}}
    # A file of its own, since the two ends of a pipe run at the same time.
    with STATE.with_suffix(".calls").open("a") as calls:
        calls.write(json.dumps([program, *arguments]) + "\n")
    words = [a for a in arguments if not a.startswith("--")]
    flags = {k: v for k, _, v in (a[2:].partition("=") for a in arguments if a.startswith("--"))}
    try:
        failing, _, message = os.environ.get("FAKE_FAIL", "").partition(": ")
        if failing and " ".join(words).startswith(failing):
            raise Refused(message)
        output = (gcloud if program == "gcloud" else kubectl)(state, words, flags)
        code = 0
    except Refused as refusal:
        print(f"ERROR: ({program}) {refusal}", file=sys.stderr)
        output, code = None, 1
    # In one step: the other end of a pipe may be reading.
    partial = STATE.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(state, indent=1))
    partial.replace(STATE)
    if output:
        print(output)
    return code


def gcloud(state, words, flags):
    if flags.get("project") != PROJECT or "quiet" not in flags:
        raise Refused("a call without its project, or one that would ask")
    things, command = state["things"], " ".join(words)
    if command == f"projects describe {PROJECT}":
        return NUMBER
    if command == "services list":
        return "\n".join(state.get("services", []))
    if words[:2] == ["services", "enable"]:
        state["services"] = sorted({*state.get("services", []), *words[2:]})
        return None
    if words[:2] == ["builds", "submit"]:
        return build(state, words[2], flags)
    if words[:2] == ["storage", "rm"]:
        return delete(state, f"bucket {words[2]}")
    if words[:2] == ["storage", "du"]:
        return f"{3 * 2**30}  {thing(state, f'bucket {words[-1]}')['name']}"
    if command == "compute disks list":
        return "\n".join(state.get("disks", []))
    if "-iam-policy" in words[2 if words[0] != "projects" else 1]:
        return policy(state, words, flags)
    group = next((g for g in GROUPS if command.startswith(g + " ")), None)
    if group is None:
        raise Refused(f"unknown command: {command}")
    kind, (verb, *names) = GROUPS[group], words[len(group.split()) :]
    if verb == "list":
        found = [thing for key, thing in things.items() if key.startswith(kind + " ")]
        return "\n".join(shown(one, flags["format"]) for one in found)
    (name,) = names
    key = f"{kind} {name}"
    if verb == "describe":
        if kind == "account":
            key = f"account {name.split('@')[0]}"
        return shown(thing(state, key), flags["format"])
    if verb == "create":
        return create(state, kind, name, flags)
    if verb == "delete":
        return delete(state, key.split("@")[0])
    if (kind, verb) == ("bucket", "update"):
        thing(state, key)["labels"].update(pairs(flags["update-labels"]))
    elif (kind, verb) == ("registry", "set-cleanup-policies"):
        thing(state, key)["cleanupPolicies"] = json.loads(Path(flags["policy"]).read_text())
    elif (kind, verb) == ("cluster", "get-credentials"):
        thing(state, key)
        state["context"] = f"gke_{PROJECT}_{flags['location']}_{name}"
    else:
        raise Refused(f"unknown command: {command}")
    return None


def create(state, kind, name, flags):
    made = {"name": name, "needs": [], "flags": flags}
    needs = {"network": "network", "subnetwork": "subnet", "router": "router", "cluster": "cluster"}
    made["needs"] = [f"{needs[flag]} {value}" for flag, value in flags.items() if flag in needs]
    if "service-account" in flags:
        made["needs"].append(f"account {flags['service-account'].split('@')[0]}")
    for need in made["needs"]:
        thing(state, need)
    if f"{kind} {name}" in state["things"]:
        raise Refused(f"ALREADY_EXISTS: {kind} {name}")
    if kind == "network":
        made["description"] = flags["description"]
    elif kind == "account":
        made["email"] = f"{name}@{PROJECT}.iam.gserviceaccount.com"
    elif kind == "registry":
        made["labels"] = pairs(flags["labels"])
    elif kind == "bucket":
        made["labels"] = {}
        if "lifecycle-file" in flags:
            made["lifecycle"] = json.loads(Path(flags["lifecycle-file"]).read_text())
    elif kind == "cluster":
        made |= {"resourceLabels": pairs(flags["labels"]), "status": "RUNNING", "currentMasterVersion": "1.33.1"}
        state["identity pool"] = True
        state["things"]["pool default-pool"] = {"name": "default-pool", "needs": [f"cluster {name}"], "nodes": 1}
    elif kind == "pool":
        made["config"] = {"machineType": flags["machine-type"], "spot": "True" if "spot" in flags else ""}
        made["autoscaling"] = {"maxNodeCount": flags["max-nodes"]}
        made["nodes"] = int(flags["num-nodes"])
    state["things"][f"{kind} {name}"] = made


def delete(state, key):
    gone = thing(state, key)
    for other, needing in list(state["things"].items()):
        if key in needing["needs"]:
            if GOES_WITH.get(other.split()[0]) != key.split()[0]:
                raise Refused(f"{key} is used by {other}")
            del state["things"][other]
    del state["things"][key]
    state["policies"].pop(key, None)
    if key.startswith("account "):
        # As in Google's: roles of a removed account stay in every policy, under another name.
        for bindings in state["policies"].values():
            for binding in bindings:
                binding[1] = binding[1].replace(f"serviceAccount:{gone['email']}", f"deleted:{gone['email']}")
    if key.startswith("cluster "):
        state["cluster"] = {}
        state.pop("context", None)


def policy(state, words, flags):
    *group, verb, name = words
    key = name if group == ["projects"] else f"{GROUPS[' '.join(group)]} {name}"
    if group != ["projects"]:
        thing(state, key)
    bindings = state["policies"].setdefault(key, [])
    if verb == "get-iam-policy":
        return "\n".join(",".join(binding) for binding in bindings)
    binding = [flags["role"], flags["member"]]
    if verb == "add-iam-policy-binding":
        kind, _, member = binding[1].partition(":")
        if kind == "serviceAccount" and f"account {member.split('@')[0]}" not in state["things"]:
            raise Refused(f"INVALID_ARGUMENT: Service account {member} does not exist.")
        if kind == "principal" and "identity pool" not in state:
            raise Refused("INVALID_ARGUMENT: Identity Pool does not exist")
        if binding in bindings:
            raise Refused("made twice")
        bindings.append(binding)
    else:
        bindings.remove(binding)
    return None


def build(state, source, flags):
    import tarfile  # takes longer than all the rest, and only builds need it

    with tarfile.open(source) as archive:
        if "deploy/gke" not in archive.getnames():
            raise Refused("the source lacks deploy/gke")
    thing(state, f"account {flags['service-account'].split('/')[-1].split('@')[0]}")
    thing(state, "bucket " + re.match("gs://[^/]+", flags["gcs-source-staging-dir"])[0])
    values = pairs(flags["substitutions"])
    text = Path(flags["config"]).read_text().split("images:")[1]
    for image in re.findall(r"- (\$\{_REGISTRY\}/\S+)", text):
        name = image.replace("${_REGISTRY}", values["_REGISTRY"]).replace("${_TAG}", values["_TAG"])
        registry = f"registry {values['_REGISTRY'].split('/')[-1]}"
        state["things"][f"image {name}"] = {"name": name, "image_summary": {"digest": "sha256:0"}, "needs": [registry]}


def kubectl(state, words, flags):
    if "context" not in state or flags.get("context") != state["context"]:
        raise Refused(f"no context {flags.get('context')}")
    objects = state["cluster"]
    match words:
        case ["get", "namespace", name]:
            return f"namespace/{name}" if f"namespace/{name}" in objects else None
        case ["create", "secret", "generic", name] if flags.get("dry-run") == "client":
            data = dict(line.split("=", 1) for line in sys.stdin.read().splitlines())
            return json.dumps({"kind": "Secret", "name": name, "namespace": flags["namespace"], "data": data})
        case ["apply"] if flags.get("filename") == "-":
            document = json.load(sys.stdin)
            if f"namespace/{document['namespace']}" not in objects:
                raise Refused(f"namespaces {document['namespace']!r} not found")
            objects.setdefault(f"secret/{document['name']}", {}).update(document["data"])
        case ["apply"] if flags.get("kustomize", "").startswith("k8s/teacher/"):
            if "namespace/nanocode" not in objects:
                raise Refused("namespaces 'nanocode' not found")
            objects["teacher"] = flags["kustomize"]
        case ["delete", kinds] if flags.get("selector") == "app.kubernetes.io/component=teacher":
            if not {"deployment", "service", "configmap"} <= set(kinds.split(",")):
                raise Refused("something of the teacher is left")
            objects.pop("teacher", None)
        case ["apply"] if "kustomize" in flags:
            objects[f"overlay/{flags['kustomize']}"] = Path(flags["kustomize"], "settings.env").read_text()
            objects["namespace/nanocode"] = {}
            state["disks"] = ["pvc-of-prefect"]
        case ["apply"]:
            name, version = re.search(r"kubernetes-sigs/(\w+)/releases/download/([\w.]+)/", flags["filename"]).groups()
            objects[f"deployment/{name}-controller-manager"] = f"a-registry/{name}:{version}"
        case ["get", "deployment", name]:
            return objects.get(f"deployment/{name}")
        case ["rollout", "status", name]:
            if name not in objects:
                raise Refused(f"{name} not found")
        case ["wait", "deployment"]:
            pass
        case ["delete", "namespace", name]:
            del objects[f"namespace/{name}"]
            state["disks"] = []
        case ["get", "nodes"]:
            pools = [thing for key, thing in state["things"].items() if key.startswith("pool ")]
            return "\n".join(pool["name"] for pool in pools for _ in range(pool["nodes"]))
        case ["get", "deployments"] if flags.get("selector") == "app.kubernetes.io/component=teacher":
            return " of 1 ready" if "teacher" in objects else None  # as kubectl prints it while none is ready
        case ["get", "jobsets,jobs"]:
            return state.get("jobs")
        case _:
            raise Refused(f"unknown command: {' '.join(words)}")
    return None


def thing(state, key):
    if key not in state["things"]:
        raise Refused(f"NOT_FOUND: {key} was not found")
    return state["things"][key]


def shown(found, form):
    kind, fields = re.fullmatch(r"(value|csv\[no-heading\])\((.*)\)", form).groups()
    return ("\t" if kind == "value" else ",").join(text(found, field) for field in fields.split(","))


def text(found, field):
    for part in field.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return found if isinstance(found, str) else json.dumps(found)


def pairs(value):
    return dict(pair.split("=", 1) for pair in value.split(","))
