"""The command `contamination`: its options, the tool built and run, a line for every evaluation set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.commands import Shards, Workers, make_part, run_tool


def contamination(
    train: Shards,
    against: Annotated[list[str], typer.Option(help="Evaluation set: shards as above, or NAME=SHARDS; several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables, the keep-lists and the page.")],
    captions: Annotated[str, typer.Option(help="json fields (a.b) and members that hold captions.")] = "",
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
    fields: dict[str, Any] = {"captions": tuple(captions.split(","))} if captions else {}
    fields |= {"detail": detail} if detail is not None else {}
    part = make_part(
        "contamination",
        against=tuple(against),
        model=model,
        neighbours=neighbours,
        device=device,
        cache=cache,
        shown=shown,
        workers=workers,
        **fields,
    )
    result = run_tool(part, train, out)
    for found in result["evaluations"]:
        typer.echo(_line(found))
    counts = result["train"]
    skipped = ", ".join(f"{reason} {count}" for reason, count in counts["skipped"].items()) or "none"
    typer.echo(f"training: {counts['samples']} samples, {counts['dropped']} to drop, not looked at: {skipped}")
    typer.echo(f"written: {out}/contamination.html, leaks.csv, {', '.join(result['keep_lists'])}, summary.json")


def _line(found: dict[str, Any]) -> str:
    if not found["pictures"]:
        return f"{found['name']}: no picture could be read: {found['skipped']}"
    share = f"{100 * found['share']:.2f} % ({100 * found['low']:.2f} to {100 * found['high']:.2f})"
    kinds = ", ".join(f"{kind} {count}" for kind, count in found["kinds"].items())
    skipped = f"; not read: {found['skipped']}" if found["skipped"] else ""
    flat = f"; {found['flat']} of nearly one colour, by equal pixels only" if found["flat"] else ""
    said = f"{found['name']}: {found['leaked']} of {found['pictures']} pictures leaked, {share}: {kinds}"
    return f"{said}; same caption {found['same_caption']}{skipped}{flat}"
