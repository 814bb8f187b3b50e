"""A part is its own configuration: a frozen pydantic class, found by name in its package's table.

A table maps a name to "module:Class" and is resolved when asked, so nothing runs at import::

    LOSSES = Table("loss", {"infonce": "vlp.losses.infonce:InfoNCE"})

A field that holds a part is annotated `Annotated[Loss, Named("vlp.losses:LOSSES")]`; in YAML it reads
`{name: infonce, label_smoothing: 0.1}`, or just `infonce`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import core_schema


class Part(BaseModel):
    """Base of every part: frozen, unknown fields refused. Fields are settings, never tensors or modules."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class PartError(ValueError):
    """A nested part that did not validate; keeps the inner errors so that the message has the whole dotted path."""

    def __init__(self, inner: ValidationError) -> None:
        super().__init__(str(inner))
        self.inner = inner


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` for the nearest known word, or the list of known words when none is near."""
    words = sorted(known)
    match = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if match:
        return f'; did you mean "{match[0]}"?'
    return f"; known: {', '.join(words)}" if words else ""


class Table:
    """The parts of one kind by name; resolving imports the module that defines the part."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self.entries = dict(entries)

    def names(self) -> list[str]:
        return sorted(self.entries)

    def resolve(self, name: str) -> Any:
        """The class (or function) called `name`; ValueError naming the nearest one if there is none."""
        if name not in self.entries:
            raise ValueError(f'unknown {self.kind} "{name}"{nearest(name, self.entries)}')
        return locate(self.entries[name])

    def name_of(self, cls: type) -> str:
        """The name under which `cls` stands in this table."""
        for name, target in self.entries.items():
            if target == f"{cls.__module__}:{cls.__qualname__}":
                return name
        raise ValueError(f"{cls.__module__}:{cls.__qualname__} is not in the table of {self.kind}s")

    def build(self, spec: Any) -> Any:
        """A part from `name`, from `{name: ..., field: value}`, or as it is if it is one already."""
        if isinstance(spec, Part):
            return spec
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or "name" not in spec:
            raise ValueError(f"a {self.kind} is written as its name or as {{name: ..., field: value}}, not {spec!r}")
        fields = {key: value for key, value in spec.items() if key != "name"}
        try:
            return self.resolve(str(spec["name"])).model_validate(fields)
        except ValidationError as error:
            raise PartError(error) from error

    def dump(self, part: Part) -> dict[str, Any]:
        """The mapping that `build` makes the same part of."""
        return {"name": self.name_of(type(part)), **part.model_dump(mode="json")}


def locate(target: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Named:
    """Metadata of a field that holds a part of the table at "module:TABLE": `loss: Annotated[Loss, Named(...)]`."""

    def __init__(self, table: str) -> None:
        self.table = table

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        build = core_schema.no_info_plain_validator_function(lambda spec: locate(self.table).build(spec))
        dump = core_schema.plain_serializer_function_ser_schema(lambda part: locate(self.table).dump(part))
        return {**build, "serialization": dump}
