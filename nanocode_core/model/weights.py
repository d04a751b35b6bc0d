"""A trained model as files: model.safetensors (float32 arrays by name) and model.json (its shape).

The bytes are a function of the model alone: names are sorted, there is no time or machine in them.
Names are the parameter's path, for example `embedding` and `blocks.0.query`; layouts are gpt.py's.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from nanocode_core.errors import UserError
from nanocode_core.model.gpt import GPT, Shape

FORMAT = 1
"""Of model.json; raised when its fields or the parameters' names change."""

WEIGHTS = "model.safetensors"
SHAPE = "model.json"


def save_model(model: GPT, directory: Path) -> None:
    """Write both files into an existing directory."""
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in sorted(named_arrays(model).items())}
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
    leaves = []
    for path, parameter in nnx.to_flat_state(like):
        name = ".".join(map(str, path))
        found = arrays[name].shape if name in arrays else "nothing"
        if found != parameter.shape:
            raise UserError(f"{directory / WEIGHTS}: {name} should be {parameter.shape}, found {found}")
        leaves.append((path, parameter.replace(jnp.asarray(arrays[name]))))
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def named_arrays(model: GPT) -> dict[str, jax.Array]:
    """The parameters by their name in the file."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): parameter[...] for path, parameter in flat}
