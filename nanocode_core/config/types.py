"""Identity and execution, told apart in the type.

Every field of a `Section` is declared `Identity[T]` (it decides what the result *is*, so it enters
the fingerprint) or `Execution[T]` (it decides how the result is computed: machine, paths, worker
count, logging), or is itself a section or a tuple of sections. A class with a field that is none of
these does not import.
"""

import types
import typing
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict


class IdentityMarker:
    """Marks a field that enters the fingerprint."""


class ExecutionMarker:
    """Marks a field that never enters the fingerprint."""


T = TypeVar("T")
Identity = Annotated[T, IdentityMarker()]
Execution = Annotated[T, ExecutionMarker()]


class Section(BaseModel):
    """A frozen group of settings whose every field is an identity or an execution field."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field without a marker."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            marked = any(isinstance(m, IdentityMarker | ExecutionMarker) for m in field.metadata)
            if not marked and not _holds_sections(field.annotation):
                raise TypeError(f"{cls.__name__}.{name} must be Identity[...], Execution[...] or a Section")

    def identity(self) -> dict[str, Any]:
        """The JSON-able identity fields of this section, nested sections included."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if any(isinstance(m, ExecutionMarker) for m in field.metadata):
                continue
            value = getattr(self, name)
            if isinstance(value, Section):
                out[name] = value.identity()
            elif isinstance(value, tuple) and value and all(isinstance(v, Section) for v in value):
                out[name] = [v.identity() for v in value]
            else:
                out[name] = self.model_dump(mode="json", include={name})[name]
        return out


def _holds_sections(annotation: Any) -> bool:
    """Whether a field's type is a section, a union of sections, or a tuple of such."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _holds_sections(typing.get_args(annotation)[0])
    if origin in (tuple, typing.Union, types.UnionType):
        members = [a for a in typing.get_args(annotation) if a is not Ellipsis and a is not type(None)]
        return bool(members) and all(_holds_sections(a) for a in members)
    return isinstance(annotation, type) and issubclass(annotation, Section)
