"""`vlp train` on shards, if asked for with some of its parts replaced by open_clip's way.

    python train_ours.py SETTINGS.json

Settings are those of train.py; `off` names the parts. Prints, as JSON, seconds and loss of every step.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip import ClipLoss, image_transform
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor

from vlp import config
from vlp.data import serve, stages
from vlp.data.serve import Server
from vlp.log import read_steps
from vlp.losses.infonce import InfoNCE
from vlp.models import dual, image, text_clip
from vlp.models.groups import Group
from vlp.report import write_report
from vlp.run import Run
from vlp.text.clip_bpe import ClipTokenizer
from vlp.trainer import Trainer
from vlp.types import Batch, Features


def main(settings: dict[str, Any]) -> None:
    for part in settings["off"]:
        OFF[part](settings)
    run = config.validate(Run, run_settings(settings), where="bench")
    shutil.rmtree(run.folder, ignore_errors=True)
    Trainer(run).train()
    write_report(run.folder)
    steps = read_steps(run.folder / "metrics.jsonl")
    seconds = [settings["batch"] / step["samples_per_s"] for step in steps]
    print(json.dumps({"seconds": seconds, "losses": [step["loss"] for step in steps]}))


def run_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The run as its YAML file would say it."""
    source = {"name": "shards", "urls": settings["shards"], "captions": {"fields": ["txt"]}}
    return {
        "name": "ours",
        "out": settings["folder"],
        "model": {"arch": settings["arch"]},
        "data": {"sources": [source], "batch_size": settings["batch"], "workers": settings["workers"]},
        "losses": [{"name": "infonce"}],
        "optim": {
            "lr": settings["lr"],
            "weight_decay": 0.2,
            "fused": "no" if "optimizer" in settings["off"] else "auto",
        },
        "schedule": {"name": "cosine", "warmup": settings["warmup"]},
        "duration": settings["steps"],
        "threads": settings["threads"],
        "log": {"every": 1},
    }


def padded_text(settings: dict[str, Any]) -> None:
    """Every caption at the full context, all in one call."""
    serve.collate = partial(serve.collate, round_to=77)  # type: ignore[assignment]
    dual.together = lambda mask, real, **_: [Group(list(range(len(mask))), mask.shape[1])]  # type: ignore[assignment]


def whole_last_block(settings: dict[str, Any]) -> None:
    """The last blocks for all tokens."""
    text_clip.can_pool_early = image.can_pool_early = lambda block: False


def their_loss(settings: dict[str, Any]) -> None:
    """ClipLoss."""
    loss = ClipLoss()

    def call(self: InfoNCE, features: Features, batch: Batch) -> dict[str, Tensor]:
        return {"contrast": loss(features.image, features.text[:, 0], features.scale)}

    InfoNCE.__call__ = call  # type: ignore[method-assign]


def their_samples(settings: dict[str, Any]) -> None:
    """Pictures through Pillow and the normalised floats of `image_transform`, captions one by one."""
    transform = image_transform(
        json.loads(Path(settings["config"]).read_text())["vision_cfg"]["image_size"], is_train=True
    )
    words, floats, made = SimpleTokenizer(), list[Tensor](), Server.__getitem__

    def augmented(picture: bytes, views: Any, preprocess: Any, **_: Any) -> list[Tensor]:
        floats.append(transform(Image.open(io.BytesIO(picture))))
        return [torch.zeros(3, *preprocess.size, dtype=torch.uint8)]

    def batch_of(self: Server, step: int) -> Batch:
        floats.clear()
        batch = made(self, step)
        pictures = torch.zeros(batch.image.shape)
        pictures[batch.valid] = torch.stack(floats)
        return replace(batch, image=pictures)

    def whole(self: ClipTokenizer, texts: Sequence[str]) -> list[list[int]]:
        return [[i for i in words(text)[0].tolist() if i] for text in texts]

    stages.augmented = augmented  # type: ignore[assignment]
    Server.__getitem__ = batch_of  # type: ignore[method-assign]
    ClipTokenizer._whole = whole  # type: ignore[method-assign]


OFF: dict[str, Callable[[dict[str, Any]], None]] = {
    "groups": padded_text,
    "last block": whole_last_block,
    "optimizer": lambda settings: None,  # in the run's settings
    "loss": their_loss,
    "loader": their_samples,
}

if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
