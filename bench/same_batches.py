"""The same training by both: open_clip's own `train_one_epoch` on the batches that our loader served to ours.

A run of ours is made; its weights at the start and its batches (normalised floats, ids padded to 77) are written down,
and both train on them: fp32, AdamW, warm-up and cosine, clipping at norm 1. Losses of every step must differ by at most
1e-4, relative to nothing. This is no measurement of time; `make peers-train` makes open_clip's environment.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from paired import print_row
from sides import HERE, need_peer, peer_options, run, theirs
from train_shards import given, rendered

from vlp import config
from vlp.log import read_steps
from vlp.models.state import to_open_clip
from vlp.run import Run
from vlp.trainer import Trainer

LIMIT = 1e-4


def run_of(options: Namespace, pattern: str) -> Run:
    values = {
        "name": "same",
        "out": str(options.folder / "runs"),
        "model": {"arch": options.arch},
        "data": {
            "sources": [{"name": "shards", "urls": pattern, "captions": {"fields": ["txt"]}}],
            "batch_size": options.batch,
            "workers": 1,
        },
        "losses": [{"name": "infonce"}],
        "optim": {"lr": options.lr},
        "schedule": {"name": "cosine", "warmup": options.steps // 10},
        "duration": options.steps,
        "threads": options.threads,
        "log": {"every": 1},
    }
    return config.validate(Run, values, where="same_batches.py")


def write_down(trainer: Trainer, folder: Path, steps: int) -> None:
    """Weights in open_clip's names, and each batch as a file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.save(dict(to_open_clip(trainer.dual)), folder / "weights.pt")
    for step, batch in enumerate(trainer.feed.batches(0, steps)):
        text = torch.zeros(len(batch), trainer.dual.context, dtype=torch.long)
        text[:, : batch.text.shape[-1]] = batch.text[:, 0]
        assert batch.valid.all(), f"step {step}: a slot is empty; take another number of steps"
        torch.save((trainer.dual.transform.normalize(batch.image), text), folder / f"{step}.pt")


def main(options: Namespace) -> None:
    torch.set_num_threads(options.threads)
    count = options.batch * options.steps
    if options.shards:
        pattern = given(options.folder, shards=options.shards, form="full", limit=10**9)
    else:
        pattern = rendered(options.folder, count=count, size=96, form="full")
    settings = run_of(options, pattern)
    shutil.rmtree(settings.folder, ignore_errors=True)
    trainer, folder = Trainer(settings), options.folder / "same-batches"
    write_down(trainer, folder, options.steps)
    trainer.train()
    ours = [step["loss"] for step in read_steps(settings.folder / "metrics.jsonl")]
    said = {"arch": options.arch, "config": str(HERE.parent / "vlp" / "models" / "configs" / f"{options.arch}.json")}
    said |= {"folder": str(folder), "batch": options.batch, "steps": options.steps, "lr": options.lr}
    said |= {"warmup": options.steps // 10, "decay": settings.optim.weight_decay}
    their = run(theirs(options.peer, "same_theirs.py"), said, threads=options.threads)["losses"]
    shutil.rmtree(folder)
    apart = [abs(a - b) for a, b in zip(ours, their, strict=True)]
    print(f"{options.arch}, batches of {options.batch} of {pattern}")
    print_row(["steps", "first loss", "last loss, theirs", "last loss, ours", "largest difference", "median"])
    print_row(["---"] * 6)
    values = [f"{ours[0]:.6f}", f"{their[-1]:.6f}", f"{ours[-1]:.6f}", f"{max(apart):.1e}"]
    print_row([str(len(ours)), *values, f"{statistics.median(apart):.1e}"])
    if not max(apart) <= LIMIT:
        sys.exit(f"losses differ by {max(apart):.1e} > {LIMIT:.0e} at step {apart.index(max(apart))}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    peer_options(parser)
    parser.add_argument("--arch", default="vlp-tiny-64", help="one of vlp/models/configs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    need_peer(parser, options.peer)
    main(options)
