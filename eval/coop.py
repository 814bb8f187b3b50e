"""Sets of the CoOp protocol (Zhou et al. 2022, arXiv 2109.01134) as people have them on disk, with its splits.

Three forms: `split_zhou_*.json` with [picture, label, class name] of train, val and test; FGVC Aircraft's own lists;
and ImageNet's folders, one a class, whose names stand in `classnames.txt`. ImageNet has no split: "test" is its val/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from vlp.data.folder import Folder
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError
from vlp.data.sources import Records
from vlp.data.table import Rows, TableRecords

SPLITS, VARIANTS, CLASSES = "split_zhou_*.json", "variants.txt", "classnames.txt"


class Listed(NamedTuple):
    """Pictures of one split, relative to where pictures lie, with their labels; names in label order."""

    file: Path  # the list itself
    paths: list[str]
    labels: list[int]
    names: tuple[str, ...]


def is_coop(root: Path) -> bool:
    """Whether the folder holds a set in one of the three forms."""
    by_class = (root / CLASSES).is_file() and (root / "images" / "val").is_dir()
    return any(root.glob(SPLITS)) or (root / VARIANTS).is_file() or by_class


def read_coop(root: Path, *, pictures: str, split: str) -> tuple[Records, tuple[str, ...]]:
    """Records whose `cls` is the label, and the class names in label order, underscores read as blanks as CoOp does."""
    if not any(root.glob(SPLITS)) and not (root / VARIANTS).is_file():
        return _by_class(root, pictures, split)
    listed = read_list(root, split)
    rows = pa.table({"path": listed.paths, "cls": listed.labels, "class": [listed.names[i] for i in listed.labels]})
    return TableRecords(listed.file, Rows(rows), "path", root / pictures), listed.names


def read_list(root: Path, split: str) -> Listed:
    """What the split's file lists; DataError for a file that is none, a split that is not there, or torn labels."""
    files = sorted(root.glob(SPLITS))
    if len(files) > 1:
        raise DataError(f"{root}: {', '.join(file.name for file in files)}: which is meant? leave one")
    return _zhou(files[0], split) if files else _aircraft(root, split)


def _zhou(file: Path, split: str) -> Listed:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: [(str(p), int(n), str(c)) for p, n, c in items] for name, items in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: wanted lists of [picture, label, class name] by split: {error}") from None
    if split not in parts:
        raise DataError(f'{file}: no split "{split}"; it has {", ".join(parts)}')
    named = {label: name.replace("_", " ") for items in parts.values() for _, label, name in items}
    if sorted(named) != list(range(len(named))):
        raise DataError(f"{file}: labels are not 0 to {len(named) - 1}, each with a class name")
    names = tuple(named[label] for label in range(len(named)))
    return Listed(file, [path for path, _, _ in parts[split]], [label for _, label, _ in parts[split]], names)


def _aircraft(root: Path, split: str) -> Listed:
    file = root / f"images_variant_{split}.txt"
    if not file.is_file():
        raise DataError(f"{file} is missing: the list of pictures and variants of that split")
    names = _lines(root / VARIANTS)
    place = {name: i for i, name in enumerate(names)}
    pairs = [line.partition(" ") for line in _lines(file)]
    unknown = {name for _, _, name in pairs} - place.keys()
    if unknown:
        raise DataError(f"{file}: variants that {VARIANTS} does not have: {', '.join(sorted(unknown)[:5])}")
    return Listed(file, [f"{key}.jpg" for key, _, _ in pairs], [place[name] for _, _, name in pairs], tuple(names))


def _by_class(root: Path, pictures: str, split: str) -> tuple[Records, tuple[str, ...]]:
    where = root / pictures if split == "test" else (root / pictures).parent / split
    records = Folder(path=str(where), layout="classes").open(ShardCache())
    named = dict(line.split(" ", 1) for line in _lines(root / CLASSES) if " " in line)
    missing = [folder for folder in records.classes if folder not in named]
    if missing:
        raise DataError(f"{root / CLASSES}: no name for the folders {', '.join(missing[:5])} of {where}")
    return records, tuple(named[folder] for folder in records.classes)


def _lines(file: Path) -> Sequence[str]:
    if not file.is_file():
        raise DataError(f"{file} is missing")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
