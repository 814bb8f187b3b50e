"""A run with a momentum copy and a queue on two processes equals that on one, also where one goes on after two."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shards import make_shards
from tests.test_trainer import _span, losses, make, settings, stop_at
from vlp import checkpoint

CAPTIONS = {"fields": ["captions"], "pick": "random"}
CHANGES: dict[str, Any] = {
    "losses": [{"name": "infonce", "weight": 0.5}, "momentum_contrast", "nearest_text"],
    "companions": [{"name": "queue", "size": 20}, {"name": "momentum", "momentum": 0.9}],  # in any order
    "duration": "6steps",
    "save": {"every": "3steps", "keep": 0},
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 samples of three captions each: in the queue a sample often has another label than in the batch."""
    texts = {i: {"json": _captions(i)} for i in range(24)} | {5: {"jpg": b"<html>"}}
    return make_shards(tmp_path_factory.mktemp("shards"), samples=24, shards=2, broken=texts)


def _captions(i: int) -> bytes:
    return f'{{"captions": ["a square number {i}", "number {i % 5}", "one of {i}"]}}'.encode()


def _changes(urls: str) -> dict[str, Any]:
    data = settings(Path(), urls)["data"]
    source = {**data["sources"][0], "captions": CAPTIONS}
    data |= {"sources": [source], "same_caption_same_label": True, "max_bad_fraction": 1.0}
    return {**CHANGES, "data": data}


def _one_rank(rank: int, world: int, out: Path, urls: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # Accelerate asks for them; the group is there already
    make(out / "two", urls, **_changes(urls)).train()
    with pytest.raises(KeyboardInterrupt):
        make(out / "two, one", urls, evaluators=[_span(stop_at(4))], **_changes(urls)).train()


def _states(out: Path) -> list[dict[str, torch.Tensor]]:
    folder = checkpoint.newest(out / "t" / "checkpoints").path
    assert folder is not None
    files = ("companion.queue.safetensors", "companion.momentum.safetensors", "model/open_clip_model.safetensors")
    return [checkpoint.load_tensors(folder / file) for file in files]


@pytest.mark.slow
def test_two_processes_equal_one_and_one_goes_on_after_two(tmp_path: Path, urls: str, spawn: Any) -> None:
    make(tmp_path / "one", urls, **_changes(urls)).train()
    spawn(_one_rank, 2, tmp_path, urls)
    assert len(losses(tmp_path / "two, one")) < 6
    make(tmp_path / "two, one", urls, **_changes(urls)).train()  # goes on at step 3
    expected = _states(tmp_path / "one")
    assert int(expected[0]["entered"]) > 20
    for name in ("two", "two, one"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        for found, wanted in zip(_states(tmp_path / name), expected, strict=True):
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                torch.testing.assert_close(
                    found[key], value, atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
                )
