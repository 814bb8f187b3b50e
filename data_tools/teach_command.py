"""The command `teach` of `python -m data_tools`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.commands import make_part, run_tool, say
from data_tools.options import Overwrite, ShardRange, Shards, parse_range


def teach(
    checkpoint: Annotated[str, typer.Argument(help="Teacher: run folder, model folder, Hugging Face folder.")],
    shards: Shards,
    out: Annotated[Path, typer.Option(help="Folder to write to; made if it is not there.")],
    weights: Annotated[str | None, typer.Option(help="Its weights file, if CHECKPOINT is an architecture.")] = None,
    captions: Annotated[
        str,
        typer.Option(help="Caption fields, comma-separated: the first becomes text, others text/NAME."),
    ] = "captions",
    language: Annotated[str | None, typer.Option(help="Of captions that are objects of languages.")] = None,
    member: Annotated[str, typer.Option(help="Name of the new member of each sample.")] = "teacher.npz",
    views: Annotated[int, typer.Option(help="Crops of each picture.")] = 4,
    scale: Annotated[tuple[float, float], typer.Option(help="Part of the area that a crop has, from and to.")] = (
        0.9,
        1.0,
    ),
    seed: Annotated[int, typer.Option(help="Same seed, same crops.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16: what the teacher computes in.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Samples read at once, and pictures put through at once.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes, each with the teacher and with shards of its own.")] = 1,
    shard_range: ShardRange = "0/1",
    overwrite: Overwrite = False,
) -> None:
    """Store a teacher's features of some crops and of the captions in every sample, as in DataCompDR.

    Shard in, shard out; finished shards stay when it is started again. configs/train/distill_stored.yaml trains on it.

      python -m data_tools teach runs/out/demo runs/out/demo/data/train --out runs/out/demo/data/taught --views 8
    """
    part = make_part(
        "teach",
        checkpoint=checkpoint,
        weights=weights,
        captions=tuple(filter(None, captions.split(","))),
        language=language,
        member=member,
        views=views,
        scale=scale,
        seed=seed,
        precision=precision,
        device=device,
        batch_size=batch_size,
        workers=workers,
        shard_range=parse_range(shard_range),
        overwrite=overwrite,
    )
    say(run_tool(part, shards, out))
