"""Configuration: `load_config(preset, sets, overrides)` gives one frozen, validated `Config`."""

from nanocode_core.config.load import Overrides, config_from_identity, load_config
from nanocode_core.config.model import PROJECT, Config
from nanocode_core.config.presets import PRESETS
from nanocode_core.config.types import Execution, Identity, Section

__all__ = [
    "PRESETS",
    "PROJECT",
    "Config",
    "Execution",
    "Identity",
    "Overrides",
    "Section",
    "config_from_identity",
    "load_config",
]
