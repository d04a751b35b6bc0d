"""From a preset name and single settings to a `Config`, with errors a user can act on."""

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from nanocode_core.config.model import Config
from nanocode_core.config.presets import PRESETS, RECIPE_ONLY
from nanocode_core.config.recipes import RECIPES
from nanocode_core.config.types import Section
from nanocode_core.errors import UserError


def load_config(preset: str = "demo", sets: Iterable[str] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """The preset, its recipe, `overrides` (nested mapping) and then `sets` ("section.field=value"), each over the last.

    Raises:
        UserError: unknown preset, recipe or field, or a value of the wrong type, named in one line.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{_nearest(preset, PRESETS)}; choose from {', '.join(PRESETS)}")
    changes: dict[str, Any] = {}
    _merge(changes, overrides or {})
    for item in sets:
        path, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r} has no '='; write --set section.field=value")
        nested: Any = _parse(text)
        for part in reversed(path.strip().split(".")):
            nested = {part: nested}
        _check_path(path.strip())
        _merge(changes, nested)
    recipe = changes.get("recipe", "nanocode")
    if recipe not in RECIPES:
        raise UserError(f"unknown recipe {recipe!r}{_nearest(str(recipe), RECIPES)}; choose from {', '.join(RECIPES)}")
    # From the defaults, so that one field of a section leaves the section's others as they are. Those from the
    # environment are texts, which are judged below with all the rest.
    values = Config().model_dump(mode="json", warnings=False)
    base = {"preset": preset, **PRESETS[preset]}
    of_recipe = base.pop(RECIPE_ONLY, {}).get(recipe, {})
    for layer in (base, RECIPES[recipe], of_recipe, changes):
        _merge(values, layer)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def config_from_identity(flat: Mapping[str, Any], base: Config) -> Config:
    """`base` with the identity values of a record ({"model.depth": 4, ...}) put in."""
    values: dict[str, Any] = base.model_dump(mode="json")
    for path, value in flat.items():
        nested: Any = value
        for part in reversed(path.split(".")):
            nested = {part: nested}
        _merge(values, nested)
    return Config.model_validate(values)


def _parse(text: str) -> Any:
    """A --set value: JSON where it is JSON ("3", "true", "null", "[...]"), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, Mapping):
            into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _check_path(path: str) -> None:
    """Raise UserError where a dotted path names no field, with the nearest that exists."""
    section: type[Section] = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        fields = section.model_fields
        if part not in fields:
            known = [".".join([*parts[:depth], name]) for name in fields]
            raise UserError(f"unknown field {path!r}{_nearest(path, known)}; known here: {', '.join(known)}")
        inner = fields[part].annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            section = inner
        elif depth + 1 < len(parts):
            raise UserError(f"field {'.'.join(parts[: depth + 1])!r} has no field {parts[depth + 1]!r}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _explain(error: ValidationError) -> str:
    """The first problem of a validation error as one line."""
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"]) or "the configuration"
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation if part in getattr(section, "model_fields", {}) else None
        known = list(getattr(section, "model_fields", {}))
        return f"unknown field {place!r}{_nearest(str(first['loc'][-1]), known)}; known here: {', '.join(known)}"
    shown = repr(first.get("input"))
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return f"{place}: {first['msg'].removeprefix('Value error, ')} (got {shown})"


def _optional(section: type[Section]) -> type[BaseModel]:
    """A twin of a section whose every field may be left empty (empty: the preset's value)."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = _optional(annotation)
        else:
            constraints = [m for m in field.metadata if type(m).__name__ not in ("IdentityMarker", "ExecutionMarker")]
            for constraint in constraints:
                annotation = typing.Annotated[annotation, constraint]
        if type(None) not in typing.get_args(annotation) or typing.get_origin(annotation) not in (
            Union,
            types.UnionType,
        ):
            annotation = annotation | None if isinstance(annotation, type) else typing.Optional[annotation]  # noqa: UP045
        fields[name] = (annotation, Field(default=None, description=field.description))
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    return create_model(section.__name__, __config__=config, __doc__=section.__doc__, **fields)


Overrides: type[BaseModel] = _optional(Config)
"""The deployment parameter `overrides`: `Config` with every field optional, for the form of the UI."""
