"""What lies at a path, in words for messages: a wrong path is mostly the right one of something else."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # pathlib makes http:/x of http://x; C:/ is a drive
_LOOKED_AT = 10_000  # files below a folder among which a picture is looked for
_SHOWN = 8  # names that a message lists


def refuse_url(path: str | Path, *, fault: type[ValueError] = ValueError) -> None:
    """`fault` that says how to download it where a path is a URL, which only shards may be."""
    if found := _URL.fullmatch(str(path)):
        url = f"{found[1]}://{found[2]}"
        raise fault(f"{url}: URLs are not read here; download it first: curl -LO {shlex.quote(url)}")


def is_picture(path: Path) -> bool:
    """Whether a name has the ending of a picture."""
    return path.suffix[1:].lower() in IMAGE_ENDINGS


def holds_pictures(folder: Path) -> bool:
    """Whether a picture is among the first files in a folder or below it."""
    return any(map(is_picture, itertools.islice(folder.rglob("*"), _LOOKED_AT)))


def is_run(folder: Path) -> bool:
    """Whether `vlp train` wrote into the folder."""
    return (folder / "config.yaml").is_file() and any(
        (folder / name).exists() for name in ("checkpoints", "metrics.jsonl", "host.json")
    )


def kind_of(path: Path) -> str:
    """What lies at a path: "a run", "an index", "a folder of pictures", "a file"."""
    if not path.is_dir():
        return "not there" if not path.exists() else "a picture" if is_picture(path) else "a file"
    if is_run(path):
        return "a run"
    for file, kind in (
        ("index.json", "an index"),
        ("adapter.json", "a fitted adapter"),
        ("ensemble.json", "an ensemble"),
    ):
        if (path / file).is_file():
            return kind
    if any(path.glob("*.tar")):
        return "a folder of shards"
    if not any(path.iterdir()):
        return "an empty folder"
    return "a folder of pictures" if holds_pictures(path) else "a folder"


def holding(folder: Path, pattern: str) -> list[str]:
    """Names of the folders right in a folder that hold a file like `pattern`, sorted; [] where it is no folder."""
    inner = sorted(folder.iterdir()) if folder.is_dir() else ()
    return [place.name for place in inner if place.is_dir() and any(place.glob(pattern))]


def listed(names: list[str]) -> str:
    """Names for a message: the first few, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def file_wanted(folder: Path) -> str:
    """What is said of a folder where a configuration file was wanted."""
    if is_run(folder):
        return f"{folder} is a run; its file: {folder / 'config.yaml'}"
    if files := sorted(path.name for path in folder.glob("*.y*ml")):
        return f"{folder} is a folder, and one file is wanted; in it: {listed(files)}"
    return f"{folder} is {kind_of(folder)} (in {Path.cwd()}); wanted is a YAML file, and it holds none"
