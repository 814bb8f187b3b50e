"""What `vlp losses` prints: the losses, what each needs of the model, and their fields with defaults."""

from __future__ import annotations

from collections.abc import Sequence

from vlp.listing import one_line_each, paragraphs, sentence, settings, with_settings
from vlp.losses import LOSSES
from vlp.losses.loss import Loss

ALL = "all"


def list_losses() -> str:
    """A line for each loss: its name, what it is, and what it needs."""
    rows = [(name, " ".join([sentence(LOSSES.resolve(name)), *_needs(name)])) for name in LOSSES.names()]
    return "\n".join([*one_line_each(rows), "", "Their fields: vlp losses NAME..., or vlp losses all"])


def describe_losses(names: Sequence[str]) -> str:
    """The fields of these losses, of every one for "all"; those of all losses stand first."""
    shared = settings(Loss)
    lines = with_settings("every loss", (), shared)
    for name in LOSSES.names() if ALL in names else names:
        cls = LOSSES.resolve(name)
        own = [setting for setting in settings(cls) if setting not in shared]
        lines += ["", *with_settings(name, [*paragraphs(cls), *_needs(name)], own)]
    return "\n".join(lines)


def _needs(name: str) -> list[str]:
    """What the model must make for this loss, in a sentence; no sentence where that is nothing beyond its features."""
    needs = LOSSES.resolve(name).needs
    if not isinstance(needs, frozenset):
        return ["Needs what its settings say."]
    return [f"Needs {', '.join(sorted(needs))}."] if needs else []
