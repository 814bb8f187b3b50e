"""Neighbours of evaluation pictures by a model's features: further pairs to compare, where hashes are not near."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_tools.progress import progress
from data_tools.shards import open_index
from vlp.data.fields import IMAGE_MEMBERS
from vlp.embed import Encoder
from vlp.types import Sample

CLEAN = 1e-3  # share of all pairs whose cosine is above the threshold: nearly all pairs are clean
SAMPLED = 1 << 14  # pairs of each block whose cosines say where the threshold is
ROWS = 1024  # evaluation pictures compared with a shard at once


class Proposed(NamedTuple):
    """Pairs to compare: for each training shard its rows and those of the evaluation pictures."""

    pairs: dict[Path, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    threshold: float  # cosine of the nearest thousandth of all pairs
    skips: dict[str, int]  # pictures that could not be encoded, by reason


class ShardPictures:
    """The pictures of a shard in order, for an encoder: read when asked, and named by what the shard holds."""

    def __init__(self, shard: Path) -> None:
        self.shard, self.built = shard, open_index(shard)
        self.keys = list(self.built.keys())
        self.fingerprint = self.built.content

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int, /) -> Sample:
        key, members = self.keys[number], {}
        with open(self.shard, "rb") as file:
            for name, place in self.built.members(number).items():
                if name in IMAGE_MEMBERS:
                    file.seek(place.offset)
                    members[name] = file.read(place.size)
        return Sample(key, members, self.shard.name, number)


def propose(shards: Sequence[Path], tests: Sequence[Path], encoder: Encoder, *, count: int) -> Proposed:
    """The `count` nearest training pictures of each evaluation picture, of those nearer than nearly all pairs are.

    The threshold is the cosine that one pair of a thousand reaches: leaks are far fewer, so clean pairs set it.
    """
    skips: Counter[str] = Counter()
    features, rows = _features(tests, encoder, skips)
    nearest, clean = _Nearest(len(rows), count), [torch.ones(1)]
    for number, shard in enumerate(progress(shards, total=len(shards), label="neighbours")):
        theirs, places = _features([shard], encoder, skips)
        for start in range(0, len(rows) if len(places) else 0, ROWS):
            cosines = features[start : start + ROWS] @ theirs.T
            clean.append(cosines.flatten()[:: -(-cosines.numel() // SAMPLED)])
            nearest.add(start, cosines, number, places)
    threshold = float(np.quantile(torch.cat(clean).numpy(), 1 - CLEAN))
    test, slot = torch.nonzero(nearest.cosine >= threshold, as_tuple=True)
    of, row = nearest.shard[test, slot], nearest.row[test, slot]
    pairs = {shards[n]: (row[of == n].numpy(), rows[test[of == n]].numpy()) for n in of.unique().tolist()}
    return Proposed(pairs, threshold, dict(skips))


class _Nearest:
    """The nearest training pictures so far: cosine, shard and row in it, each [evaluation pictures, count]."""

    def __init__(self, pictures: int, count: int) -> None:
        self.cosine = torch.full((pictures, count), -2.0)
        self.shard = torch.zeros((pictures, count), dtype=torch.long)
        self.row = torch.zeros((pictures, count), dtype=torch.long)

    def add(self, start: int, cosines: Tensor, number: int, places: Tensor) -> None:
        """Takes in the pictures at `places` of a shard, for the evaluation pictures from `start` on."""
        block = slice(start, start + len(cosines))
        count = self.cosine.shape[1]
        new = cosines.topk(min(count, len(places)), dim=1)
        cosine = torch.cat([self.cosine[block], new.values], dim=1)
        shard = torch.cat([self.shard[block], torch.full_like(new.indices, number)], dim=1)
        row = torch.cat([self.row[block], places[new.indices]], dim=1)
        best = cosine.topk(count, dim=1)
        self.cosine[block] = best.values
        self.shard[block], self.row[block] = shard.gather(1, best.indices), row.gather(1, best.indices)


def _features(shards: Sequence[Path], encoder: Encoder, skips: Counter[str]) -> tuple[Tensor, Tensor]:
    """Features [n, D] of the pictures of some shards, and their rows among all samples of these."""
    features, rows, start = [], [], 0
    for shard in shards:
        pictures = ShardPictures(shard)
        encoded = encoder.images(pictures)
        skips.update(encoded.reasons())
        if encoded.kept:
            features.append(encoded.features)
            rows += [start + row for row in encoded.kept]
        start += len(pictures)
    return torch.cat(features) if features else torch.empty(0, 0), torch.tensor(rows, dtype=torch.long)
