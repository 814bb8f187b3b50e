"""Parts as a person reads them in a terminal: a line for each, or all of their settings with defaults and meaning."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from inspect import cleandoc
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from vlp.registry import Named, locate

_UNBROKEN = 1 << 20  # columns where there is no terminal: what goes into a file or through a pipe has one line each


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


def sentence(cls: type) -> str:
    """What a part is, as its docstring begins."""
    return (cls.__doc__ or "").strip().splitlines()[0]


def paragraphs(cls: type) -> list[str]:
    """All that the docstring of a part says, a line for each paragraph."""
    return [" ".join(block.split()) for block in cleandoc(cls.__doc__ or "").split("\n\n")]


def one_line_each(rows: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each name and what it is, broken behind the names at the width of the terminal."""
    margin = max((len(name) for name, _ in rows), default=0) + 2
    return [_broken(f"{name:<{margin}}{text}", indent=margin) for name, text in rows]


def with_settings(title: str, lines: Iterable[str], fields: Iterable[Setting]) -> list[str]:
    """The title, what is said of a part below it, and a line for each of its settings."""
    said = [title, *(_broken(f"  {line}", indent=2) for line in lines)]
    for name, default, text in fields:
        said.append(_broken(f"    {name} = {default}" + (f"  ({text})" if text else ""), indent=8))
    return said


def _broken(line: str, *, indent: int) -> str:
    width = shutil.get_terminal_size(fallback=(_UNBROKEN, 0)).columns
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
