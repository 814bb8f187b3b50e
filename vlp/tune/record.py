"""One line of results of `vlp tune`: what was asked, what was reached, and what is needed to judge it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from vlp.log import JsonLines, read_lines
from vlp.metrics.chance import contains
from vlp.metrics.interval import of_means
from vlp.tune.arrays import Arrays
from vlp.tune.protocols import Hits

SCHEMA_VERSION = 1
RESULTS, HITS, REFUSED = "results.jsonl", "hits", "refused.json"
VALIDATION = "validation"  # labels of validation, and no others


class TuneRecord(BaseModel):
    """Shares lie in 0..1. Of several seeds `metrics` are means, `std` their spread (n - 1), `runs` the single ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    method: str
    dataset: str
    model: str
    protocol: str
    n: int  # test pictures
    shots: int | None  # null: all of train, or none
    labelled: str  # the same in words: a number, "all", "none", "validation" or "unknown"
    seed: int | None  # null: several
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]] = {}  # per metric: 95 % bootstrap interval over pictures
    chance: dict[str, float] = {}
    contains_chance: dict[str, bool] = {}  # the interval does not lie above chance
    selection: dict[str, Any] = {"split": "none"}  # where choices were made and which; "none": there were none
    settings: dict[str, Any] = {}  # all of the method's
    changed: dict[str, Any] = {}  # those that are not the default
    protocol_settings: dict[str, Any] = {}
    leaky: bool = False  # chose by test labels, as the published code does
    transductive: bool = False  # saw the measured pictures, without labels, while it was fitted
    level: str = "features"
    counts: dict[str, int] = {}
    skips: dict[str, int] = {}
    pseudolabels: dict[str, Any] | None = None  # accuracy and by_class (pictures, given, right) of those believed
    test_label_reads: int = 0  # scoring itself is one of each data set
    seconds: float
    weights_hash: str | None = None
    data_hashes: dict[str, str] = {}
    classes_hash: str
    templates_hash: str | None = None
    settings_hash: str  # of everything asked: what a grid goes on by
    code_version: str
    hits: str | None = None  # file of the pictures that were right, relative to the results
    std: dict[str, float] | None = None
    seeds: list[int] | None = None
    runs: list[dict[str, Any]] | None = None
    error: str | None = None  # why there is no result
    schema_version: int = SCHEMA_VERSION

    @property
    def brief(self) -> str:
        """The method and those of its settings that are one value, or a part by its name, for a line of progress."""
        named = {k: v.get("name", v) if isinstance(v, dict) else v for k, v in self.changed.items()}
        own = {key: value for key, value in named.items() if not isinstance(value, dict | list)}
        said = ", ".join(f"{key}={value}" for key, value in own.items())
        rest = ", ..." if len(own) < len(self.changed) and said else "..." if len(own) < len(self.changed) else ""
        return f"{self.method} ({said}{rest})" if self.changed else self.method

    @property
    def label(self) -> str:
        """The method and those of its settings that are not the default."""
        said = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.changed.items())
        return f"{self.method} ({said})" if said else self.method


def labels_in_words(labelled: str) -> str:
    """What `labelled` of a record means: "no labels", "1 shot", "4 shots", "all labels", "validation labels", ..."""
    words = {"none": "no labels", "1": "1 shot"} | {one: f"{one} labels" for one in ("all", VALIDATION, "unknown")}
    return words.get(labelled, f"{labelled} shots")


def settings_hash(*asked: Any) -> str:
    """16 hex digits that change with anything that was asked."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(record: TuneRecord, folder: Path) -> None:
    """One line more in the folder's results."""
    lines = JsonLines(folder / RESULTS)
    lines.write(record.model_dump(mode="json"))
    lines.close()


def read(file: Path) -> Iterator[TuneRecord]:
    """Every record of a file; lines torn by a kill are passed over, ValueError for one of something else."""
    for line in read_lines(file):
        try:
            yield TuneRecord.model_validate(line)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{file}: not a record of vlp tune: {where}: {fault['msg']}") from None


def write_hits(hits: Hits, folder: Path, name: str) -> str:
    """Writes FOLDER/hits/NAME.npz, per metric whether each picture was right and its key; that path from FOLDER."""
    (folder / HITS).mkdir(parents=True, exist_ok=True)
    arrays = {metric: right.numpy() for metric, (_, right) in hits.items()}
    arrays |= {f"{metric}.keys": np.array(keys, dtype=str) for metric, (keys, _) in hits.items()}
    np.savez_compressed(folder / HITS / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    return f"{HITS}/{name}.npz"


def read_hits(file: Path, metric: str) -> tuple[list[str], Tensor]:
    """Keys of the measured pictures, and whether each was right; ValueError where the file is not there."""
    try:
        arrays = Arrays(file)
        return list(arrays.words(f"{metric}.keys")), torch.from_numpy(arrays.array(metric))
    except ValueError as error:
        raise ValueError(f"{file}: no hits of {metric} ({error}); measure again with `vlp tune --out`") from None


def summary(records: Sequence[TuneRecord], hits: Sequence[Hits]) -> TuneRecord:
    """Several seeds as one record; intervals are of the mean over seeds, and draw pictures."""
    first = records[0]
    values = {name: torch.tensor([row.metrics[name] for row in records], dtype=torch.float64) for name in first.metrics}
    ci95 = {name: _interval(name, hits) for name in hits[0]}
    runs = [{"seed": row.seed, "metrics": row.metrics, "selection": row.selection} for row in records]
    right = [row.pseudolabels["accuracy"] for row in records if row.pseudolabels and row.pseudolabels["pairs"]]
    return first.model_copy(
        update={
            "seed": None,
            "seeds": [row.seed for row in records],
            "metrics": {name: float(value.mean()) for name, value in values.items()},
            "std": {name: float(value.std()) for name, value in values.items()},
            "runs": runs,
            "ci95": ci95,
            "contains_chance": at_chance(ci95, first.chance),
            "selection": first.selection if all(r.selection == first.selection for r in records) else _varied(records),
            "pseudolabels": {"accuracy": fmean(right)} if right else None,
            "seconds": round(sum(row.seconds for row in records), 3),
            "test_label_reads": sum(row.test_label_reads for row in records),
            "hits": None,
        }
    )


def at_chance(ci95: Mapping[str, tuple[float, float]], chance: Mapping[str, float]) -> dict[str, bool]:
    """By metric whether the interval is not above what guessing reaches."""
    return {name: contains(chance[name], interval) for name, interval in ci95.items() if name in chance}


def _interval(metric: str, hits: Sequence[Hits]) -> tuple[float, float]:
    mean = torch.stack([one[metric][1].double() for one in hits]).mean(dim=0)
    low, high = of_means(mean[:, None])[0]
    return low, high


def _varied(records: Sequence[TuneRecord]) -> dict[str, Any]:
    """Where choices were made; which they were differs by seed and stands in `runs`."""
    splits = {str(row.selection.get("split")) for row in records}
    return {"split": "/".join(sorted(splits)), "varies": True}
