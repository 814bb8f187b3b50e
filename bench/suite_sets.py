"""Ten data sets of rendered scenes in CLIP_benchmark's webdataset layout, and a small open_clip model, for suite.py.

Pictures are drawn by lot (data_tools.scenes) at the size that the set says. What a picture is labelled as is one of its
facts; in the two sets with ImageNet's class names it is the picture's number modulo the number of classes: what is
right changes no time, and both sides read the same labels. This module does nothing when it is run.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch.nn.functional import normalize

from data_tools.scenes import vocabulary
from data_tools.scenes.tool import SceneMaker, Scenes, find_redraws
from data_tools.write import Record
from vlp.embed import Encoder
from vlp.models.model import Model
from vlp.models.pretrained import save
from vlp.text.templates import openai_imagenet

SHARDS, RIDGE = 2, 1e-3
ARCHITECTURE = {  # ViT-B-32 made small: the same share of work for a picture as for a prompt, 1.5 to 1
    "embed_dim": 128,
    "vision_cfg": {"image_size": 128, "layers": 12, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 6},
}
Facts = dict[str, Any]


@dataclass(frozen=True)
class EvalSet:
    """One data set. `label` makes the members of a sample besides its picture, of its number and facts."""

    name: str
    benchmark: str  # its name in a suite of ours
    side: int  # of its pictures, pixels
    label: Callable[[int, Facts], dict[str, bytes]]
    classes: Sequence[str] = ()

    @property
    def is_retrieval(self) -> bool:
        return self.benchmark == "retrieval"


def ten() -> list[EvalSet]:
    colors, shapes = list(vocabulary.COLORS), list(vocabulary.SHAPES)
    pairs = [(color, shape) for color in colors for shape in shapes]
    textured = [(texture, shape) for texture in vocabulary.TEXTURES for shape in shapes]
    return [
        _of_fact("colors", 96, colors, lambda thing: thing["color"]),
        _of_fact("shapes", 96, shapes, lambda thing: thing["shape"]),
        _of_fact("textured", 128, textured, lambda thing: (thing["texture"], thing["shape"])),
        _of_fact("colored", 128, pairs, lambda thing: (thing["color"], thing["shape"])),
        EvalSet("backgrounds", "zeroshot", 96, _background, list(vocabulary.BACKGROUNDS)),
        _numbered("names-200", 160, 200),
        _numbered("names-397", 160, 397),
        EvalSet("shapes-shown", "multilabel", 128, _shown, shapes),
        EvalSet("captions-a", "retrieval", 128, _captions),
        EvalSet("captions-b", "retrieval", 160, _captions),
    ]


def make_sets(folder: Path, sets: Sequence[EvalSet], *, pictures: int) -> None:
    """Each set under folder/wds_NAME; one that is there with that many pictures stays."""
    for seed, one in enumerate(sets):
        root = folder / f"wds_{one.name}"
        if (root / "pictures.txt").is_file() and (root / "pictures.txt").read_text() == str(pictures):
            continue
        print(f"rendering {pictures} pictures of {one.name}", flush=True)
        scenes = Scenes(split="test", count=pictures, seed=seed, size=one.side)
        records = SceneMaker(scenes, find_redraws(scenes, set())).items(0, pictures)
        _write(root, one, records, pictures)


def write_suite(file: Path, folder: Path, sets: Sequence[EvalSet]) -> None:
    """The suite of all sets for `vlp eval`."""
    benchmarks = [{"name": one.benchmark, "dataset": one.name, "data": f"wds_{one.name}"} for one in sets]
    file.write_text(yaml.safe_dump({"name": "ten", "data": str(folder), "benchmarks": benchmarks}), encoding="utf-8")


def make_model(folder: Path, *, pictures: int) -> None:
    """A folder that open_clip reads as local-dir:FOLDER: random towers whose projections know a little of scenes.

    With random weights all features but coincide, and metrics would be those of guessing. So the direction that texts
    share is taken out of their projection, and that of pictures is fitted to captions by least squares with a ridge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.json").write_text(json.dumps(ARCHITECTURE), encoding="utf-8")
    torch.manual_seed(0)
    dual = Model(arch=str(folder / "architecture.json")).build()
    encoder = Encoder(dual, quiet=True)
    scenes = list(SceneMaker(Scenes(split="train", count=pictures, seed=len(ten()), size=128)).items(0, pictures))
    captions = [record.members["txt"].decode() for record in scenes]
    with torch.no_grad():
        projection, shared = dual.text.text_projection, normalize(encoder.texts(captions).mean(dim=0), dim=0)
        projection -= torch.outer(projection @ shared, shared)
        dual.visual.proj.copy_(torch.eye(len(dual.visual.proj)))
        seen = encoder.images([record.members["jpg"] for record in scenes]).features.double()
        moments = seen.T @ seen
        moments.diagonal().add_(RIDGE * moments.diagonal().mean())
        dual.visual.proj.copy_(torch.linalg.solve(moments, seen.T @ encoder.texts(captions).double()))
    save(dual, folder)


def _write(root: Path, one: EvalSet, records: Iterator[Record], count: int) -> None:
    """The folder in the layout; pictures.txt comes last and says that it is whole."""
    split = root / "test"
    split.mkdir(parents=True, exist_ok=True)
    (split / "nshards.txt").write_text(str(SHARDS))
    if one.is_retrieval:
        (root / "dataset_type.txt").write_text("retrieval")
    else:
        (root / "dataset_type.txt").write_text("multilabel" if one.benchmark == "multilabel" else "classification")
        (root / "classnames.txt").write_text("".join(f"{name}\n" for name in one.classes))
        lines = [template.replace("{}", "{c}") for template in openai_imagenet()]
        (root / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in lines))
    number = 0
    for shard in range(SHARDS):
        with tarfile.open(split / f"{shard}.tar", "w") as tar:
            for record in islice(records, -(-count // SHARDS)):
                members = {"jpg": record.members["jpg"], **one.label(number, json.loads(record.members["json"]))}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"s{number:07d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                number += 1
    (root / "pictures.txt").write_text(str(count))


def _of_fact(name: str, side: int, values: Sequence[Any], fact: Callable[[Facts], Any]) -> EvalSet:
    """The class is a fact of the first thing in the scene."""
    classes = [value if isinstance(value, str) else " ".join(value) for value in values]

    def label(number: int, facts: Facts) -> dict[str, bytes]:
        return {"cls": str(values.index(fact(facts["objects"][0]))).encode()}

    return EvalSet(name, "zeroshot", side, label, classes)


def _numbered(name: str, side: int, count: int) -> EvalSet:
    names = IMAGENET_CLASSNAMES[:: len(IMAGENET_CLASSNAMES) // count][:count]
    return EvalSet(name, "zeroshot", side, lambda number, facts: {"cls": str(number % count).encode()}, names)


def _background(number: int, facts: Facts) -> dict[str, bytes]:
    return {"cls": str(list(vocabulary.BACKGROUNDS).index(facts["background"])).encode()}


def _shown(number: int, facts: Facts) -> dict[str, bytes]:
    shown = {thing["shape"] for thing in facts["objects"]}
    buffer = io.BytesIO()
    np.save(buffer, np.array([shape in shown for shape in vocabulary.SHAPES], dtype=np.int64))
    return {"npy": buffer.getvalue()}


def _captions(number: int, facts: Facts) -> dict[str, bytes]:
    return {"txt": "\n".join(facts["captions"]).encode()}
