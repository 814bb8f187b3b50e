"""An index: picture features with keys, captions and thumbnails, searched exactly, block by block.

INDEX/index.json            model, weights hash, transform, data and its fingerprint, count, what was left out
INDEX/features.safetensors  image [n, D], unit norm
INDEX/items.jsonl           one line a picture: key, shard, index, caption, thumbnail (offset and bytes in thumbs.bin)
INDEX/thumbs.bin            JPEGs one after another
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import normalize

from vlp.api import VLP, load
from vlp.paths import holding, is_run, kind_of, listed, refuse_url
from vlp.pictures import Picture
from vlp.untrusted import parse_json, read_tensors

SCHEMA = 1
BLOCK = 65_536  # rows that become fp32 at once


class SearchError(ValueError):
    """An index or a query that cannot be used; says why and what to do."""


class About(BaseModel):
    """The content of index.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: int = Field(SCHEMA, alias="schema")
    model: str  # a path as seen from the index, or a name
    weights: str | None = None
    adapter: str | None = None  # folder of a fitted adapter that changed the image tower, as `model`
    weights_hash: str
    transform: str
    data: str
    data_fingerprint: str
    count: int
    width: int
    skips: dict[str, int] = {}  # pictures left out, by reason


class Hit(NamedTuple):
    """One picture found: the score is the cosine with the query."""

    key: str
    score: float
    caption: str
    thumbnail: bytes  # JPEG
    shard: str = ""


class Query(NamedTuple):
    """What is looked for; with both, the feature is the normalised sum of weight times unit feature."""

    text: str | None = None
    image: Picture = None
    weights: tuple[float, float] = (1.0, 1.0)  # of the text, of the picture
    name: str | None = None  # a class of the model's fitted adapter, with the weight of the text

    @property
    def words(self) -> list[str]:
        """What is said of it: the text, the class."""
        return [word for word in (self.text, self.name) if word]

    def feature(self, model: VLP) -> Float[Tensor, "D"]:
        """The unit feature of the query; SearchError when there is nothing in it."""
        parts = []
        if self.text is not None and self.text.strip():
            parts.append((self.weights[0], model.embed_texts([self.text])[0]))
        if self.name is not None:
            parts.append((self.weights[0], model.embed_class(self.name)))
        if self.image is not None:
            parts.append((self.weights[1], model.embed_images([self.image])[0]))
        if not parts:
            raise SearchError("an empty query; give words, a class, a picture, or several")
        if len(parts) == 1:  # weights mean something only between two
            return normalize(parts[0][1], dim=-1)
        return combine([feature for _, feature in parts], [weight for weight, _ in parts])


