"""open_clip_train's loader over shards, timed; runs in the environment of open_clip_train.txt.

    python loader_theirs.py SETTINGS.json

Settings and what is printed are those of loader.py. Nothing of theirs is changed: `get_wds_dataset` with its shuffle
buffer, `image_transform` of training, SimpleTokenizer one caption at a time.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from drain import drain
from open_clip import get_tokenizer, image_transform
from open_clip_train.data import get_wds_dataset


def batches(settings: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised floats [B, 3, H, W] and ids [B, 77], for as long as they are asked for."""
    args = Namespace(
        train_data="::".join(settings["shards"]),
        train_num_samples=settings["batch"] * (settings["batches"] + settings["warmup"] + 2 * settings["workers"]),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=settings["batch"],
        workers=settings["workers"],
        world_size=1,
    )
    transform = image_transform(settings["size"], is_train=True)
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))
    epoch = 0
    while True:
        data.set_epoch(epoch)
        yield from data.dataloader
        epoch += 1


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    drain(batches(settings), settings)
