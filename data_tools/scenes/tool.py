"""The tool `scenes`: rendered scenes as shards, the same bytes for the same settings and any number of workers."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from data_tools.dataset import write_dataset
from data_tools.progress import progress
from data_tools.scenes import vocabulary
from data_tools.scenes.captions import Texts, write_texts
from data_tools.scenes.defects import draw_kind
from data_tools.scenes.facts import Scene, draw_scene
from data_tools.scenes.render import Drawn, draw
from data_tools.texts import dataset_captions, fingerprint
from data_tools.write import Record, digest_of
from vlp.data.schema import DataError, write_atomic
from vlp.registry import Part, nearest

VERSION = 1  # raise it when the same seed gives other scenes
MAX_REDRAWS = 500


class Scenes(Part):
    """Pictures of coloured shapes with captions, hard negatives, boxes and masks: data that anyone can make.

    With `defects` every sample has `condition` (normal or defect) and `defect` (null, or its kind, the object and its
    share of that) in the JSON, and a member defect.png, not 0 where the defect is; else scenes are those without.
    """

    split: str = "train"
    count: int = Field(default=10_000, ge=1)
    seed: int = 0
    size: int = Field(default=64, ge=32, le=1024)
    variant: Literal["captions", "labelled"] = "captions"
    styles: tuple[str, ...] = vocabulary.STYLES
    defects: float = Field(default=0.0, ge=0, le=1)  # share of the pictures in which one thing has a defect
    format: Literal["jpg", "png"] = "jpg"
    shard_size: int = Field(default=1000, ge=1)
    exclude: tuple[Path, ...] = ()  # data sets that no caption may be shared with
    unique_captions: bool | None = None  # no caption twice in the split; None: yes for every captions split but train
    workers: int = Field(default=1, ge=1)
    shard_range: tuple[int, int] = (0, 1)
    overwrite: bool = False

    @field_validator("split")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not value.isidentifier():
            raise ValueError(f'"{value}" becomes part of every key: letters, digits and underscores only')
        return value

    @field_validator("styles")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for style in value:
            if style not in vocabulary.STYLES:
                raise ValueError(f'unknown style "{style}"{nearest(style, vocabulary.STYLES)}')
        if not value:
            raise ValueError("needs at least one style")
        return value

    @property
    def unique(self) -> bool:
        if self.unique_captions is None:
            return self.variant == "captions" and self.split != "train"
        return self.unique_captions

    def run(self, inputs: Iterable[Path], out: Path) -> dict[str, Any]:
        """Writes `out`/<split>/ and returns counts. `inputs` are more folders to exclude."""
        folder = out / self.split
        made_by, redraws = self._provenance([*self.exclude, *inputs])
        maker = SceneMaker(self, redraws)
        written = write_dataset(
            folder,
            maker,
            name=f"scenes-{self.variant}-{self.split}",
            count=self.count,
            shard_size=self.shard_size,
            made_by=made_by,
            workers=self.workers,
            shard_range=self.shard_range,
            overwrite=self.overwrite,
        )
        if self.variant == "labelled":
            write_classes(folder)
        return {"folder": str(folder), **written._asdict(), "redrawn": len(redraws)}

    def scene(self, index: int, attempt: int = 0) -> tuple[Scene, Texts]:
        """Scene and texts number `index`: a pure function of seed, split settings and these two numbers."""
        rng = random.Random(f"scenes {VERSION} {self.variant} {self.seed} {index} {attempt}")  # str: hashed by sha512
        scene = draw_scene(rng, styles=self.styles, labelled=self.variant == "labelled")
        return scene, write_texts(scene, rng)

    def _provenance(self, exclude: list[Path]) -> tuple[dict[str, Any], dict[int, int]]:
        plain = {"exclude", "unique_captions", "workers", "shard_range", "overwrite", "count", "shard_size"}
        settings = self.model_dump(mode="json", exclude=plain if self.defects else plain | {"defects"})
        forbidden = {fingerprint(caption) for folder in exclude for caption in dataset_captions(folder)}
        made_by = {
            "tool": "data_tools scenes",
            "version": VERSION,
            "settings": {**settings, "unique_captions": self.unique},
            "excluded_captions": digest_of(sorted(forbidden)) if forbidden else None,
        }
        if not self.unique and not forbidden:
            return made_by, {}
        return made_by, find_redraws(self, forbidden)


def find_redraws(scenes: Scenes, forbidden: set[int]) -> dict[int, int]:
    """Scene number -> attempt, where the first draw has a caption that is forbidden or, when unique, already used.

    In order of the numbers and in one process, so that it does not depend on workers; facts and texts only, no pixels.
    """
    used = set(forbidden)
    redraws: dict[int, int] = {}
    for index in progress(range(scenes.count), total=scenes.count, label="captions"):
        for attempt in range(MAX_REDRAWS):
            prints = [fingerprint(text) for text in scenes.scene(index, attempt)[1].captions]
            if used.isdisjoint(prints) and (not scenes.unique or len(set(prints)) == len(prints)):
                break
        else:
            raise DataError(
                f"scene {index}: {MAX_REDRAWS} draws each shared a caption with earlier scenes or excluded sets; "
                "ask for fewer scenes, exclude less, or set unique_captions to false"
            )
        if attempt:
            redraws[index] = attempt
        if scenes.unique:
            used.update(prints)
    return redraws


@dataclass(frozen=True)
class SceneMaker:
    """Fills shards with scenes."""

    scenes: Scenes
    redraws: Mapping[int, int] = field(default_factory=dict)

    def items(self, start: int, stop: int) -> Iterator[Record]:
        """Scenes start..stop as records."""
        for index in range(start, stop):
            scene, texts = self.scenes.scene(index, self.redraws.get(index, 0))
            yield record(self.scenes, index, scene, texts, self.picture(index, scene))

    def picture(self, index: int, scene: Scene) -> Drawn:
        """The pixels of scene `index`."""
        rng = random.Random(f"pixels {VERSION} {self.scenes.seed} {index}")
        lot = random.Random(f"defect {VERSION} {self.scenes.seed} {index}")
        kind = draw_kind(lot, self.scenes.defects)
        return draw(scene, self.scenes.size, rng, flaw=(kind, lot) if kind else None)


def record(scenes: Scenes, index: int, scene: Scene, texts: Texts, drawn: Drawn) -> Record:
    """The members of one scene: picture, json, txt (the caption), mask.png, cls when labelled, perhaps defect.png."""
    facts: dict[str, Any] = {**texts._asdict(), "objects": describe(scene, drawn)}
    facts |= {"background": scene.background, "style": scene.style, "seed": scenes.seed, "index": index}
    members: dict[str, bytes] = {scenes.format: _encode(drawn.image, scenes.format)}
    if scene.label is not None:
        facts |= {"label": scene.label, "class": vocabulary.CLASSES[scene.label]}
        members["cls"] = str(scene.label).encode()
    if scenes.defects:
        found = drawn.defect
        facts["condition"] = "normal" if found is None else "defect"
        facts["defect"] = found and {"kind": found.kind, "object": found.thing, "share": found.share}
    members["json"] = json.dumps(facts, ensure_ascii=False).encode()
    members["txt"] = texts.caption.encode()
    members["mask.png"] = _encode(Image.fromarray(drawn.mask), "png")
    if scenes.defects:
        marked = np.zeros_like(drawn.mask) if drawn.defect is None else drawn.defect.mask.astype(np.uint8) * 255
        members["defect.png"] = _encode(Image.fromarray(marked), "png")
    return Record(f"{scenes.split}-{index:07d}", members)


def describe(scene: Scene, drawn: Drawn) -> list[dict[str, Any]]:
    """Facts of every object; object i is value i + 1 of the mask, boxes are x0, y0, x1, y1 in pixels."""
    return [
        {
            "shape": thing.shape,
            "color": thing.color,
            "size": thing.size,
            "texture": thing.texture,
            "x": round(thing.x, 4),
            "y": round(thing.y, 4),
            "radius": round(thing.radius, 4),
            "box": list(box),
            "visible": visible,
        }
        for thing, box, visible in zip(scene.things, drawn.boxes, drawn.visible)
    ]


def write_classes(folder: Path) -> None:
    """classes.json, and the two text files that CLIP_benchmark reads."""
    names = list(vocabulary.CLASSES)
    facts = {
        "names": names,
        "colors": [name.split()[0] for name in names],
        "shapes": [name.split()[1] for name in names],
        "templates": list(vocabulary.TEMPLATES),
    }
    write_atomic(folder / "classes.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomic(folder / "classnames.txt", "".join(f"{name}\n" for name in names).encode())
    templates = "".join(f"{template}\n" for template in vocabulary.TEMPLATES)
    write_atomic(folder / "zeroshot_classification_templates.txt", templates.encode())


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    if format == "jpg":
        image.save(buffer, "JPEG", quality=92, subsampling=0)  # 4:4:4: small shapes keep their colours
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()
