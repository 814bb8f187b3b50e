"""The methods by name: building one from settings, and the list of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlp import config
from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import Adapter
from vlp.registry import nearest
from vlp.tune.fitting import Setting, traits

ORDER: tuple[Setting, ...] = ("zero-shot", "few-shot", "unsupervised", "transductive")
PAPER = "paper"


def build_method(name: str, overrides: Sequence[str] = (), *, paper: bool = False) -> Adapter:
    """The adapter with `key=value` settings; ValueError naming the nearest method or field.

    paper: as the published code does it, where that leaks; ValueError for a method whose code does not.
    """
    cls = adapter_class(name)
    values = config.apply_overrides({}, overrides)
    if paper:
        if "protocol" not in cls.model_fields:
            raise ValueError(f"{name} has no `protocol: paper`: nothing that its authors do looks at test labels")
        values = {**values, "protocol": PAPER}
    return config.validate(cls, values, where=f"vlp tune {name}")


def adapter_class(name: str) -> type[Adapter]:
    """The class of a method; ValueError naming the nearest."""
    if name not in ADAPTERS.entries:
        raise ValueError(f'no method "{name}"{nearest(name, ADAPTERS.names())}; `vlp tune --list` shows all')
    found: type[Adapter] = ADAPTERS.resolve(name)
    return found


def list_methods() -> str:
    """Every method: its setting, what it runs, one line of what it is, and its fields with their defaults."""
    rows: list[tuple[int, str, Any]] = []
    for name in ADAPTERS.names():
        cls = adapter_class(name)
        setting = traits(cls.model_construct()).setting
        rows.append((ORDER.index(setting), name, cls))
    lines = []
    for place, name, cls in sorted(rows, key=lambda row: row[:2]):
        lines.append(f"{name}  [{ORDER[place]}, runs {_runs(cls)}]")
        lines.append(f"  {(cls.__doc__ or '').strip().splitlines()[0]}")
        for field, default, text in config.settings(cls):
            lines.append(f"    {field} = {default}" + (f"  ({text})" if text else ""))
    return "\n".join(lines)


def _runs(cls: type[Adapter]) -> str:
    return {"features": "no tower", "text": "the text tower", "towers": "both towers"}[cls.level]
