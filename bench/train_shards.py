"""Shards of pictures (jpg) and captions (txt) that both trainers can read, for the scripts about loading and training.

Rendered scenes, or the pictures of given shards byte for byte; the caption whole, or as captions of the web are: its
first sentence, at most 25 words of it. open_clip reads a caption from `txt` alone and decodes every member it finds, so
there is nothing else in a sample. This module does nothing when it is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data_tools.scenes.tool import SceneMaker, Scenes, record
from data_tools.write import Record, ShardWriter
from vlp.data.captions import Captions
from vlp.data.fields import IMAGE_MEMBERS, Fields
from vlp.data.sources import open_records
from vlp.text.captions import sentences
from vlp.types import BadSampleError

Form = Literal["full", "web"]
SHARDS, WEB_WORDS = 4, 25
FIELDS = ("caption", "captions", "txt", "figure_caption")


def rendered(folder: Path, *, count: int, size: int, form: Form) -> str:
    """The pattern of shards with `count` rendered scenes of `size` pixels, made if they are not there."""
    scenes = Scenes(count=count, size=size)

    def pairs() -> Iterator[tuple[bytes, str]]:
        for index in range(count):
            scene, texts = scenes.scene(index)
            made = record(scenes, index, scene, texts, SceneMaker(scenes).picture(index, scene))
            yield made.members["jpg"], texts.captions[-1]  # a paragraph

    return _written(folder / f"scenes-{size}px-{count}-{form}", pairs(), form, count)


def given(folder: Path, *, shards: str, form: Form, limit: int) -> str:
    """The pattern of shards with the first `limit` JPEGs of `shards` and their captions, made if they are not there."""
    records, captions = open_records(shards), Captions(fields=FIELDS)
    name = Path(shards.split("::")[0]).parent.name or "shards"
    count = min(limit, len(records))

    def pairs() -> Iterator[tuple[bytes, str]]:
        for index in range(count):
            try:
                sample = records.read(index)
                text = captions.texts(Fields(sample))[0]
            except BadSampleError:
                continue
            for member in IMAGE_MEMBERS:
                if member in ("jpg", "jpeg") and member in sample.members:
                    yield sample.members[member], text
                    break

    return _written(folder / f"{name}-{count}-{form}", pairs(), form, count)


def web_caption(text: str) -> str:
    """The first sentence of a text, at most 25 words of it."""
    first = next(iter(sentences(text)), text)
    return " ".join(first.split()[:WEB_WORDS])


def captions_of(pattern: str) -> list[str]:
    """Every caption of such shards."""
    return [sample.members["txt"].decode() for sample in open_records(pattern)]  # type: ignore[attr-defined]


def _written(folder: Path, pairs: Iterator[tuple[bytes, str]], form: Form, count: int) -> str:
    """The pattern of shards with the pairs; the last shard is there only when all are."""
    pattern, names = str(folder / "*.tar"), [folder / f"{number:03d}.tar" for number in range(SHARDS)]
    if names[-1].is_file():
        return pattern
    folder.mkdir(parents=True, exist_ok=True)
    writers = [ShardWriter(name) for name in names]
    for index, (picture, text) in enumerate(pairs):
        text = " ".join(text.split()) if form == "full" else web_caption(text)
        members = {"jpg": picture, "txt": text.encode()}
        writers[index * SHARDS // count].write(Record(f"{index:08d}", members))
    for writer in writers:
        writer.close()
    return pattern
