"""Whether one way of training is better than another on the same queries: paired bootstrap over pictures.

Of retrieval every picture's score is the mean over k of its hits, half from its own query and half from its captions';
of other benchmarks the items' hits are compared, and those of one picture (or sentence) drawn together. Seeds of an arm
are averaged per item first. Drawing pictures, the same for both arms, removes what makes a picture hard for all of
them; what the seed does is shown beside it as a spread, since a bootstrap over queries cannot see it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eval.heads import HEADS, Head, file_name
from eval.hits import RANKS, RECALL, Scores, read_hits
from vlp.metrics.interval import Interval, of_means
from vlp.registry import nearest


class Arm(NamedTuple):
    """One way of training: its run folders, one a seed, and which head's answers count."""

    folders: Sequence[Path]
    head: Head = "global"


class Row(NamedTuple):
    """One arm: the measure's mean over items and seeds, its seeds' values, and its difference to the baseline."""

    arm: str
    seeds: tuple[float, ...]
    mean: float
    difference: float | None  # None for the baseline itself
    interval: Interval | None

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); 0 for a single one."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else 0.0

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "baseline"
        return "better" if self.interval.low > 0 else "worse" if self.interval.high < 0 else "no difference shown"


def compare(
    arms: Mapping[str, Arm],
    *,
    baseline: str | None = None,
    dataset: str,
    measure: str = RECALL,
    k: Sequence[int] = (1, 5, 10),
    n_boot: int = 10_000,
) -> list[Row]:
    """One row an arm, best first; the runs were evaluated on `dataset` by the benchmark that has the measure.

    measure: "recall", the mean of recall at `k` both ways, or a column of hits (`eval.hits.read_hits`).
    baseline: the arm that the others are compared with; None: the first.
    ValueError where a run lacks that evaluation, or its queries are others than the baseline's.
    """
    baseline = next(iter(arms)) if baseline is None else baseline
    if baseline not in arms:
        raise ValueError(f'no arm "{baseline}"{nearest(baseline, arms)}')
    read = {
        name: [_read(folder / "eval" / dataset, arm.head, measure, k) for folder in arm.folders]
        for name, arm in arms.items()
    }
    first = read[baseline][0]
    for name, runs in read.items():
        for folder, own in zip(arms[name].folders, runs, strict=True):
            if (own.keys, own.items) != (first.keys, first.items):
                raise ValueError(f"{folder}: {dataset} holds other pictures there than in {arms[baseline].folders[0]}")
    score = {name: torch.stack([own.values for own in runs]) for name, runs in read.items()}  # [seeds, items]
    base, number = score[baseline].mean(0), {key: place for place, key in enumerate(dict.fromkeys(first.keys))}
    groups = torch.tensor([number[key] for key in first.keys])
    rows = [_row(name, values, None if name == baseline else base, groups, n_boot) for name, values in score.items()]
    return sorted(rows, key=lambda row: -row.mean)


def _row(arm: str, values: Float[Tensor, "S N"], base: Tensor | None, groups: Int[Tensor, "N"], n_boot: int) -> Row:
    seeds, mean = tuple(values.mean(1).tolist()), float(values.mean())
    if base is None:
        return Row(arm, seeds, mean, None, None)
    difference = (values.mean(0) - base)[:, None]
    return Row(arm, seeds, mean, float(difference.mean()), of_means(difference, groups=groups, n_boot=n_boot)[0])


def _read(folder: Path, head: Head, measure: str, k: Sequence[int]) -> Scores:
    return _recall(folder / file_name(RANKS, head), k) if measure == RECALL else read_hits(folder, measure, head=head)


def _recall(file: Path, k: Sequence[int]) -> Scores:
    """The score of each picture that has captions."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; run `vlp eval` with its retrieval benchmark") from None
    hits = {
        name: torch.stack([torch.tensor(found[name]) <= best for best in k]).double().mean(0)
        for name in ("image_to_text", "text_to_image")
    }
    place = torch.tensor(found["caption_image"])
    captions = torch.bincount(place, minlength=len(found["keys"])).double()
    to_image = torch.zeros(len(captions), dtype=torch.float64).index_add_(0, place, hits["text_to_image"]) / captions
    return Scores(found["keys"], [], (hits["image_to_text"] + to_image) / 2)


def as_text(rows: Sequence[Row], *, measure: str = RECALL) -> str:
    """The rows as a Markdown table, in percent."""
    lines = [
        f"| arm | {'mean recall' if measure == RECALL else measure} | seeds | spread | difference (95 %) | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        seeds = ", ".join(f"{100 * value:.2f}" for value in row.seeds)
        apart = "-"
        if row.interval is not None and row.difference is not None:
            low, high = (100 * end for end in row.interval)
            apart = f"{100 * row.difference:+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(
            f"| {row.arm} | {100 * row.mean:.2f} | {seeds} | {100 * row.spread:.2f} | {apart} | {row.verdict} |"
        )
    return "\n".join(lines)


def parse_arms(words: Sequence[str]) -> dict[str, Arm]:
    """Arms from NAME=GLOB or NAME=GLOB@HEAD; ValueError for a pattern that no folder matches."""
    arms = {}
    for word in words:
        name, equals, pattern = word.partition("=")
        pattern, _, head = pattern.partition("@")
        if not equals or head not in ("", *HEADS):
            raise ValueError(f'"{word}": an arm is NAME=FOLDERS or NAME=FOLDERS@tokens, e.g. clip=runs/out/clip-seed*')
        folders = _folders(Path(pattern))
        if not folders:
            raise ValueError(f'"{word}": no folder matches {pattern}')
        arms[name] = Arm(folders, cast(Head, head or "global"))
    return arms


def _folders(pattern: Path) -> list[Path]:
    """What matches and is a folder: logs of the runs may lie beside them."""
    root = Path(pattern.anchor)
    return sorted(path for path in root.glob(str(pattern.relative_to(root))) if path.is_dir())
