"""A webdataset pipeline with nothing to it but what makes a batch: the decoder, resize and tokenizer are ours.

    python loader_bare.py SETTINGS.json

Settings and what is printed are those of loader.py. It checks nothing: no index, no limits of size or pixels, no
count of what is missing; a bad sample ends it, and its order is that of a shuffle buffer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import simplejpeg
import torch
import webdataset as wds
from drain import drain
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from vlp.text import TOKENIZERS


def batches(settings: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 [B, 3, H, W] and ids [B, 77]."""
    size = settings["size"]
    crop = v2.RandomResizedCrop(size, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
    tokenizer = TOKENIZERS.build({"name": "clip_bpe"}).build(None)

    def pair(sample: dict[str, Any]) -> tuple[Tensor, str]:
        picture = torch.from_numpy(simplejpeg.decode_jpeg(sample["jpg"], "RGB")).permute(2, 0, 1)
        return crop(picture), sample["txt"].decode()

    def together(pairs: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in pairs]), tokenizer([text for _, text in pairs])

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(settings["shards"]),
        wds.shuffle(100),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        wds.map(pair),
        wds.batched(settings["batch"], collation_fn=together, partial=False),
    )
    total = settings["batches"] + settings["warmup"] + 2 * settings["workers"]
    endless = pipeline.with_epoch(-(-total // max(1, settings["workers"])))
    yield from wds.WebLoader(
        endless, batch_size=None, shuffle=False, num_workers=settings["workers"], prefetch_factor=4
    )


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    drain(batches(settings), settings)
