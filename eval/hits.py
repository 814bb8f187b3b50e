"""Whether each item of a benchmark was right: files of zeros and ones, for paired comparisons of runs.

`BENCHMARK_hits.json` (of another head than global `BENCHMARK_hits_HEAD.json`) holds schema 1, and one entry an item in
each of: `keys`, the picture or sentence that intervals draw; `items`, what was asked of it; and `columns`, by metric 0
or 1, or null where the metric is not about the item. A column's mean without nulls is the metric.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eval.heads import Head, file_name
from eval.view import View

Column = Sequence[float | None]
RECALL = "recall"  # the measure that is read from ranks; others are columns of hits
RANKS = "ranks"  # the file of every query's rank


class Scores(NamedTuple):
    """One number an item; items of one key are drawn together."""

    keys: list[str]
    items: list[str]
    values: Tensor  # [n], in [0, 1]


def hits_file(
    benchmark: str, keys: Sequence[str], items: Sequence[str], columns: Mapping[str, Column], *, head: Head = "global"
) -> dict[str, Any]:
    """The file's content by its name, for `Outcome.files`."""
    whole = {name: [None if hit is None else int(hit) for hit in column] for name, column in columns.items()}
    return {_name(benchmark, head): {"schema": 1, "keys": list(keys), "items": list(items), "columns": whole}}


def picture_keys(view: View, rows: Sequence[int]) -> list[str]:
    """What the pictures of these rows are called, as in files of ranks."""
    places = view.places()
    return [f"{places[row].shard}:{places[row].key}" for row in rows]


def read_hits(folder: Path, measure: str, *, head: Head) -> Scores:
    """The items of a measure, COLUMN or BENCHMARK/COLUMN, from the one file in `folder` that has it.

    ValueError where none has it, or several have.
    """
    benchmark, _, column = measure.rpartition("/")
    every = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(_name("*", head)))}
    found = {name: content for name, content in every.items() if column in content["columns"]}
    if benchmark:
        found = {name: content for name, content in found.items() if name == _name(benchmark, head)}
    if len(found) > 1:
        one = next(iter(found)).removesuffix(_name("", head))
        raise ValueError(f'{folder}: "{measure}" stands in {" and ".join(found)}; say which, as in {one}/{column}')
    if not found:
        known = sorted({name for content in every.values() for name in content["columns"]})
        raise ValueError(
            f'{folder}: no hits of "{measure}" by the {head} head (known: {", ".join(["recall", *known])}); run '
            "`vlp eval` with the benchmark that measures it, such as pointing, caption_negatives or true_false"
        )
    (content,) = found.values()
    asked = [place for place, hit in enumerate(content["columns"][column]) if hit is not None]
    keys, items = ([content[name][place] for place in asked] for name in ("keys", "items"))
    return Scores(keys, items, torch.tensor([content["columns"][column][place] for place in asked]).double())


def known_measures(folder: Path, *, head: Head) -> list[str]:
    """What `read_hits` can be asked for there: columns, with their benchmark where several have one; and recall."""
    found = [RECALL] if (folder / file_name(RANKS, head)).is_file() else []
    columns = Counter[str]()
    ending = _name("", head)
    of = {}
    for file in sorted(folder.glob(_name("*", head))):
        of[file.name.removesuffix(ending)] = list(json.loads(file.read_text(encoding="utf-8"))["columns"])
    columns.update(name for names in of.values() for name in names)
    return found + [
        f"{benchmark}/{name}" if columns[name] > 1 else name for benchmark, names in of.items() for name in names
    ]


def _name(benchmark: str, head: Head) -> str:
    return file_name(f"{benchmark}_hits", head)
