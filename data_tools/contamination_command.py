"""The command `contamination`, as those of `data_tools.commands`: options in, the tool built and run, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.commands import caption_fields, make_part, run_tool
from data_tools.options import CaptionFields, Shards, Workers


def contamination(
    train: Shards,
    against: Annotated[list[str], typer.Option(help="Evaluation set: shards as above, or NAME=SHARDS; several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables, the keep-lists and the page.")],
    captions: CaptionFields = "",
    detail: Annotated[float | None, typer.Option(help="Least correlation of aligned gradients of a leak.")] = None,
    model: Annotated[str | None, typer.Option(help="Run or model whose neighbours are compared too.")] = None,
    neighbours: Annotated[int, typer.Option(help="Neighbours of each evaluation picture that are compared.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where the model computes.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder of sketches; empty: OUT/sketches.")] = None,
    shown: Annotated[int, typer.Option(help="Pairs of each evaluation set on the page.")] = 60,
    workers: Workers = 1,
) -> None:
    """Find evaluation pictures in training shards: the same pixels, coded again, scaled, or cut out.

    OUT/keep.parquet leaves the leaked samples out: `keep` of a source. Look at OUT/contamination.html. Sketches of
    shards that were looked at before are used again.

      python -m data_tools contamination data/train --against data/test --against coco=coco/*.tar --out leaks
    """
    from data_tools.tell import tell_contamination

    part = make_part(
        "contamination",
        against=tuple(against),
        model=model,
        neighbours=neighbours,
        device=device,
        cache=cache,
        shown=shown,
        workers=workers,
        **({"detail": detail} if detail is not None else {}),
        **caption_fields(captions),
    )
    result = run_tool(part, train, out)
    tell_contamination(result)
    typer.echo(f"written: {out}/contamination.html, leaks.csv, {', '.join(result['keep_lists'])}, summary.json")
