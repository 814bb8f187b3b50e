"""No result depends on how many pictures or texts are taken at once."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from eval import BENCHMARKS
from eval.data import open_data
from eval.view import View
from tests.eval.colours import COLOURS, colour_shard
from vlp.embed import Encoder
from vlp.models.model import Model

NAMES = list(COLOURS)
BY_BATCH = {
    "pooled": {"name": "zeroshot", "names": NAMES},
    "tokens": {"name": "zeroshot", "names": NAMES, "adapter": "token_zeroshot"},
    "labels": {"name": "multilabel", "names": NAMES, "label": "class"},
    "corrupted": {"name": "corruptions", "names": NAMES, "corruptions": ["fog"], "severities": [3]},
    "probe": {"name": "linear_probe", "train": "TRAIN", "C": 1.0},
    "neighbours": {"name": "knn", "train": "TRAIN"},
    "few": {"name": "few_shot", "train": "TRAIN", "shots": [2], "seeds": [1], "C": 1.0},
}
BY_BLOCK = {
    "retrieval": {"name": "retrieval", "captions": {"fields": ["captions"]}},
    "tokens": {"name": "retrieval", "captions": {"fields": ["captions"]}, "head": "tokens", "rerank": 5},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunks")
    torch.manual_seed(0)
    shards = [colour_shard(folder / f"{name}.tar", per_colour=count) for name, count in (("d", 3), ("t", 5))]
    return Model(arch="vlp-nano").build().eval(), *map(str, shards)


def outcome(given, asked, **more):
    """Numbers by name, and the other facts of the outcome."""
    dual, data, train = given
    asked = {**asked, "train": train} if "train" in asked else asked
    part = BENCHMARKS.build({**asked, "dataset": "d", "data": data, "n_boot": 50, **more})
    found = asdict(part.measure(View(Encoder(dual, quiet=True), open_data(part.data), dataset="d")))
    numbers = {f"{key} {name}": value for key in ("metrics", "chance") for name, value in found[key].items()}
    numbers |= {f"{name} {end}": ends[end] for name, ends in found["ci95"].items() for end in (0, 1)}
    return numbers, {key: found[key] for key in ("n", "counts", "skips", "shown")}


@pytest.mark.parametrize("kind", BY_BATCH)
def test_batches(given, kind):
    numbers, facts = outcome(given, BY_BATCH[kind])
    whole = pytest.approx(numbers), facts
    for batch in (1, 4, 7):
        assert outcome(given, BY_BATCH[kind], batch=batch) == whole, batch


@pytest.mark.parametrize("kind", BY_BLOCK)
def test_blocks(given, kind):
    whole = outcome(given, BY_BLOCK[kind])
    for block in (1, 4, 7):
        assert outcome(given, BY_BLOCK[kind], block=block) == whole, block
