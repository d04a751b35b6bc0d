from pathlib import Path

import pytest
from gcs import gcs, gcs_address  # noqa: F401 (fixtures)
from training_world import make_world, world_config

from nanocode_core.training.setup import prepare_jax


@pytest.fixture(scope="session", autouse=True)
def compiled_once(world: Path) -> None:
    """A program that another test compiled before is read from disk."""
    prepare_jax(world_config(world))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the artifacts tokenizer, tokens and synthetic; later ones are added as tests build them."""
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root
