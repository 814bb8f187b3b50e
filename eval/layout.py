"""The folder layout of CLIP_benchmark's webdatasets: `test/0.tar`, `test/nshards.txt`, `classnames.txt`, templates."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from vlp.data.schema import DataError
from vlp.text.templates import read_templates

CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


class Words(NamedTuple):
    """What a folder says about its classes; None for what it does not say."""

    names: tuple[str, ...] | None  # in label order; repeated names stay, as some published sets have them
    templates: tuple[str, ...] | None


class Layout(NamedTuple):
    """What such a folder holds for one split."""

    shards: list[str]
    names: tuple[str, ...] | None
    templates: tuple[str, ...] | None


def is_layout(root: Path, split: str) -> bool:
    """Whether the folder holds a split in this layout."""
    return (root / split / "nshards.txt").is_file()


def read_layout(root: Path, split: str, *, blank: Collection[int] = ()) -> Layout:
    """The split's shards, all of which must be there, and the class names and templates if the folder has them."""
    counter = root / split / "nshards.txt"
    try:
        count = int(counter.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(f"{counter}: wanted the number of shards: {error}") from None
    shards = [root / split / f"{number}.tar" for number in range(count)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise DataError(f"{counter} says {count} shards, but {len(missing)} are missing: {', '.join(missing[:5])}")
    return Layout([str(shard) for shard in shards], *read_words(root, blank=blank))


def read_words(root: Path, *, blank: Collection[int] = ()) -> Words:
    """Class names and templates that lie in a folder; classes of `blank` may have an empty name."""
    templates = root / TEMPLATES
    return Words(_names(root / CLASSES, blank), read_templates(templates) if templates.is_file() else None)


def _names(path: Path, blank: Collection[int]) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    empty = [str(number) for number, name in enumerate(names, start=1) if not name and number - 1 not in blank]
    if empty or not names:
        raise DataError(f"{path}: empty class names on lines {', '.join(empty[:5]) or '(no line at all)'}")
    return tuple(names)
