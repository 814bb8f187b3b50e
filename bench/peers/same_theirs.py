"""open_clip's own `train_one_epoch` on given batches and weights; runs in the environment of open_clip_train.txt.

    python same_theirs.py SETTINGS.json

Settings are those of same_batches.py. Optimizer, groups, schedule and loss are made as `open_clip_train.main` makes
them. Prints, as JSON, the loss of every step, as its ClipLoss gave it: the log has five digits only.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train.data import DataInfo
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import Tensor


class Batches:
    """What `train_one_epoch` asks of a loader."""

    def __init__(self, folder: Path, steps: int, batch: int) -> None:
        self.folder, self.num_batches, self.num_samples = folder, steps, steps * batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.num_batches):
            image, text = torch.load(self.folder / f"{step}.pt", weights_only=True)
            yield image, text


class Recorded(open_clip.ClipLoss):
    """ClipLoss, whose results are kept."""

    losses: list[float]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        self.losses.append(float(found["contrastive_loss"]))
        return found


def groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups as in open_clip_train.main."""

    def exclude(name: str, parameter: Tensor) -> bool:
        return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": decay},
    ]


def main(settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    open_clip.add_model_config(Path(settings["config"]))
    model = open_clip.create_model(settings["arch"], output_dict=True)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    optimizer = torch.optim.AdamW(groups(model, settings["decay"]), lr=settings["lr"], betas=(0.9, 0.98), eps=1e-6)
    loss = Recorded()
    loss.losses = []
    args = Namespace(
        **{"device": "cpu", "precision": "fp32", "distill": False, "accum_freq": 1, "skip_scheduler": False},
        **{"horovod": False, "grad_clip_norm": 1.0, "rank": 0, "local_rank": 0, "world_size": 1, "wandb": False},
        **{"log_every_n_steps": 1000, "batch_size": settings["batch"], "save_logs": False, "log_local": False},
    )
    batches = Batches(folder, settings["steps"], settings["batch"])
    schedule = cosine_lr(optimizer, settings["lr"], settings["warmup"], settings["steps"])
    train_one_epoch(model, {"train": DataInfo(batches)}, loss, 0, optimizer, None, schedule, None, args)
    print(json.dumps({"losses": loss.losses}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
