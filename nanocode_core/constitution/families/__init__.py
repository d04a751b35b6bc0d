"""The families of programmed tasks. `FAMILIES` maps a name to its family, in a fixed order."""

from nanocode_core.constitution.families import constants, functions, scripts, talk
from nanocode_core.constitution.families.family import Family, Past
from nanocode_core.constitution.families.voice import Voice

FAMILIES: dict[str, Family] = {
    family.name: family for family in (*constants.FAMILIES, *functions.FAMILIES, *scripts.FAMILIES, *talk.FAMILIES)
}

__all__ = ["FAMILIES", "Family", "Past", "Voice"]
