"""The tool `teach`: shards again, each sample with a teacher's features of some crops of it and of its captions."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from data_tools.dataset import SKIPS, versions, write_tasks
from data_tools.rewrite import plan_rewrite, refuse_mixing
from data_tools.shards import Raw, find_shards, samples
from data_tools.write import Record, Reject, key_fault
from vlp import trained
from vlp.data.boxes import Box, draw_box
from vlp.data.captions import Captions, Drawn
from vlp.data.decode import Limits
from vlp.data.fields import Fields, image_bytes
from vlp.data.order import keyed_rng
from vlp.data.schema import DataError
from vlp.data.splits import hash64
from vlp.embed import Encoder, Precision
from vlp.registry import Part
from vlp.text.captions import cut_bytes
from vlp.types import BadSampleError, Sample

VERSION = 2  # raise it when the same settings give another member
_EVERY = 1 << 30  # captions that are taken: all there are
Span = tuple[float, float]


class Teach(Part):
    """Shard in, shard out: every sample keeps its members and gets one more (DataCompDR, arXiv 2311.17049, 3.2).

    The member holds `boxes` [n, 4] fp32, crops as x0, y0, x1, y1 in parts of width and height, exact to the pixel;
    `image` [n, D] fp16, the teacher's unit features of these crops at its own size; `scale`, by which it multiplies its
    cosines, a number, fp32; and for each caption field a row
    for each of its items, zeros for one that is no text: `text` [items, D] fp16 of the first field, `text/NAME` of the
    others. Boxes are drawn from a generator keyed by seed and sample, so two teachers stored under two members see the
    same crops. Our deviation: the crop is the only augmentation, since it is the only one that can be replayed.
    """

    checkpoint: str = Field(min_length=1)
    weights: str | None = None  # where `checkpoint` is the name of an architecture
    captions: tuple[str, ...] = ("captions",)  # none: pictures only
    language: str | None = None  # of captions {language: text}, as in `captions.language` of a source
    member: str = Field(default="teacher.npz", pattern=r"^([a-z0-9_-]+\.)*npz$")
    views: int = Field(default=4, ge=1)
    scale: Span = (0.9, 1.0)
    ratio: Span = (3 / 4, 4 / 3)
    seed: int = 0
    limits: Limits = Limits()
    precision: Precision = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=1, ge=1)
    shard_range: tuple[int, int] = (0, 1)
    overwrite: bool = False

    def run(self, inputs: Iterable[Path | str], out: Path) -> dict[str, Any]:
        """Writes shards of the same names, `dataset.json`, `skips.jsonl`; samples in = samples + skipped."""
        shards = find_shards(str(item) for item in inputs)
        refuse_mixing(shards, out)
        load_teacher.cache_clear()  # a run may have gone on since
        teacher = load_teacher(self)
        about = self._provenance(teacher)
        tasks, source = plan_rewrite(shards, out, about)
        maker = TeachMaker(
            self, {task.start: shard for task, shard in tasks}, teacher.hash, torch.get_num_threads() // self.workers
        )
        written = write_tasks(
            out,
            maker,
            [task for task, _ in tasks],
            name=out.name,
            made_by=about | {"source": source},
            workers=self.workers,
            shard_range=self.shard_range,
            overwrite=self.overwrite,
        )
        if written.complete and not written.samples:
            raise DataError(f"{out}: no sample could be taught: {written.skipped}; {out / SKIPS} has the details")
        result = {"inputs": source["samples"], **written._asdict(), "left_out": source["left_out"]}
        result |= {"dim": teacher.dim, "teacher_scale": about["teacher"]["scale"]}
        return result | ({"skips": str(out / SKIPS)} if written.skipped else {})

    def _provenance(self, teacher: Teacher) -> dict[str, Any]:
        """What the member depends on beside the data."""
        names = {"captions", "language", "member", "views", "scale", "ratio", "seed", "limits", "precision"}
        return {
            "tool": "data_tools teach",
            "version": VERSION,
            "versions": versions(),
            "settings": self.model_dump(mode="json", include=names),
            "teacher": {"weights": teacher.hash, "dim": teacher.dim, "scale": round(teacher.encoder.scale, 6)},
        }

    def names(self) -> list[str]:
        """Arrays of the caption fields."""
        return ["text" if number == 0 else f"text/{field}" for number, field in enumerate(self.captions)]


class Teacher(NamedTuple):
    """A loaded teacher, the hash of its weights, and the width of its features."""

    encoder: Encoder
    hash: str
    dim: int


@functools.lru_cache(maxsize=1)
def load_teacher(settings: Teach) -> Teacher:
    """The teacher, once in each process; DataError if there is no model."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        dual = trained.load(settings.checkpoint, weights=settings.weights)
        encoder = Encoder(dual, device=device, batch_size=settings.batch_size, precision=settings.precision, quiet=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"teacher: {error}") from error
    return Teacher(encoder, encoder.weights_hash, dual.dim)


