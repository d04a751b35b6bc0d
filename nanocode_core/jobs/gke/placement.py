"""Where on GKE a job runs: the node labels that an accelerator has, and what a pod on it asks for.

Machine types and labels are GKE's. A slice of eight v6e chips exists as one machine of eight and as two
of four, under the same labels; ours is the one machine, so its type is asked for too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nanocode_core.config.model import GKE
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import Accelerator, find_accelerator

_TPU_LABEL = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice", "tpu7x": "tpu7x"}
_TPU_MACHINE = {"v5e": "ct5lp-hightpu", "v5p": "ct5p-hightpu", "v6e": "ct6e-standard", "tpu7x": "tpu7x-standard"}
_GPU_LABEL = {"h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}


@dataclass(frozen=True)
class Placement:
    """What decides where the pods of a job go.

    Attributes:
        hosts: pods of the job.
        image: name of the trainer's image.
        selector: labels a node must have.
        resources: what each pod asks for, and may use at most.
        tolerated: key and value of the taints that its nodes have.
    """

    hosts: int
    image: str
    selector: Mapping[str, str]
    resources: Mapping[str, str]
    tolerated: tuple[tuple[str, str], ...]


def place(name: str, settings: GKE) -> Placement:
    """The placement of a job on the accelerator of a name (planning/accelerators.py).

    Raises:
        UserError: there is no such accelerator.
    """
    accelerator = find_accelerator(name)
    spot = {"cloud.google.com/gke-spot": "true"} if settings.spot else {}
    disk = {"ephemeral-storage": f"{settings.disk_gib}Gi"}
    if accelerator.platform == "cpu":
        resources = {"cpu": str(settings.cpus), "memory": f"{settings.memory_gib}Gi", **disk}
        return Placement(settings.hosts, "trainer-cpu", spot, resources, ())
    if settings.hosts != 1:
        raise UserError(f"gke.hosts is for jobs on cpu; {accelerator.name} has {accelerator.hosts} hosts of itself")
    if accelerator.platform == "gpu":
        label = _GPU_LABEL[accelerator.name.partition("-")[0]]
        selector = {"cloud.google.com/gke-accelerator": label, **spot}
        resources = {"nvidia.com/gpu": str(accelerator.chips), **disk}
        return Placement(1, "trainer-cuda", selector, resources, (("nvidia.com/gpu", "present"),))
    chips = accelerator.chips // accelerator.hosts
    selector = {
        "cloud.google.com/gke-tpu-accelerator": _TPU_LABEL[_kind(accelerator)],
        "cloud.google.com/gke-tpu-topology": str(accelerator.topology).partition(":")[2],
        "node.kubernetes.io/instance-type": f"{_TPU_MACHINE[_kind(accelerator)]}-{chips}t",
        **spot,
    }
    resources = {"google.com/tpu": str(chips), **disk}
    return Placement(accelerator.hosts, "trainer-tpu", selector, resources, (("google.com/tpu", "present"),))


def _kind(accelerator: Accelerator) -> str:
    return accelerator.name.partition("-")[0]
