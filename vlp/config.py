"""YAML file + `key=value` overrides -> a checked part, with errors that name the dotted path and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from vlp.registry import Named, Part, PartError, locate, nearest

P = TypeVar("P", bound=BaseModel)
MAX_BYTES = 1 << 20
MAX_DEPTH = 32


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line per fault, each with its dotted path."""


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.2-like scalars: `5e-4` is a number, `no` and `12:30` are strings; aliases are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ConfigError(f"line {event.start_mark.line + 1}: YAML aliases are not allowed; write the value out")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|false|False)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|nan))$",
        "-+0123456789.",
    ),
    ("null", r"^(?:~|null|None|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, *, where: str = "<text>") -> Any:
    """The plain value of a YAML text; ConfigError with file and line if it is none, too large or too deep."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: {len(text)} bytes; a configuration may have {MAX_BYTES}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from None
    if _depth(value) > MAX_DEPTH:
        raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH}")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if the file is missing (naming near files) or holds no mapping."""
    path = Path(path)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"no configuration file {path} (in {Path.cwd()}){near}")
    value = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}, not a mapping of settings")
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b.0.c=yaml` set; mappings on the way are made, list items must exist."""
    result = parse_yaml(to_yaml(values)) or {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f'override "{override}" is not of the form key=value')
        _assign(result, path.strip().split("."), parse_yaml(text, where=f"override {path}"), path)
    return result


def load(cls: type[P], path: str | Path, overrides: Sequence[str] = ()) -> P:
    """The part in a YAML file with overrides applied."""
    return validate(cls, apply_overrides(read_yaml(path), overrides), where=str(path))


def validate(cls: type[P], values: Mapping[str, Any], *, where: str) -> P:
    """The checked part; ConfigError listing every fault with its dotted path."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [f"  {line}" for line in _explain(error, cls, ())]
        raise ConfigError("\n".join([f"{where}: {len(lines)} fault(s)", *lines])) from None


def to_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))


class Setting(NamedTuple):
    """A field of a part as YAML writes it: its default, "required" where it has none, and what may stand there."""

    name: str
    default: str
    text: str


def settings(cls: type[BaseModel]) -> list[Setting]:
    """The fields of a part, in their order; without a description the choices, where there are some to choose from."""
    return [
        Setting(name, _default(info), info.description or " | ".join(_choices(info.annotation)))
        for name, info in cls.model_fields.items()
    ]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    plain = _plain(info.get_default(call_default_factory=True), info)
    return str(yaml.safe_dump(plain, default_flow_style=True, width=float("inf"))).removesuffix("...\n").strip()


def _plain(value: Any, info: FieldInfo) -> Any:
    """What YAML would have; of a nested part its name, if it is in a table, and what is set in it."""
    if isinstance(value, list | tuple):
        return [_plain(item, info) for item in value]
    if not isinstance(value, BaseModel):
        return to_jsonable_python(value, fallback=str)
    changed = value.model_dump(mode="json", exclude_defaults=True)
    table = next((locate(item.table) for item in info.metadata if isinstance(item, Named)), None)
    if table is None:
        return changed
    name = table.name_of(type(value))
    return {"name": name, **changed} if changed else name


def _choices(annotation: Any) -> list[str]:
    return [str(item) for item in get_args(annotation)] if get_origin(annotation) is Literal else []


def _assign(target: Any, path: list[str], value: Any, whole: str) -> None:
    for position, name in enumerate(path):
        last = position == len(path) - 1
        if isinstance(target, list):
            if not name.isdigit() or int(name) >= len(target):
                whole_list = ".".join(path[:position])
                raise ConfigError(
                    f'override "{whole}": "{name}" is no item of a list of {len(target)} (0-based); '
                    f"give the list whole: {whole_list}=[...]"
                )
            if last:
                target[int(name)] = value
            else:
                target = target[int(name)]
        elif isinstance(target, dict):
            if last:
                target[name] = value
                continue
            if name not in target and path[position + 1].isdigit():
                raise ConfigError(f'override "{whole}": the list "{name}" is not set; give it whole: {name}=[{{...}}]')
            target = target.setdefault(name, {})
        else:
            raise ConfigError(f'override "{whole}": "{path[position - 1]}" holds {target!r}, which has no fields')


def _explain(error: ValidationError, cls: type[BaseModel], prefix: tuple[Any, ...]) -> Iterator[str]:
    errors = error.errors()
    for item in errors:
        if item["type"] == "too_short" and any(
            e["loc"][: len(item["loc"])] == item["loc"] for e in errors if e is not item
        ):
            continue  # the list is short because its items have faults of their own
        loc = (*prefix, *(part for part in item["loc"] if not _is_noise(part)))
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, PartError):
            yield from _explain(inner.inner, _model_of(inner.inner), loc)
            continue
        dotted = ".".join(str(part) for part in loc) or "(top)"
        if item["type"] == "extra_forbidden":
            yield f"{dotted}: unknown field{nearest(str(loc[-1]), _siblings(cls, item['loc']))}"
        elif item["type"] == "missing":
            yield f"{dotted}: required, but not given"
        elif item["type"] in ("value_error", "assertion_error"):
            yield f"{dotted}: {inner}"
        else:
            yield f"{dotted}: {item['msg']} (got {item['input']!r})"


_PARTS: dict[str, type[BaseModel]] = {}


def _model_of(error: ValidationError) -> type[BaseModel]:
    """The class whose validation failed, by its title: parts are few and their names unique."""
    if error.title not in _PARTS:
        _PARTS.update({cls.__name__: cls for cls in _subclasses(Part)})
    return _PARTS.get(error.title, Part)


def _subclasses(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _siblings(cls: Any, loc: Sequence[Any]) -> list[str]:
    """Field names of the model that holds the last item of `loc`, as far as annotations lead there."""
    for name in loc[:-1]:
        if isinstance(name, int):
            continue
        found = getattr(cls, "model_fields", {}).get(name)
        cls = _model_in(found.annotation) if found else None
    return list(getattr(cls, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None


def _is_noise(part: Any) -> bool:
    return isinstance(part, str) and (part.startswith(("function-", "lax-or", "union")) or "[" in part)


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(item) for item in value), default=0)
    return 0