class Ready(NamedTuple):
    """One sample before the teacher: its crops at the teacher's size, where they are, and its captions by array."""

    raw: Raw
    boxes: npt.NDArray[np.float32]
    crops: list[Tensor]  # uint8 [3, H, W]
    texts: dict[str, Drawn]


@dataclass(frozen=True)
class TeachMaker:
    """Fills shards from shards, `paths` by the number of their first sample."""

    settings: Teach
    paths: Mapping[int, Path]
    weights: str  # hash of the teacher that all processes are to have
    threads: int

    def items(self, start: int, stop: int) -> Iterator[Record | Reject]:
        """One record or reject for every sample of the shard, `batch_size` of them at a time."""
        if self.settings.workers > 1:
            torch.set_num_threads(max(1, self.threads))
        teacher = load_teacher(self.settings)
        if teacher.hash != self.weights:
            raise DataError(f"{self.settings.checkpoint}: it has other weights than when the job began; start it again")
        raws = samples(self.paths[start])
        while chunk := list(islice(raws, self.settings.batch_size)):
            yield from self._taught([self._ready(raw, teacher.encoder) for raw in chunk], teacher.encoder)

    def _ready(self, raw: Raw, encoder: Encoder) -> Ready | Reject:
        sample = Sample(raw.key, raw.members, "", 0)
        try:
            if fault := key_fault(raw.key):
                raise BadSampleError("bad_key", f"{raw.key[:100]!r} {fault}")
            texts = self._texts(Fields(sample))
            whole = encoder.dual.transform.read(image_bytes(sample), self.settings.limits)
        except BadSampleError as error:
            return Reject(error.reason, raw.key, error.detail)
        boxes = self._boxes(raw.key, *whole.shape[-2:])
        return Ready(raw, relative(boxes, *whole.shape[-2:]), [_cut(whole, box, encoder) for box in boxes], texts)

    def _boxes(self, key: str, height: int, width: int) -> list[Box]:
        """The sample's crops: a function of seed, key and the picture's size."""
        rng = keyed_rng(self.settings.seed, hash64(key) >> 1)
        scale, ratio = self.settings.scale, self.settings.ratio
        return [draw_box(height, width, scale=scale, ratio=ratio, rng=rng) for _ in range(self.settings.views)]

    def _texts(self, fields: Fields) -> dict[str, Drawn]:
        """Captions of each field that has some, as training cuts them; BadSampleError if none has."""
        found: dict[str, Drawn] = {}
        missing: BadSampleError | None = None
        for name, field in zip(self.settings.names(), self.settings.captions, strict=True):
            stage = Captions(fields=(field,), pick="all", count=_EVERY, language=self.settings.language)
            try:
                drawn = stage.draw(fields, None)
            except BadSampleError as error:
                if error.reason not in ("no_caption", "empty_caption"):
                    raise
                missing = missing or error
                continue
            limit = self.settings.limits.max_caption_bytes
            found[name] = drawn._replace(texts=[cut_bytes(text, limit) for text in drawn.texts])
        if missing is not None and not found:
            raise missing
        return found

    def _taught(self, ready: Sequence[Ready | Reject], encoder: Encoder) -> Iterator[Record | Reject]:
        good = [one for one in ready if isinstance(one, Ready)]
        texts = list(dict.fromkeys(text for one in good for drawn in one.texts.values() for text in drawn.texts))
        known = dict(zip(texts, encoder.texts(texts), strict=True))
        images = iter(encoder.images([crop for one in good for crop in one.crops]).features.split(self.settings.views))
        for one in ready:
            if isinstance(one, Reject):
                yield one
                continue
            arrays = {"boxes": one.boxes, "image": _half(next(images)), "scale": np.array(encoder.scale, np.float32)}
            arrays |= {name: _half(_rows(drawn, known)) for name, drawn in one.texts.items()}
            yield Record(one.raw.key, {**one.raw.members, self.settings.member: _npz(arrays)})


def relative(boxes: Sequence[Box], height: int, width: int) -> npt.NDArray[np.float32]:
    """x0, y0, x1, y1 [n, 4] in parts of width and height, of which `stored_box` makes the same pixels again."""
    edges = [(box.left, box.top, box.left + box.width, box.top + box.height) for box in boxes]
    return (np.array(edges) / (width, height, width, height)).astype(np.float32)


def _cut(whole: Tensor, box: Box, encoder: Encoder) -> Tensor:
    """The crop at the teacher's size, both sides scaled to fit, as training cuts it for the student's."""
    part = whole[:, box.top : box.top + box.height, box.left : box.left + box.width]
    preprocess = encoder.dual.transform
    resized: Tensor = preprocess.resize(part, preprocess.size)
    return resized


def _rows(drawn: Drawn, known: Mapping[str, Tensor]) -> Tensor:
    """A row for each item of the field, zeros for one that is no text."""
    rows = torch.zeros(drawn.of, len(known[drawn.texts[0]]))
    for place, text in zip(drawn.rows, drawn.texts, strict=True):
        rows[place] = known[text]
    return rows


def _half(features: Tensor) -> npt.NDArray[Any]:
    return features.half().numpy()


def _npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The same bytes for the same arrays: numpy gives the members of its archives no time."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
