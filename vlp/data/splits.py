"""Train and validation by hash of the group: a pure function of the data, written to a file when it must stay."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlp.data.schema import DataError, write_atomic
from vlp.types import BadSampleError, Sample

_SPAN = 1 << 64


def hash64(text: str) -> int:
    """A 64-bit hash of a text, the same everywhere and always."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, as JSON can spell one
        raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")


def in_validation(groups: Sequence[str], fraction: float) -> npt.NDArray[np.bool_]:
    """Which samples are validation: those of groups whose hash is in the lowest `fraction` of all hashes.

    A group is never parted, and its side does not depend on the others, with one exception: where groups are so few
    that a quarter too few or a third too many samples fall there, they are taken in order of hash as they fit.
    """
    sizes = Counter(groups)
    chosen = {group for group in sizes if hash64(group) < fraction * _SPAN}
    share = sum(sizes[group] for group in chosen) / max(len(groups), 1)
    if not 0.75 * fraction <= share <= 1.33 * fraction:
        chosen = _fitting(sizes, fraction * len(groups))
    return np.array([group in chosen for group in groups], dtype=np.bool_)


def field_of(sample: Sample, dotted: str) -> str:
    """The value of a json field as text; BadSampleError if the sample has no such field."""
    try:
        value: Any = json.loads(sample.members.get("json", b"null"))
    except (ValueError, RecursionError) as error:
        raise BadSampleError("bad_json", str(error)) from error
    for name in dotted.split("."):
        if not isinstance(value, dict) or name not in value:
            raise BadSampleError("no_group", f'no json field "{dotted}"')
        value = value[name]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def write_split(path: str | Path, keys: Sequence[str], groups: Sequence[str], *, fraction: float) -> Path:
    """Writes key, group and split of every sample as CSV, atomically; `split_file` of a source reads it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "group", "split"))
    for key, group, validation in zip(keys, groups, in_validation(groups, fraction).tolist(), strict=True):
        writer.writerow((key, group, "validation" if validation else "train"))
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))
    return Path(path)


def read_split(path: str | Path) -> dict[str, str]:
    """Key -> "train" or "validation"."""
    path = _existing(path)
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"key", "split"} <= rows[0].keys():
        raise DataError(f"{path}: a split file has the columns key and split")
    return {row["key"]: row["split"] for row in rows}


def read_keys(path: str | Path) -> set[str]:
    """Keys of a keep-list: a parquet or csv with `key` (and `shard`, and `keep`: only true ones), or a txt of lines.

    With a shard column the keys are `shard:key`.
    """
    path = _existing(path)
    if path.suffix == ".txt":
        return set(filter(None, path.read_text(encoding="utf-8").splitlines()))
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    elif path.suffix in (".csv", ".tsv"):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    else:
        raise DataError(f"{path}: a keep-list is a .parquet, .csv, .tsv or .txt file")
    if rows and "key" not in rows[0]:
        raise DataError(f"{path}: a keep-list has a column key; this one has {', '.join(rows[0])}")
    kept = [row for row in rows if str(row.get("keep", True)).lower() in ("true", "1", "yes")]
    return {f"{Path(row['shard']).name}:{row['key']}" if row.get("shard") else str(row["key"]) for row in kept}


def _fitting(sizes: Counter[str], target: float) -> set[str]:
    """Groups in order of hash, each taken if `target` is not overshot by more than a tenth; at least the smallest."""
    chosen: set[str] = set()
    total = 0
    for group in sorted(sizes, key=lambda name: (hash64(name), name)):
        if total + sizes[group] <= 1.1 * target:
            chosen.add(group)
            total += sizes[group]
    return chosen or {min(sizes, key=lambda name: (sizes[name], hash64(name)))}


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"no such file: {path} (in {Path.cwd()})")
    return path
