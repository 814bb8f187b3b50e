"""What every stage of a sequence of domains scores on every domain, and what follows: averages, forgetting, transfer.

Beside a stage's results lies `scores.json`:

    schema 1, step, asked (what was measured: see `Judge`), and scores: {domain: {
      value     mean over the domain's metrics
      chance    the same of what guessing reaches; null where a metric has none
      metrics   {name: value}
      n         pictures
      spread    standard deviation of `value` by the records' intervals
      parts     null, or of retrieval by pooled features: [{weight, hits [n], counts [n]}], value = sum over parts of
                weight * sum(hits) / sum(counts), so that pictures can be drawn, the same ones at every stage }}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eval.record import Record
from eval.suite import Suite, run_suite
from vlp import checkpoint, dist
from vlp.data.schema import write_atomic
from vlp.embed import Encoder
from vlp.metrics.recall import retrieval_ranks

SCORES = "scores.json"
_TO_TEXT, _TO_IMAGE = "text_retrieval_recall@", "image_retrieval_recall@"


class Asked(NamedTuple):
    """What scores a domain: the benchmark with that `dataset`, and the mean over metrics (empty: by its task)."""

    domain: str
    dataset: str
    metrics: tuple[str, ...]


class Judge:
    """Runs the suites on a model and keeps the score of every domain in the folder of the stage."""

    def __init__(self, asked: Sequence[Asked], suites: Sequence[Suite]) -> None:
        self.asked, self.suites = tuple(asked), tuple(suites)
        known = {part.dataset for suite in suites for part in suite.benchmarks}
        for one in self.asked:
            if one.dataset not in known:
                raise ValueError(
                    f'domain {one.domain}: no benchmark of the suites has the dataset "{one.dataset}"; they have '
                    f"{', '.join(sorted(known))}: name one of them in the domain's `test`"
                )

    def done(self, folder: Path) -> bool:
        """Whether the stage was measured, on just this."""
        file = folder / SCORES
        return file.is_file() and checkpoint.read_json(file).get("asked") == self._described()

    def __call__(self, dual: nn.Module, folder: Path, *, step: int) -> None:
        """Records, examples and `scores.json` in the folder."""
        encoder = Encoder(dual, device=str(next(dual.parameters()).device), quiet=True)
        records = []
        for suite in self.suites:
            records += run_suite(encoder, suite, out=folder, step=step, model_name=folder.name)
        if dist.is_main():
            scores = {one.domain: score(one, records, folder) for one in self.asked}
            content = {"schema": 1, "step": step, "asked": self._described(), "scores": scores}
            write_atomic(folder / SCORES, (json.dumps(content) + "\n").encode())
        dist.barrier()

    def _described(self) -> Any:
        """Of the suites what decides the scores, not where the data lie."""
        benchmarks = [
            part.model_dump(mode="json", exclude={"data"}) for suite in self.suites for part in suite.benchmarks
        ]
        plain = {"domains": [one._asdict() for one in self.asked], "benchmarks": benchmarks}
        return json.loads(json.dumps(plain))


def score(asked: Asked, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """The entry of a domain in `scores.json`, from the records of its stage and the files beside them."""
    record = _record_of(asked, records)
    names = asked.metrics or _default_metrics(record)
    count = len(names)
    values = {name: record.metrics[name] for name in names}
    widths = [high - low for low, high in (record.ci95[name] for name in names if name in record.ci95)]
    chances = [record.chance[name] for name in names if name in record.chance]
    by_recall = all(name.startswith((_TO_TEXT, _TO_IMAGE)) for name in names)
    return {
        "value": sum(values.values()) / count,
        "chance": sum(chances) / count if len(chances) == count else None,
        "metrics": values,
        "n": record.n,
        # of a mean at most the mean of their deviations
        "spread": sum(widths) / count / (2 * 1.96) if len(widths) == count else None,
        "parts": _parts(names, folder / "eval" / asked.dataset) if by_recall and record.head == "global" else None,
    }


def _record_of(asked: Asked, records: Sequence[Record]) -> Record:
    """The record that the domain is scored by; ValueError if there is none, or no telling which."""
    found = [r for r in records if r.dataset == asked.dataset and (asked.metrics or _default_metrics(r))]
    found = [r for r in found if set(asked.metrics) <= r.metrics.keys()]
    if len(found) != 1:
        known = sorted({name for r in records if r.dataset == asked.dataset for name in r.metrics})
        raise ValueError(
            f'domain {asked.domain}: {len(found)} benchmarks of "{asked.dataset}" fit, one is needed; '
            f"name the domain's `metrics`: {', '.join(known)}"
        )
    return found[0]


def _default_metrics(record: Record) -> tuple[str, ...]:
    if "acc1" in record.metrics:
        return ("acc1",)
    return tuple(name for name in record.metrics if name.startswith((_TO_TEXT, _TO_IMAGE)))


def _parts(names: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Hits of every picture in each direction, from the features that the evaluation left."""
    items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    features = load_file(folder / "features.safetensors")
    rows, place = torch.unique(torch.tensor(items["caption_image"]), return_inverse=True)
    ranks = retrieval_ranks(features["image"][rows], features["text"], place)
    captions = torch.bincount(place)
    parts = []
    for prefix in (_TO_TEXT, _TO_IMAGE):
        best = [int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)]
        if not best:
            continue
        own, counts = ranks.image_to_text, torch.ones_like(captions)
        hits = torch.stack([own <= k for k in best]).double().mean(0)
        if prefix == _TO_IMAGE:
            of_captions = torch.stack([ranks.text_to_image <= k for k in best]).double().mean(0)
            hits = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, place, of_captions)
            counts = captions
        weight = len(best) / len(names)
        parts.append({"weight": weight, "hits": hits.tolist(), "counts": counts.tolist()})
    return parts


def drawn(stages: Sequence[dict[str, Any]], *, n_boot: int, seed: int) -> Tensor:
    """Bootstrap values [n_boot, S] of one domain at S stages; pictures are drawn alike at all of them.

    Without hits of each picture stages are drawn apart, from a normal law as wide as their intervals: too wide rather
    than too narrow for differences. NaN where the record had no interval either.
    """
    rng = torch.Generator().manual_seed(seed)
    if any(stage["parts"] is None for stage in stages):
        value = torch.tensor([stage["value"] for stage in stages], dtype=torch.float64)
        spreads = [math.nan if stage["spread"] is None else stage["spread"] for stage in stages]
        noise = torch.randn(n_boot, len(stages), generator=rng, dtype=torch.float64)
        return value + noise * torch.tensor(spreads, dtype=torch.float64)
    n = len(stages[0]["parts"][0]["hits"])
    times = torch.multinomial(torch.ones(n).expand(n_boot, n), n, replacement=True, generator=rng)
    often = torch.zeros(n_boot, n, dtype=torch.float64).scatter_add_(
        1, times, torch.ones(n_boot, n, dtype=torch.float64)
    )
    columns = []
    for stage in stages:
        shares = [
            part["weight"] * (often @ _column(part["hits"])) / (often @ _column(part["counts"]))
            for part in stage["parts"]
        ]
        columns.append(torch.stack(shares).sum(0))
    return torch.stack(columns, 1)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
