"""Runs with a momentum copy, a queue, and heads that draw: interrupted, resumed, and cut into micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shards import make_shards
from tests.test_trainer import _span, final_weights, losses, make, settings, stop_at
from vlp import checkpoint
from vlp.prepare import accompanied

VIEWS = [{"scale": [0.5, 1.0]}, {"scale": [0.5, 1.0]}]
CHANGES: dict[str, Any] = {
    "losses": [
        "infonce",
        {"name": "simclr", "hidden": 16},
        {"name": "mmc", "hidden": 16},
        {"name": "mae", "width": 32, "layers": 1},
        "mlm",
        "momentum_contrast",
        "nearest_text",
    ],
    "companions": [
        {"name": "momentum", "momentum": 0.9, "outputs": ["image", "text", "view_image", "view_tokens"]},
        {"name": "queue", "size": 20},
    ],
    "duration": "6steps",
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("shards"))


def _changes(urls: str) -> dict[str, Any]:
    return {**CHANGES, "data": {**settings(Path(), urls)["data"], "views": VIEWS}}


def _companion(out: Path, name: str) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(out / "t" / "checkpoints").path
    assert found is not None
    return checkpoint.load_tensors(found / f"companion.{name}.safetensors")


def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path, urls: str) -> None:
    changes = _changes(urls)
    make(tmp_path / "a", urls, **changes).train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", urls, evaluators=[_span(stop_at(5))], **changes).train()
    make(tmp_path / "b", urls, **changes).train()  # goes on at step 4
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    states = [
        [final_weights(tmp_path / s), *(_companion(tmp_path / s, name) for name in ("momentum", "queue"))] for s in "ab"
    ]
    for left, right in zip(*states, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert int(states[0][2]["entered"]) == 48
    assert (states[0][2]["label"] >= 0).all()


def test_no_column_is_made_twice(tmp_path: Path, urls: str) -> None:
    """A second copy, and a copy beside columns of the same name in the data."""
    twice = _changes(urls) | {"companions": [*CHANGES["companions"], {"name": "momentum", "momentum": 0.5}]}
    with pytest.raises(ValueError, match=r"`momentum\.2` makes.*momentum/image.*the companion `momentum` brought"):
        make(tmp_path, urls, **twice).train()
    trainer = make(tmp_path / "stored", urls, **_changes(urls))
    batch = trainer.feed.batch(0).plus({"momentum/text": torch.zeros(trainer.feed.batch_size, 1, 64)})
    with pytest.raises(ValueError, match="`momentum` makes.*momentum/text.*the data brought"):
        accompanied(batch, trainer.companions, trainer.dual)


def test_a_queue_refuses_a_stream(tmp_path: Path, urls: str) -> None:
    changes = _changes(urls)
    stream = {"name": "webdataset", "urls": urls, "samples_per_epoch": 8}
    changes["data"] = {**changes["data"], "sources": [stream]}
    with pytest.raises(ValueError, match="`queue`.*is a stream.*vlp data build"):
        make(tmp_path, urls, **changes)


def test_micro_batches_in_half_precision(tmp_path: Path, urls: str) -> None:
    more = ["caption", "m3i", {"name": "simsiam", "hidden": 16, "bottleneck": 8}, "multiview"]
    changes = _changes(urls) | {"micro_batch": 3, "duration": "3steps", "precision": "bf16"}
    changes["losses"] = [*CHANGES["losses"], *more]
    changes["companions"] = [{**CHANGES["companions"][0], "precision": "bf16"}, CHANGES["companions"][1]]
    make(tmp_path, urls, **changes).train()
    assert len(losses(tmp_path)) == 3
    assert all(0 < loss < 100 for loss in losses(tmp_path))
