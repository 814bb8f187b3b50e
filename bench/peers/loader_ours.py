"""Our loader over shards, timed.

    python loader_ours.py SETTINGS.json

Settings and what is printed are those of loader.py. Pictures come as uint8 and are normalised here, in the main
process, as a training on the CPU does; what theirs does in its workers is in our time too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from drain import drain

from vlp.data import Data
from vlp.data.feed import Feed
from vlp.data.transforms import Preprocess
from vlp.text import TOKENIZERS


def batches(settings: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised floats [B, 3, H, W] (uint8 with `uint8`) and ids [B, T]."""
    source = {"name": "shards", "urls": settings["shards"], "captions": {"fields": ["txt"]}}
    data = Data.model_validate({"sources": [source], "batch_size": settings["batch"], "workers": settings["workers"]})
    preprocess = Preprocess.model_validate({"size": settings["size"]})
    tokenizer = TOKENIZERS.build({"name": "clip_bpe"}).build(None)
    feed = Feed(data, tokenizer=tokenizer, preprocess=preprocess, seed=0)
    for batch in feed.batches(0, settings["warmup"] + settings["batches"] + 2 * settings["workers"]):
        image = batch.image if settings["uint8"] else preprocess.normalize(batch.image)
        yield image, batch.text[:, 0]


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    drain(batches(settings), settings)
