"""Prompt templates: plain strings with one slot, `{}` or `{c}`, filled literally."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from vlp.registry import nearest
from vlp.untrusted import parse_json, read_text

_MAX_BYTES, _MAX_LINES = 32 << 20, 1_000_000  # of a list of templates or names
_TOLD = 20  # faults that a message names
_SLOT = re.compile(r"\{c?\}")

# Hand-written templates of the CoOp protocol (Zhou et al. 2022, their `CUSTOM_TEMPLATES`).
COOP = MappingProxyType(
    {
        "oxford_pets": "a photo of a {}, a type of pet.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "stanford_cars": "a photo of a {}.",
        "food101": "a photo of {}, a type of food.",
        "sun397": "a photo of a {}.",
        "caltech101": "a photo of a {}.",
        "ucf101": "a photo of a person doing {}.",
        "imagenet": "a photo of a {}.",
    }
)
PHOTO = ("a photo of a {}.",)
NAME = ("{}",)


def fill(template: str, name: str) -> str:
    """The template with every `{}` or `{c}` replaced by `name`, literally: no format language, no attribute access."""
    return _SLOT.sub(lambda _: name, template)


def checked(templates: Iterable[str], *, where: str = "templates") -> tuple[str, ...]:
    """The templates; ValueError naming the line of each one without a slot or with any other brace."""
    found, faults = [], []
    for line, template in enumerate(templates, start=1):
        rest = _SLOT.sub("", template)
        if rest == template:
            faults.append(f'{where}:{line}: no slot {{}} or {{c}} in "{template:.200}"')
        elif "{" in rest or "}" in rest:
            faults.append(f'{where}:{line}: braces other than {{}} or {{c}} in "{template:.200}"')
        found.append(template)
    if not found:
        faults.append(f"{where}: no template")
    if faults:
        raise ValueError(_several(faults))
    return tuple(found)


def template_set(name: str) -> tuple[str, ...]:
    """A named set: openai_imagenet (80), simple (7), photo, name, or coop_<data set>; ValueError naming the nearest."""
    if name == "openai_imagenet":
        return openai_imagenet()
    if name == "simple":
        return simple()
    named = {"photo": PHOTO, "name": NAME, **{f"coop_{key}": (text,) for key, text in COOP.items()}}
    if name not in named:
        raise ValueError(f'unknown template set "{name}"{nearest(name, [*named, "openai_imagenet", "simple"])}')
    return named[name]


@lru_cache(maxsize=1)
def openai_imagenet() -> tuple[str, ...]:
    """The 80 templates of CLIP's ImageNet evaluation, as open_clip carries them."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return checked([make("{}") for make in OPENAI_IMAGENET_TEMPLATES], where="open_clip")


@lru_cache(maxsize=1)
def simple() -> tuple[str, ...]:
    """The seven templates that do nearly as well as the 80, as open_clip carries them."""
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    return checked([make("{}") for make in SIMPLE_IMAGENET_TEMPLATES], where="open_clip")


def __getattr__(name: str) -> tuple[str, ...]:
    """OPENAI_IMAGENET and SIMPLE, read from open_clip on first use."""
    if name == "OPENAI_IMAGENET":
        return openai_imagenet()
    if name == "SIMPLE":
        return simple()
    raise AttributeError(f"module {__name__} has no attribute {name}")


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates from a text file, one a line (blank lines and lines with # first left out), or a JSON list."""
    path = Path(path)
    if path.suffix == ".json":
        return checked(_json_list(path, key="templates"), where=str(path))
    lines = _read(path).splitlines()
    keep = [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    faults = []
    for number, line in keep:
        try:
            checked([line], where="x")
        except ValueError as error:
            faults.append(str(error).replace("x:1:", f"{path}:{number}:", 1))
    if faults or not keep:
        raise ValueError(_several(faults) or f"{path}: no template")
    return tuple(line for _, line in keep)


def read_names(path: str | Path, *, key: str = "names") -> tuple[str, ...]:
    """Class names in label order from a text file (one a line) or JSON (a list, or an object with a list at `key`)."""
    path = Path(path)
    names = _json_list(path, key=key) if path.suffix == ".json" else _read(path).rstrip("\n").split("\n")
    return checked_names(names, where=str(path))


def checked_names(names: Sequence[str], *, where: str = "classes") -> tuple[str, ...]:
    """The names without blanks around them; ValueError naming the line of each empty or repeated one."""
    first: dict[str, int] = {}
    faults = [] if names else [f"{where}: no class name"]
    for line, raw in enumerate(names, start=1):
        name = raw.strip()
        if not name:
            faults.append(f"{where}:{line}: empty class name")
        elif name in first:
            faults.append(f'{where}:{line}: class name "{name:.200}" stands already on line {first[name]}')
        else:
            first[name] = line
    if faults:
        raise ValueError(_several(faults))
    return tuple(first)


def _several(faults: Sequence[str]) -> str:
    """One line a fault, the first of many."""
    more = [f"and {len(faults) - _TOLD} more"] if len(faults) > _TOLD else []
    return "\n".join([*faults[:_TOLD], *more])


def _read(path: Path) -> str:
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ValueError(f"no file {path} (in {Path.cwd()}){near}")
    text = read_text(path, max_bytes=_MAX_BYTES)
    if text.count("\n") > _MAX_LINES:
        raise ValueError(f"{path}: more than {_MAX_LINES} lines; a list of templates or names has fewer")
    return text


def _json_list(path: Path, *, key: str) -> list[str]:
    value = parse_json(_read(path), where=str(path))
    if isinstance(value, dict):
        if key not in value:
            raise ValueError(f'{path}: no "{key}"{nearest(key, value)}')
        value = value[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f'{path}: wanted a list of strings, or an object with one at "{key}"')
    return value
