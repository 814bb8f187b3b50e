"""YAML file + `key=value` overrides -> a checked part, with errors that name the dotted path and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from vlp.paths import file_wanted, refuse_url
from vlp.registry import Part, PartError, nearest
from vlp.untrusted import read_text

P = TypeVar("P", bound=BaseModel)
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000
_BREAKS = frozenset("\r\x85\u2028\u2029\ufeff")
_SHOWN, _NEAR = 120, 3  # letters of a value, and fields that may have been meant, in a message


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line per fault, each with its dotted path."""


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.2-like scalars: `5e-4` is a number, `no` and `12:30` are strings.

    Refused with their line: aliases, tags, keys that stand twice, and more values or levels than a configuration has.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent):
            raise _at(event, "YAML aliases are not allowed; write the value out")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _at(event, f"the tag {tag} is not allowed; write the value plainly, or in quotes")
        if self.nodes > MAX_VALUES:
            raise _at(event, f"more than {MAX_VALUES} values; a configuration has fewer")
        self.levels += isinstance(event, yaml.CollectionStartEvent)
        if self.levels > MAX_DEPTH:
            raise _at(event, f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.levels -= isinstance(event, yaml.CollectionStartEvent)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _at(key, f'"{key.value:.80}" stands there twice; of two values one would be lost')
                seen.add(key.value)
        return node


def _at(place: Any, fault: str) -> ConfigError:
    return ConfigError(f"line {place.start_mark.line + 1}: {fault}")


class _Dumper(yaml.SafeDumper):
    """Quotes what either this module or YAML 1.1 would take for something else than a text; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Breaks of lines that a reader of plain YAML makes others of are escaped."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _BREAKS & set(text) else None)


_Dumper.add_representer(str, _quoted)
_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {
    first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
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
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, *, where: str = "<text>") -> Any:
    """The plain value of a YAML text; ConfigError with file and line if it is none, too large or too deep."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: {len(text)} letters; a configuration may have {MAX_BYTES}")
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise ConfigError(f"{where}: not YAML: {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if the file is missing (naming near files) or holds no mapping."""
    refuse_url(path, fault=ConfigError)
    path = Path(path)
    if path.is_dir():
        raise ConfigError(file_wanted(path))
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"no configuration file {path} (in {Path.cwd()}){near}")
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    value = parse_yaml(text, where=str(path))
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
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


def _assign(target: Any, path: list[str], value: Any, whole: str) -> None:
    for position, name in enumerate(path):
        last = position == len(path) - 1
        if isinstance(target, list):
            if not _is_place(name) or int(name) >= len(target):
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
            if name not in target and _is_place(path[position + 1]):
                raise ConfigError(f'override "{whole}": the list "{name}" is not set; give it whole: {name}=[{{...}}]')
            target = target.setdefault(name, {})
        else:
            raise ConfigError(f'override "{whole}": "{path[position - 1]}" holds {target!r}, which has no fields')


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10


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
            yield f"{dotted}: unknown field{_instead(loc, _holder(cls, item['loc'][:-1]))}"
        elif item["type"] == "missing":
            yield f"{dotted}: required, but not given"
        elif item["type"] in ("value_error", "assertion_error"):
            yield f"{dotted}: {inner}"
        elif item["type"] == "too_short":
            least = item["ctx"]["min_length"]
            yield f"{dotted}: give at least {'one' if least == 1 else least} (got {item['input']!r:.{_SHOWN}})"
        elif item["type"] == "model_type":
            example = _example(_holder(cls, item["loc"]), item["input"])
            yield f"{dotted}: wanted settings{example} (got {item['input']!r:.{_SHOWN}})"
        else:
            yield f"{dotted}: {item['msg']} (got {item['input']!r:.{_SHOWN}})"


def _instead(loc: Sequence[Any], holder: Any) -> str:
    """Where an unknown field may belong: below its place, if there is one of its name, else beside it."""
    below = ['"' + ".".join(map(str, (*loc[:-1], path))) + '"' for path in _paths(holder, str(loc[-1]))]
    if below:
        return f"; did you mean {' or '.join(below[:_NEAR])}?"
    return nearest(str(loc[-1]), getattr(holder, "model_fields", {}))


def _paths(cls: Any, name: str, depth: int = 4) -> Iterator[str]:
    """Dotted paths of the fields called `name` in the parts that the fields of `cls` hold, not in lists of parts."""
    for field, info in getattr(cls, "model_fields", {}).items() if depth else ():
        default = info.default
        listed = get_origin(info.annotation) in (tuple, list, dict)
        inner = type(default) if isinstance(default, BaseModel) else None if listed else _model_in(info.annotation)
        if name in getattr(inner, "model_fields", {}):
            yield f"{field}.{name}"
        yield from (f"{field}.{path}" for path in _paths(inner, name, depth - 1))


def _example(cls: Any, given: Any) -> str:
    """` such as {field: value}` of a part that was given as one value, which its first field of that type takes."""
    for name, info in getattr(cls, "model_fields", {}).items():
        if type(given) in (info.annotation, *get_args(info.annotation)):
            return f" such as {{{name}: {given}}}"
    fields = ", ".join(getattr(cls, "model_fields", {}))
    return f", {{field: value}} of {fields}" if fields else ", {field: value}"


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


def _holder(cls: Any, loc: Sequence[Any]) -> Any:
    """The model that stands at `loc`, as far as annotations lead there; None where they do not."""
    for name in loc:
        if isinstance(name, int):
            continue
        found = getattr(cls, "model_fields", {}).get(name)
        cls = _model_in(found.annotation) if found else None
    return cls


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None


def _is_noise(part: Any) -> bool:
    return isinstance(part, str) and (part.startswith(("function-", "lax-or", "union")) or "[" in part)
