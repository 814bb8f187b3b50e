"""Features that were computed elsewhere: a folder of .npz files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.stored import Stored
from vlp.adapters.task import Examples
from vlp.log import console
from vlp.registry import nearest
from vlp.tune.arrays import Arrays
from vlp.tune.guard import Guard
from vlp.tune.stock import Stock

FILES = {  # arrays that are read, the required ones first
    "train": ("image", "label", "keys", "views"),
    "val": ("image", "label", "keys"),
    "test": ("image", "label", "keys"),
    "unlabeled": ("image", "label", "keys", "views"),
    "classes": ("text", "names", "logit_scale", "weights_hash"),
}
SPLITS = {"val": "validation", "unlabeled": "unlabelled"}  # files whose split is called otherwise
HELP = (
    "a folder of features holds test.npz and, if there are any, train.npz and val.npz with image [n, D] and label [n], "
    "unlabeled.npz with image, and classes.npz with text [C, D] or [C, M, D] and names [C]"
)


def read_folder(folder: Path) -> Stock:
    """The data set in the folder, features of unit norm; ValueError naming file and array of what is wrong in it.

    Labels of test.npz are read when they are scored, and their values checked then.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder} (in {Path.cwd()}); {HELP}")
    found = {name: Arrays(folder / f"{name}.npz") for name in FILES if (folder / f"{name}.npz").is_file()}
    if missing := sorted({"test", "classes"} - found.keys()):
        there = nearest(f"{missing[0]}.npz", [path.name for path in folder.glob("*.npz") if path.stem not in FILES])
        raise ValueError(f"{folder / missing[0]}.npz is missing{there}\n{HELP}")
    _tell_unread(folder, found)
    classes = found["classes"]
    names = classes.class_names("names")
    text = _text(classes, len(names))
    read = {name: _examples(arrays, len(names), text.shape[-1]) for name, arrays in found.items() if name != "classes"}
    stock = Stock(
        dataset=folder.resolve().name,
        model="features",
        encoder=Stored(
            scale=classes.number("logit_scale") if "logit_scale" in classes.names else 100.0,
            weights_hash=classes.words("weights_hash")[0] if "weights_hash" in classes.names else None,
        ),
        names=names,
        test=_guarded(found["test"], read["test"], len(names)),
        text=text,
        train=read.get("train"),
        validation=read.get("val"),
        unlabelled=read.get("unlabeled"),
        unlabelled_label=_reported(found.get("unlabeled"), len(names)),
        hashes={SPLITS.get(name, name): arrays.hash for name, arrays in found.items()},
    )
    return stock.checked()


def _tell_unread(folder: Path, found: dict[str, Arrays]) -> None:
    """Says what lies in the folder and is read by nobody: a misspelt name would be lost in silence."""
    known = {f"{name}.npz" for name in FILES}
    strange = [path.name for path in sorted(folder.glob("*.npz")) if path.name not in known]
    lines = [f"{folder / name} is not read{nearest(name, known)}" for name in strange]
    for name, arrays in found.items():
        for array in sorted(set(arrays.names) - set(FILES[name])):
            lines.append(f"{arrays.path}: {array} is not read{nearest(array, FILES[name])}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _text(classes: Arrays, count: int) -> Float[Tensor, "C M D"]:
    text = classes.features("text", ndim=(2, 3), wanted="[C, D] or [C, M, D]")
    if len(text) != count:
        classes.fault("text", f"{len(text)} classes, but names has {count}; one row of each for every class")
    return text if text.ndim == 3 else text[:, None]


def _examples(arrays: Arrays, classes: int, width: int) -> Examples:
    """The pictures of one file, with labels unless it is what will be measured."""
    image = arrays.features("image", ndim=(2,), wanted="[n, D]")
    if image.shape[1] != width:
        arrays.fault("image", f"{image.shape[1]} numbers a row, but text of classes.npz has {width}; use one model")
    kind = arrays.path.stem
    if kind in ("train", "val", "test") and "label" not in arrays.names:
        arrays.fault("label", f"no such array{nearest('label', arrays.names)}")
    views = None
    if "views" in FILES[kind] and "views" in arrays.names:
        views = arrays.features("views", ndim=(3,), wanted="[n, V, D]")
        if (len(views), views.shape[2]) != image.shape:
            arrays.fault("views", f"shape {list(views.shape)}; wanted [{len(image)}, V, {width}]")
    return Examples(
        image,
        arrays.labels("label", count=len(image), classes=classes) if kind in ("train", "val") else None,
        arrays.keys("keys", count=len(image)) if "keys" in arrays.names else (),
        views=views,
    )


def _reported(arrays: Arrays | None, classes: int) -> Callable[[], Int[Tensor, "n"]] | None:
    """What reads the labels of unlabelled pictures, -1 where one is not known, if they have some; checked, not kept."""
    if arrays is None or "label" not in arrays.names:
        return None
    count = len(arrays.array("image"))
    arrays.labels("label", count=count, classes=classes, least=-1)
    return lambda: arrays.labels("label", count=count, classes=classes, least=-1)


def _guarded(arrays: Arrays, pictures: Examples, classes: int) -> Guard:
    count = len(pictures)
    arrays.check_labels("label", count=count)
    return Guard(pictures, lambda: arrays.labels("label", count=count, classes=classes), where=str(arrays.path))
