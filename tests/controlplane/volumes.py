"""The volumes of a pod as directories of this machine.

Known: emptyDir (medium Memory is a directory like any other), configMap, secret, downwardAPI, projected
with real service account tokens, hostPath. Contents are those at the pod's start; later changes do not
arrive. Any other kind keeps its pod waiting, with the event FailedMount.
"""

from dataclasses import dataclass
from pathlib import Path

from api import Api, Object
from environment import Unready, contents, field, resource


@dataclass(frozen=True)
class Mount:
    """A file or directory of this machine that appears in a container."""

    source: Path
    target: str
    read_only: bool = False


def prepare(api: Api, pod: Object, root: Path) -> dict[str, Path]:
    """Make the volumes of a pod under `root`, by name; Unready where something is missing as yet."""
    return {volume["name"]: _make(api, pod, volume, root / volume["name"]) for volume in pod["spec"].get("volumes", [])}


def mounts(container: Object, volumes: dict[str, Path]) -> list[Mount]:
    """What a container wants mounted, outer directories first."""
    found = []
    for wanted in container.get("volumeMounts", []):
        source = volumes[wanted["name"]]
        if path := wanted.get("subPath"):
            source /= path
            if not source.exists():
                source.mkdir(parents=True)
        found.append(Mount(source, wanted["mountPath"].rstrip("/"), wanted.get("readOnly", False)))
    return sorted(found, key=lambda mount: mount.target)


def _make(api: Api, pod: Object, volume: Object, path: Path) -> Path:
    if "hostPath" in volume:
        return _host_path(volume["hostPath"])
    path.mkdir(parents=True, exist_ok=True)
    if "emptyDir" in volume:
        path.chmod(0o777)
        return path
    sources = volume["projected"]["sources"] if "projected" in volume else [volume]
    mode = next((kind["defaultMode"] for kind in volume.values() if "defaultMode" in kind), 0o644)
    for source in sources:
        for name, content in _files(api, pod, source).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
            (path / name).chmod(mode)
    return path


def _host_path(source: Object) -> Path:
    path = Path(source["path"])
    if source.get("type") == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        raise Unready("FailedMount", f"hostPath {path} does not exist")
    return path


def _files(api: Api, pod: Object, source: Object) -> dict[str, bytes]:
    """The files of one source of a projected volume, or of a volume of the same kind."""
    namespace = pod["metadata"]["namespace"]
    for kind in ("configMap", "secret"):
        if given := source.get(kind):
            name = given.get("name") or given["secretName"]
            data = contents(api, namespace, kind, name, given.get("optional", False))
            if "items" not in given:
                return data
            missing = [item["key"] for item in given["items"] if item["key"] not in data]
            if missing and not given.get("optional", False):
                raise Unready("FailedMount", f"references non-existent {kind} key: {missing[0]}")
            return {item["path"]: data[item["key"]] for item in given["items"] if item["key"] in data}
    if given := source.get("downwardAPI"):
        return {item["path"]: _downward(pod, item).encode() for item in given["items"]}
    if given := source.get("serviceAccountToken"):
        return {given["path"]: _token(api, pod, given).encode()}
    raise Unready("FailedMount", f"the agent does not know volumes of {sorted(source)}")


def _downward(pod: Object, item: Object) -> str:
    if "fieldRef" in item:
        return field(pod, item["fieldRef"]["fieldPath"])
    reference = item["resourceFieldRef"]
    named = [each for each in pod["spec"]["containers"] if each["name"] == reference["containerName"]]
    return resource(named[0], reference)


def _token(api: Api, pod: Object, source: Object) -> str:
    """A token of the pod's service account, which dies with the pod."""
    metadata = pod["metadata"]
    reference = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    spec = {
        "audiences": [source["audience"]] if "audience" in source else [],
        "expirationSeconds": source.get("expirationSeconds", 3600),
        "boundObjectRef": reference,
    }
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    account = pod["spec"]["serviceAccountName"]
    made = api.post(f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token", request)
    return str(made["status"]["token"])
