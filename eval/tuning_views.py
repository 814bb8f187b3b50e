"""Features of augmented copies of pictures, encoded once per weights, data and augmentation seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlp.adapters.task import Examples
from vlp.data.augment import Augment, augmented
from vlp.data.schema import DataError
from vlp.data.sources import Records, Selected
from vlp.embed import Encoder
from vlp.pictures import read_picture

AUGMENT = Augment(scale=(0.5, 1.0), flip=0.5)  # of the training-free few-shot methods (2402.04087)


class Augmented:
    """uint8 [3, H, W] at the model's size: V crops of each of some records, those of one picture one after the other.

    What is drawn depends on the seed, the picture's place in its source and the number of the copy alone.
    """

    def __init__(self, records: Records, places: Sequence[int], transform: Any, *, views: int, seed: int) -> None:
        self.records, self.places, self.transform = records, places, transform
        self.views, self.seed = views, seed
        self._last: tuple[int, list[Tensor]] = (-1, [])  # decoded once for all its copies

    def __len__(self) -> int:
        return len(self.places) * self.views

    def __getitem__(self, index: int) -> Tensor:
        row, view = divmod(index, self.views)
        if self._last[0] != row:
            place = self.places[row]
            drawn = [(AUGMENT, np.random.default_rng([self.seed, place, number])) for number in range(self.views)]
            self._last = (row, augmented(read_picture(self.records[place]), drawn, self.transform))
        return self._last[1][view]


class ViewFeatures:
    """`(examples, V) -> [n, V, D]`; what was encoded before, here or in the encoder's cache, is not encoded again."""

    def __init__(self, encoder: Encoder, *, seed: int = 0) -> None:
        self.encoder, self.seed = encoder, seed
        self._known: dict[str, dict[int, Tensor]] = {}

    def __call__(self, examples: Examples, views: int) -> Float[Tensor, "n V D"]:
        """Features of unit norm."""
        records, places = source_of(examples.pictures)
        key = self._key(records, views)
        known = self._known.setdefault(key, self._read(key, views))
        missing = sorted(set(places) - known.keys())
        if missing:
            known.update(zip(missing, self._encode(records, missing, views), strict=True))
            self._write(key, known)
        return torch.stack([known[place] for place in places])

    def _encode(self, records: Records, places: list[int], views: int) -> Tensor:
        crops = Augmented(records, places, self.encoder.dual.transform, views=views, seed=self.seed)
        found = self.encoder.images(crops)
        if found.skips:
            skip = found.skips[0]
            raise DataError(f"a picture that could be read before cannot be augmented: {skip.reason} {skip.detail}")
        cache = self.encoder.cache
        features = found.features if cache is None else cache.as_read(found.features)
        found_views: Tensor = features.unflatten(0, (len(places), views))
        return found_views

    def _key(self, records: Records, views: int) -> str:
        parts = {
            "kind": "views",
            "weights": self.encoder.weights_hash,
            "reader": repr(self.encoder.dual.transform),
            "precision": self.encoder.precision,
            "data": records.fingerprint,
            "augment": AUGMENT.model_dump(mode="json"),
            "views": views,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _read(self, key: str, views: int) -> dict[int, Tensor]:
        entry = self.encoder.cache.read(key) if self.encoder.cache is not None else None
        return {} if entry is None else dict(zip(entry.kept, entry.features.unflatten(0, (-1, views)), strict=True))

    def _write(self, key: str, known: dict[int, Tensor]) -> None:
        if self.encoder.cache is not None:
            places = sorted(known)
            rows = torch.cat([known[place] for place in places])
            self.encoder.cache.write(key, features=rows, kept=places, skips=[])


def source_of(pictures: Any) -> tuple[Records, list[int]]:
    """The whole source that pictures were selected from, and their places in it."""
    places = np.arange(len(pictures))
    while isinstance(pictures, Selected):
        places, pictures = pictures.rows[places], pictures.inner
    return pictures, places.tolist()
