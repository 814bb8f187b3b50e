"""Effective robustness over results of many models: `vlp eval table FOLDER --shift imagenet1k:imagenetv2,...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eval.leaderboard import Board, Column, Format, laid_out, named
from vlp.metrics.shifts import EffectiveRobustness, effective_robustness
from vlp.registry import nearest


class Shift(NamedTuple):
    """A data set, and those whose pictures differ from its in kind."""

    original: str
    shifted: tuple[str, ...]


class Effect(NamedTuple):
    """One shifted data set: accuracies above the line of the baseline, of the models measured on both."""

    original: Column
    shifted: Column
    models: list[str]
    baseline: list[str]  # those of the models that the line is fitted to
    left_out: list[str]  # measured on one of the two only
    found: EffectiveRobustness

    def notes(self) -> list[str]:
        """The line, and what was left out."""
        line = self.found.line
        said = (
            f"{self.original.title} -> {self.shifted.title}: logit(y) = {line.slope:.3g} logit(x) "
            f"{line.intercept:+.3g} over {len(self.baseline)} models ({', '.join(self.baseline)}), R2 {line.r2:.3f}"
        )
        said += f"; {line.clipped} of their accuracies clipped" if line.clipped else ""
        said += f"; {self.found.undefined} resamples had no line" if self.found.undefined else ""
        return [said, *([f"  measured on one of the two only: {', '.join(self.left_out)}"] if self.left_out else [])]


def parse_shift(words: str) -> Shift:
    """The shift that "ORIGINAL:SHIFTED,SHIFTED" names; ValueError for anything else."""
    original, _, rest = words.partition(":")
    shifted = tuple(name.strip() for name in rest.split(",") if name.strip())
    if not original.strip() or not shifted:
        raise ValueError(f'--shift "{words}": give ORIGINAL:SHIFTED,..., such as imagenet1k:imagenetv2,imagenet_sketch')
    return Shift(original.strip(), shifted)


def robustness(board: Board, shift: Shift, baseline: Sequence[str], *, n_boot: int = 1000) -> list[Effect]:
    """An effect for each shifted data set and each way both were measured in: task, language, head and metric.

    baseline: names of models, or patterns of them (`ViT-*`). The original should hold the classes of the shifted set
    and no others: for ImageNet-A and -R, ImageNet with their 200 classes (Taori et al., arXiv 2007.00644).
    """
    chosen = _chosen(board, baseline)
    effects = []
    for name in shift.shifted:
        pairs = _pairs(board, shift.original, name)
        effects += [_effect(board, original, shifted, chosen, n_boot) for original, shifted in pairs]
    return effects


def as_text(board: Board, effects: Sequence[Effect], how: Format, *, intervals: bool = True) -> str:
    """One row a model: its accuracies, that of the line, and the difference with its interval; in percent but in csv.

    The intervals are those of the line, over the models that it is fitted to, which are marked.
    """
    ends = ["low", "high"] if how == "csv" and intervals else []
    head = ["model"]
    for effect in effects:
        head += [effect.original.title] if effect.original.title not in head else []
        title = effect.shifted.title
        head += [title, f"{title}, by the line", f"{title}, above it", *(f"{title}, above it, {end}" for end in ends)]
    known = {model: [model in effect.models for effect in effects] for model in board.models}
    order = sorted((model for model in board.models if any(known[model])), key=lambda model: -_mean(effects, model))
    return laid_out(head, [_row(board, effects, model, how, intervals) for model in order], how)


def _row(board: Board, effects: Sequence[Effect], model: str, how: Format, intervals: bool) -> list[str]:
    shown = f"{model} (baseline)" if any(model in effect.baseline for effect in effects) else model
    cells, originals = [shown], set[str]()
    for effect in effects:
        if effect.original.title not in originals:
            originals.add(effect.original.title)
            cells.append(_number(board.value(model, effect.original), how))
        cells.append(_number(board.value(model, effect.shifted), how))
        if model not in effect.models:
            cells += ["-"] * (4 if how == "csv" and intervals else 2)
            continue
        place = effect.models.index(model)
        value, (low, high) = float(effect.found.values[place]), effect.found.intervals[place]
        cells.append(_number(float(effect.found.expected[place]), how))
        if how == "csv":
            cells += [f"{number:.6g}" for number in ((value, low, high) if intervals else (value,))]
        else:
            between = f" ({100 * low:+.1f} to {100 * high:+.1f})" if intervals else ""
            cells.append(f"{100 * value:+.1f}{between}")
    return cells


def _number(value: float | None, how: Format) -> str:
    return "-" if value is None else f"{value:.6g}" if how == "csv" else f"{100 * value:.1f}"


def _mean(effects: Sequence[Effect], model: str) -> float:
    """The model's mean effective robustness over the shifts that it was measured on."""
    values = [float(e.found.values[e.models.index(model)]) for e in effects if model in e.models]
    return sum(values) / len(values)


def _chosen(board: Board, baseline: Sequence[str]) -> set[str]:
    """The models that the patterns name; ValueError for one that names none."""
    if not baseline:
        known = ", ".join(sorted(board.models))
        raise ValueError(f"no model to fit the line to: name the baseline with --baseline (models: {known})")
    return named(baseline, board.models, option="--baseline", what="model")


def _pairs(board: Board, original: str, shifted: str) -> list[tuple[Column, Column]]:
    """The columns of both data sets that differ in nothing else."""
    sets = {column.dataset for column in board.columns}
    for name in (original, shifted):
        if name not in sets:
            raise ValueError(f'--shift: no result on "{name}"{nearest(name, sets)}')
    ways = {column[1:]: column for column in board.columns if column.dataset == original}
    pairs = [(ways[c[1:]], c) for c in board.columns if c.dataset == shifted and c[1:] in ways]
    if not pairs:
        each = [[c[1:] for c in board.columns if c.dataset == name] for name in (original, shifted)]
        first, second = (", ".join(" ".join(filter(None, way)) for way in found) for found in each)
        raise ValueError(f"--shift: {original} was measured by {first}, {shifted} by {second}: nothing to compare")
    return pairs


def _effect(board: Board, original: Column, shifted: Column, chosen: set[str], n_boot: int) -> Effect:
    values = {model: (board.value(model, original), board.value(model, shifted)) for model in board.models}
    models = [model for model, both in values.items() if None not in both]
    left_out = [model for model, both in values.items() if model not in models and both != (None, None)]
    baseline = [model for model in models if model in chosen]
    x, y = _both(values, models)
    try:
        base_x, base_y = _both(values, baseline)
        found = effective_robustness(x, y, baseline_original=base_x, baseline_shifted=base_y, n_boot=n_boot)
    except ValueError as error:
        raise ValueError(f"{original.title} -> {shifted.title}: {error}") from None
    return Effect(original, shifted, models, baseline, left_out, found)


def _both(values: dict[str, tuple[float | None, float | None]], models: Sequence[str]) -> tuple[Tensor, Tensor]:
    x, y = torch.tensor([values[model] for model in models], dtype=torch.float64).reshape(-1, 2).unbind(1)
    return x, y