def combine(features: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The normalised sum of weight times unit feature, [D]; SearchError when it vanishes."""
    total = sum(
        (weight * normalize(one, dim=-1) for one, weight in zip(features, weights, strict=True)),
        start=torch.zeros_like(features[0]),
    )
    if float(total.norm()) < 1e-6:
        raise SearchError(f"with weights {', '.join(map(str, weights))} nothing is left of the query; choose others")
    return normalize(total, dim=-1)


class Index:
    """A folder of features, opened for search; the model is loaded when a query first needs it."""

    def __init__(self, folder: Path, about: About, features: Tensor, *, model: VLP | None = None) -> None:
        self.folder, self.about, self.features = folder, about, features
        self._given = model

    @classmethod
    def open(cls, folder: str | Path, *, model: VLP | str | Path | None = None) -> Index:
        """The index in `folder`; SearchError if there is none, it is not whole, or it belongs to other weights."""
        folder = Path(folder)
        about = _read_about(folder)
        try:
            features = read_tensors(folder / "features.safetensors").get("image", torch.empty(0))
        except ValueError as error:
            raise SearchError(f"{error}; make the index again") from error
        if features.shape != (about.count, about.width):
            raise SearchError(
                f"{folder}: features are {tuple(features.shape)}, not {about.count, about.width}; make it again"
            )
        given = load(model) if isinstance(model, str | Path) else model
        opened = cls(folder, about, features, model=given)
        if given is not None:
            opened.check(given)
        return opened

    def adapted(self, adapter: str | Path) -> Index:
        """The same with a fitted adapter on its model; SearchError where that changes features of pictures."""
        model = self.model.adapted(adapter)
        self.check(model)
        return Index(self.folder, self.about, self.features, model=model)

    def __len__(self) -> int:
        return self.about.count

    @cached_property
    def model(self) -> VLP:
        """The model that made the index, loaded from where it was and checked."""
        if self._given is not None:
            return self._given
        path = self._place(self.about.model)
        adapter = self._place(self.about.adapter) if self.about.adapter is not None else None
        try:
            model = load(path, weights=self.about.weights, adapter=adapter)
        except (OSError, ValueError) as error:
            raise SearchError(
                f"{self.folder}: its model {path} cannot be loaded ({error}); name it with --model"
            ) from error
        self.check(model)
        return model

    def _place(self, path: str) -> str:
        """A path as seen from the index, where there is something; else what was said."""
        beside = self.folder.resolve() / path
        return os.path.normpath(beside) if beside.exists() else path

    def check(self, model: VLP) -> None:
        """SearchError unless the model has the weights, the adapter and the transform that made the features."""
        with_ = f" --adapter {model.adapter}" if model.encoder is not model.plain else ""
        made = f"vlp embed {model.path or 'MODEL'} {self.about.data} --out {self.folder}{with_}"
        remedy = f"make the index again: {made}"
        if model.weights_hash != self.about.weights_hash:
            raise SearchError(
                f"{self.folder} was made with weights {self.about.weights_hash}, but {model.path or 'this model'} has "
                f"{model.weights_hash}: their features do not compare. Name the old model with --model, or {remedy}"
            )
        if repr(model.dual.transform) != self.about.transform:
            raise SearchError(f"{self.folder} was made with another picture transform than the model has now; {remedy}")

    def search(
        self,
        text: str | None = None,
        image: Picture = None,
        *,
        weights: tuple[float, float] = (1.0, 1.0),
        top: int = 20,
    ) -> list[Hit]:
        """The `top` pictures nearest to a text, a picture, or both, best first; equal scores in order of the index."""
        return self.nearest(Query(text, image, weights).feature(self.model), top=top)

    def nearest(self, feature: Float[Tensor, "D"], *, top: int = 20) -> list[Hit]:
        """The `top` pictures with the highest cosine."""
        if top < 1:
            raise SearchError(f"top is {top}; it must be at least 1")
        scores, rows = exact_top(self.features, feature, top=top)
        return [self._hit(row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]

    def _hit(self, row: int, score: float) -> Hit:
        where = f"{self.folder}/items.jsonl, line {row + 1}"
        try:
            item = parse_json(self._lines[row], where=where)
            start, size = map(int, item["thumbnail"])
            small = bytes(self._thumbs[max(start, 0) : max(start, 0) + max(size, 0)])
            return Hit(str(item["key"]), score, str(item["caption"]), small, str(item["shard"]))
        except (ValueError, TypeError, LookupError) as error:
            raise SearchError(f"{where}: no item of an index ({error}); make it again") from error

    @cached_property
    def _lines(self) -> list[bytes]:
        lines = (self.folder / "items.jsonl").read_bytes().splitlines()
        if len(lines) != self.about.count:
            raise SearchError(
                f"{self.folder}/items.jsonl has {len(lines)} lines, not {self.about.count}; make it again"
            )
        return lines

    @cached_property
    def _thumbs(self) -> Any:
        with (self.folder / "thumbs.bin").open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def exact_top(
    features: Float[Tensor, "n D"], query: Float[Tensor, "D"], *, top: int, block: int = BLOCK
) -> tuple[Float[Tensor, "k"], Tensor]:
    """Scores and rows of the `top` highest inner products, best first, equal ones by row; fp32, no n-wide copy."""
    best, rows = torch.empty(0), torch.empty(0, dtype=torch.long)
    for start in range(0, len(features), block):
        part = features[start : start + block].float() @ query.float()
        scores = torch.cat([best, part])
        places = torch.cat([rows, torch.arange(start, start + len(part))])
        order = scores.sort(descending=True, stable=True).indices[:top]
        best, rows = scores[order], places[order]
    return best, rows


def _no_index(folder: Path) -> str:
    """What is said of a place where no index lies: what lies there, or in the folders in it."""
    if inner := holding(folder, "index.json"):
        its = f"its index: {folder / inner[0]}" if len(inner) == 1 else f"its indexes: {listed(inner)}; give one"
        return f"{folder} is {kind_of(folder)}; {its}"
    if is_run(folder):
        return f"{folder} is a run without an index; make one with: vlp embed {folder} DATA --out {folder / 'index'}"
    if folder.is_dir() and any(folder.iterdir()):
        return f"{folder} is {kind_of(folder)}, no index; make one elsewhere: vlp embed MODEL DATA --out OTHER"
    return f"no index at {folder} (in {Path.cwd()}); make one with: vlp embed MODEL DATA --out {folder}"


def _read_about(folder: Path) -> About:
    refuse_url(folder, fault=SearchError)
    path = folder / "index.json"
    if not path.is_file():
        raise SearchError(_no_index(folder))
    try:
        about = About.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise SearchError(
            f"{path} is not an index of schema {SCHEMA} ({error.error_count()} faults); make it again"
        ) from None
    missing = [name for name in ("features.safetensors", "items.jsonl", "thumbs.bin") if not (folder / name).is_file()]
    if missing or about.schema_ != SCHEMA:
        raise SearchError(f"{folder} is not whole: {', '.join(missing) or f'schema {about.schema_}'}; make it again")
    return about
