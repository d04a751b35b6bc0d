"""A trained model as files: model.safetensors (float32 arrays by name) and model.json (its shape).

The bytes are a function of the model alone: names are sorted, there is no time or machine in them.
Names are the parameter's path, for example `embedding` and `blocks.0.query`: what lies stacked over
the layers in memory is one array a layer in the file.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from nanocode_core.errors import UserError
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape

FORMAT = 2
"""Of model.json; raised when its fields or the parameters' names change."""

WEIGHTS = "model.safetensors"
SHAPE = "model.json"
BLOCKS = "blocks"
"""The parameters that are stacked over the layers."""


def save_model(model: GPT, directory: Path) -> None:
    """Write both files into an existing directory."""
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(named_arrays(model).items())}
    save_file(arrays, directory / WEIGHTS)
    (directory / SHAPE).write_text(json.dumps({"format": FORMAT, **model.shape.to_json()}, indent=1) + "\n")


def load_model(directory: Path) -> GPT:
    """Read a model that `save_model` wrote.

    Raises:
        UserError: a file is missing or does not fit the other.
    """
    for name in (WEIGHTS, SHAPE):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing; give the directory of a trained model")
    fields = json.loads((directory / SHAPE).read_text())
    if fields.pop("format", None) != FORMAT:
        raise UserError(f"{directory / SHAPE} has another format than {FORMAT}; use the nanocode version that wrote it")
    shape = Shape(**fields)
    # The structure without the cost of initialising: arrays come from the file.
    graph, like = nnx.split(nnx.eval_shape(lambda: GPT(shape, seed=0)), nnx.Param)
    arrays = load_file(directory / WEIGHTS)

    def read(name: str, size: tuple[int, ...]) -> NDArray[np.float32]:
        found = arrays[name].shape if name in arrays else "nothing"
        if found != size:
            raise UserError(f"{directory / WEIGHTS}: {name} should be {size}, found {found}")
        return arrays[name]

    leaves = []
    for path, parameter in nnx.to_flat_state(like):
        if path[0] == BLOCKS:
            parts = [read(_of_layer(path, i), parameter.shape[1:]) for i in range(shape.depth)]
            value = jnp.asarray(np.stack(parts))
        else:
            value = jnp.asarray(read(".".join(map(str, path)), parameter.shape))
        leaves.append((path, parameter.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def named_arrays(model: GPT) -> dict[str, NDArray[np.float32]]:
    """The parameters, on the host, by their name in the file."""
    named: dict[str, NDArray[np.float32]] = {}
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        array = np.asarray(parameter[...], np.float32)
        if path[0] == BLOCKS:
            named |= {_of_layer(path, i): layer for i, layer in enumerate(array)}
        else:
            named[".".join(map(str, path))] = array
    return named


def _of_layer(path: tuple[Any, ...], layer: int) -> str:
    return ".".join([BLOCKS, str(layer), *map(str, path[1:])])
