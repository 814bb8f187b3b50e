"""The methods by name: building one from settings, and the list of all."""

from __future__ import annotations

from collections.abc import Sequence

from vlp import config
from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import Adapter
from vlp.listing import one_line_each, paragraphs, sentence, settings, with_settings
from vlp.registry import nearest
from vlp.tune.fitting import Setting, traits

ORDER: tuple[Setting, ...] = ("zero-shot", "few-shot", "unsupervised", "transductive")
PAPER = "paper"
ALL = "all"


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
        raise ValueError(f'no method "{name}"{nearest(name, ADAPTERS.names())}; `vlp tune list` shows all')
    found: type[Adapter] = ADAPTERS.resolve(name)
    return found


def list_methods() -> str:
    """A line for each method under what it learns from: its name, what it is, and what it runs."""
    rows = [(name, f"{sentence(adapter_class(name))} Runs {_runs(name)}.") for name in _ordered()]
    lines = dict(zip(_ordered(), one_line_each(rows), strict=True))
    groups = [(setting, [line for name, line in lines.items() if _setting(name) == setting]) for setting in ORDER]
    said = [line for setting, own in groups if own for line in (f"{setting}:", *own, "")]
    return "\n".join([*said, "Their settings: vlp tune list NAME..., or vlp tune list all"])


def describe_methods(names: Sequence[str]) -> str:
    """These methods, every one for "all": what each learns from, runs and is, and its fields with their defaults."""
    blocks = []
    for name in _ordered() if ALL in names else names:
        cls = adapter_class(name)
        title = f"{name}  [{_setting(name)}, runs {_runs(name)}]"
        blocks.append("\n".join(with_settings(title, paragraphs(cls), settings(cls))))
    return "\n\n".join(blocks)


def _ordered() -> list[str]:
    """All methods, those that learn from least first."""
    return sorted(ADAPTERS.names(), key=lambda name: (ORDER.index(_setting(name)), name))


def _setting(name: str) -> Setting:
    return traits(adapter_class(name).model_construct()).setting


def _runs(name: str) -> str:
    return {"features": "no tower", "text": "the text tower", "towers": "both towers"}[adapter_class(name).level]
