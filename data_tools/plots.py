"""Plots of `stats`: picture sizes and caption lengths, drawn without a display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_tools.stats import Tally

BLUE, ORANGE = "#3566a8", "#d9772b"


def plot_stats(tally: Tally, out: Path) -> list[Path]:
    """Writes pictures.png and captions.png; returns the paths of those that had something to show."""
    written = []
    if tally.widths:
        written.append(_pictures(tally, out / "pictures.png"))
    if tally.words:
        written.append(_captions(tally, out / "captions.png"))
    return written


def _pictures(tally: Tally, path: Path) -> Path:
    figure, (left, middle, right) = _row(3)
    sizes = Counter(zip(tally.widths, tally.heights))
    x, y, count = zip(*((w, h, n) for (w, h), n in sizes.items()))
    left.scatter(x, y, s=[8 + 300 * n / max(count) for n in count], alpha=0.35, color=BLUE, linewidths=0)
    left.set_xlim(0, 1.1 * max(x))
    left.set_ylim(0, 1.1 * max(y))
    _label(left, "size", "width, pixels", "height, pixels")
    middle.hist([w / h for w, h in zip(tally.widths, tally.heights)], bins=40, color=BLUE)
    _label(middle, "aspect", "width / height", "pictures")
    right.hist([n / 1024 for n in tally.image_bytes], bins=40, color=BLUE)
    _label(right, "weight", "KiB a picture", "pictures")
    return _save(figure, path)


def _captions(tally: Tally, path: Path) -> Path:
    figure, (left, middle, right) = _row(3)
    _lengths(left, tally.words)
    _label(left, "words", "words a caption", "captions")
    if tally.token_counts:
        _lengths(middle, tally.token_counts)
        middle.axvline(tally.settings.context, color=ORANGE, linestyle="--", label=f"context {tally.settings.context}")
        middle.legend(frameon=False)
    _label(middle, "tokens", f"{tally.settings.tokenizer or 'no'} tokens a caption", "captions")
    names, counts = zip(*reversed(tally.scripts.most_common(10)))
    for bar, count in zip(right.barh(names, counts, color=BLUE), counts):
        right.annotate(f" {count}", (bar.get_width(), bar.get_y() + bar.get_height() / 2), va="center")
    right.set_xlim(0, 1.2 * max(counts))
    _label(right, "scripts", "captions", "")
    return _save(figure, path)


def _lengths(axes: Any, values: Sequence[int]) -> None:
    """Histogram up to the 99th percentile: one long text must not flatten the rest; the last bar is "or more"."""
    top = sorted(values)[min(len(values) - 1, int(0.99 * len(values)))] + 1
    width = max(1, top // 50)
    axes.hist([min(value, top) for value in values], bins=range(0, top + 2 * width, width), color=BLUE)


def _row(columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    return figure, figure.subplots(1, columns)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path
