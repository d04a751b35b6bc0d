"""What a container finds in its environment, and the fields of its pod that it may ask for."""

import base64
import re
from math import ceil
from typing import Any

from api import Api, Object, Refused

ADDRESS = "127.0.0.1"
"""Address of every pod and every node."""

UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 2.0 ** (10 * power) for power, letter in enumerate("KMGT", 1)
}


class Unready(Exception):
    """What keeps a container or a pod from starting for now; the agent reports it and tries again."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def variables(api: Api, pod: Object, container: Object, base: dict[str, str]) -> dict[str, str]:
    """The environment of a container, `base` being what its image sets; Unready where a source is missing."""
    found = dict(base)
    namespace = pod["metadata"]["namespace"]
    for source in container.get("envFrom", []):
        for kind in ("configMap", "secret"):
            if reference := source.get(f"{kind}Ref"):
                data = contents(api, namespace, kind, reference["name"], reference.get("optional", False))
                found |= {source.get("prefix", "") + key: value.decode() for key, value in data.items()}
    for variable in container.get("env", []):
        value = variable.get("value", "")
        if "valueFrom" in variable:
            asked = _referenced(api, pod, container, variable["valueFrom"])
            if asked is None:
                continue
            value = asked
        else:
            value = expand(value, found)
        found[variable["name"]] = value
    return found


def expand(text: str, values: dict[str, str]) -> str:
    """Replace $(NAME) by its value, where it has one; $$ stands for one dollar sign."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


def field(pod: Object, path: str) -> str:
    """A field of a pod as the downward API gives it: "metadata.name", "metadata.labels['a/b']" ..."""
    fixed = {"status.podIP": ADDRESS, "status.podIPs": ADDRESS, "status.hostIP": ADDRESS, "status.hostIPs": ADDRESS}
    if path in fixed:
        return fixed[path]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.*)'\]", path):
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    found: Any = pod
    for name in path.split("."):
        found = found.get(name, {})
    if isinstance(found, dict):
        return "\n".join(f'{key}="{value}"' for key, value in sorted(found.items()))
    return str(found)


def resource(container: Object, reference: Object) -> str:
    """A request or limit of a container in units of the reference's divisor: "limits.memory" ..."""
    kind, name = reference["resource"].split(".", 1)
    found = container.get("resources", {}).get(kind, {}).get(name, "0")
    divisor = quantity(reference.get("divisor") or "1") or 1
    return str(ceil(quantity(found) / divisor))


def quantity(text: str) -> float:
    """A Kubernetes quantity ("500m", "2Gi", "1e3") as a number."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)(m|k|[MGT]i?|Ki)?", str(text))
    if match is None:
        raise ValueError(f"{text} is not a quantity")
    return float(match[1]) * UNITS[match[2] or ""]


def contents(api: Api, namespace: str, kind: str, name: str, optional: bool = False) -> dict[str, bytes]:
    """The entries of a "configMap" or "secret"; Unready where there is none, and it is not optional."""
    try:
        found = api.get(f"/api/v1/namespaces/{namespace}/{kind.lower()}s/{name}")
    except Refused as refused:
        if refused.status != 404:
            raise
        if optional:
            return {}
        raise Unready("CreateContainerConfigError", f'{kind.lower()} "{name}" not found') from None
    encoded = found.get("binaryData" if kind == "configMap" else "data") or {}
    plain = found.get("data") or {} if kind == "configMap" else {}
    return {key: value.encode() for key, value in plain.items()} | {
        key: base64.b64decode(value) for key, value in encoded.items()
    }


def _referenced(api: Api, pod: Object, container: Object, source: Object) -> str | None:
    """The value that a valueFrom names; None where it is optional and missing."""
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource(container, source["resourceFieldRef"])
    for kind in ("configMap", "secret"):
        if reference := source.get(f"{kind}KeyRef"):
            optional = reference.get("optional", False)
            data = contents(api, pod["metadata"]["namespace"], kind, reference["name"], optional)
            if reference["key"] in data:
                return data[reference["key"]].decode()
            if not optional:
                message = f"couldn't find key {reference['key']} in {kind} {reference['name']}"
                raise Unready("CreateContainerConfigError", message)
            return None
    raise Unready("CreateContainerConfigError", f"the agent does not know {sorted(source)}")
