"""The commands of `python -m data_tools`, one function each: options in, the tool's part built and run, a table out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from data_tools import TOOLS
from data_tools.options import (
    CaptionFields,
    Defects,
    Folder,
    Overwrite,
    ShardRange,
    Shards,
    ShardSize,
    UniqueCaptions,
    Workers,
    parse_range,
)
from vlp.data.schema import DataError


def scenes(
    out: Folder,
    split: Annotated[
        str, typer.Option(help="Name of the split: becomes a folder of OUT and part of every key.")
    ] = "train",
    count: Annotated[int, typer.Option(help="Number of pictures.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the square pictures in pixels.")] = 64,
    variant: Annotated[
        str, typer.Option(help="captions, or labelled: one dominant object of 25 classes.")
    ] = "captions",
    styles: Annotated[str, typer.Option(help="Drawing styles, comma-separated; empty: all seven.")] = "",
    defects: Defects = 0.0,
    format: Annotated[str, typer.Option(help="jpg or png.")] = "jpg",
    shard_size: ShardSize = 1000,
    exclude: Annotated[list[Path] | None, typer.Option(help="Data set with which no caption may be shared.")] = None,
    unique_captions: UniqueCaptions = None,
    workers: Workers = 1,
    shard_range: ShardRange = "0/1",
    overwrite: Overwrite = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a contact sheet (PNG) of the first 48 pictures.")
    ] = None,
) -> None:
    """Render scenes of coloured shapes with captions, hard negatives, boxes and masks.

    OUT/SPLIT/ then holds 000000.tar ... and dataset.json. A test split that shares no caption with training:

      python -m data_tools scenes data --split train --count 20000 --seed 0 --workers 2

      python -m data_tools scenes data --split test --count 1000 --seed 1 --exclude data/train

      python -m data_tools scenes data --split zeroshot --variant labelled --count 1000 --seed 2

      python -m data_tools scenes data --split flawed --variant labelled --defects 0.5 --count 1000 --seed 3
    """
    part = make_part(
        "scenes",
        split=split,
        count=count,
        seed=seed,
        size=size,
        variant=variant,
        defects=defects,
        format=format,
        shard_size=shard_size,
        exclude=tuple(exclude or ()),
        unique_captions=unique_captions,
        workers=workers,
        shard_range=parse_range(shard_range),
        overwrite=overwrite,
        **({"styles": tuple(styles.split(","))} if styles else {}),
    )
    result = run_tool(part, [], out)
    if sheet is not None:
        from data_tools.scenes.preview import write_preview

        write_preview(part, sheet)
    say(result)


def make_part(tool: str, /, **fields: Any) -> Any:
    """The tool's part; faults in the options end the program with one line each."""
    try:
        return TOOLS.resolve(tool).model_validate(fields)
    except ValidationError as error:
        for fault in error.errors():
            option = "--" + "-".join(str(step) for step in fault["loc"][:1]).replace("_", "-")
            typer.echo(f"{tool}: {option}: {fault['msg'].removeprefix('Value error, ')}", err=True)
        raise typer.Exit(2) from None


def caption_fields(text: str) -> dict[str, Any]:
    """The setting `captions`, where the option was given."""
    return {"captions": tuple(text.split(","))} if text else {}


def run_tool(part: Any, inputs: list[Any], out: Path | None) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        result: dict[str, Any] = part.run(inputs, out)
    except DataError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def say(result: dict[str, Any]) -> None:
    """One line for each entry of a result."""
    for name, value in result.items():
        typer.echo(f"{name}: {value}")


def build(
    source: Annotated[
        str, typer.Argument(help="Folder of pictures, .csv, .tsv, .jsonl, .parquet, save_to_disk folder, hub id.")
    ],
    out: Folder,
    image: Annotated[str, typer.Option(help="Column of the picture: a path, or bytes. Empty: found by its name.")] = "",
    caption: Annotated[list[str] | None, typer.Option(help="Column of texts; may be given several times.")] = None,
    extra: Annotated[list[str] | None, typer.Option(help="More columns to keep in the json member.")] = None,
    label: Annotated[str, typer.Option(help="Column of class names or numbers.")] = "",
    key: Annotated[str, typer.Option(help="Column of keys; empty: row numbers.")] = "",
    name: Annotated[str, typer.Option(help="Name of the data set; empty: of the source.")] = "",
    split: Annotated[str, typer.Option(help="Split of a `datasets` source.")] = "train",
    quoting: Annotated[str, typer.Option(help="minimal (CSV) or none (TSV): are quotes special?")] = "",
    size: Annotated[int, typer.Option(help="Scale pictures so that the shorter side is at most this; 0: leave.")] = 0,
    shard_size: ShardSize = 1000,
    allow_no_caption: Annotated[bool, typer.Option("--allow-no-caption", help="Keep rows without any text.")] = False,
    workers: Workers = 1,
    shard_range: ShardRange = "0/1",
    overwrite: Overwrite = False,
) -> None:
    """Bring pictures and captions into shards; every row is written, or counted by reason in OUT/skips.jsonl.

    A folder of pictures takes its texts from sibling .txt or .json files, or its classes from the subfolders.

      python -m data_tools build pairs.csv data/pairs --image file --caption title --caption text --workers 2

      python -m data_tools build photos/ data/photos --size 256
    """
    part = make_part(
        "build",
        image=image,
        captions=tuple(caption or ()),
        extra=tuple(extra or ()),
        label=label,
        key=key,
        name=name,
        split=split,
        quoting=quoting or None,
        size=size or None,
        shard_size=shard_size,
        allow_no_caption=allow_no_caption,
        workers=workers,
        shard_range=parse_range(shard_range),
        overwrite=overwrite,
    )
    say(run_tool(part, [source], out))


def index(
    shards: Shards,
    out: Annotated[Path | None, typer.Option(help="Folder for the indexes; empty: beside the shards.")] = None,
    key_split: Annotated[
        str, typer.Option(help="first-dot (webdataset's way) or last-dot (keys with dots).")
    ] = "first-dot",
    manifest: Annotated[bool, typer.Option(help="Write dataset.json too, if all shards lie in one folder.")] = True,
    keep_damaged: Annotated[
        bool, typer.Option("--keep-damaged", help="Index damaged shards up to the damage.")
    ] = False,
) -> None:
    """Write side indexes and dataset.json for shards that others made, by a strict walk of every tar header.

    python -m data_tools index 'cc3m/{000..331}.tar'
    """
    say(run_tool(make_part("index", key_split=key_split, manifest=manifest, keep_damaged=keep_damaged), shards, out))


def verify(
    shards: Shards,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode every picture and compare sha256 of every shard.")
    ] = False,
    captions: CaptionFields = "",
    unique_captions: Annotated[
        bool, typer.Option("--unique-captions", help="A caption that comes twice is a fault.")
    ] = False,
    disjoint: Annotated[list[Path] | None, typer.Option(help="Data set with which no caption may be shared.")] = None,
    key_split: Annotated[str, typer.Option(help="first-dot or last-dot.")] = "first-dot",
    out: Annotated[
        Path | None, typer.Option(help="Folder for findings.jsonl, a line for each with shard and key.")
    ] = None,
) -> None:
    """Check shards: tar damage, manifest against what is readable, keys, pictures, captions. Exit code 1 on faults.

    python -m data_tools verify data/test --deep --unique-captions --disjoint data/train
    """
    from data_tools.tell import tell_verify

    part = make_part(
        "verify",
        deep=deep,
        unique_captions=unique_captions,
        disjoint=tuple(disjoint or ()),
        key_split=key_split,
        **caption_fields(captions),
    )
    result = run_tool(part, shards, out)
    tell_verify(result)
    if out is not None:
        typer.echo(f"written: {result['findings']}")
    if not result["ok"]:
        raise typer.Exit(1)


def stats(
    shards: Shards,
    out: Annotated[Path | None, typer.Option(help="Folder for stats.json and the plots.")] = None,
    captions: CaptionFields = "",
    tokenizer: Annotated[str, typer.Option(help="Counts tokens; empty: does not.")] = "clip_bpe",
    context: Annotated[int, typer.Option(help="Context length that captions are cut at.")] = 77,
    top: Annotated[int, typer.Option(help="How many of the most frequent captions and classes.")] = 10,
) -> None:
    """Count what is in a data set: picture sizes, caption lengths in words and tokens, scripts, duplicates.

    python -m data_tools stats data/train --out runs/out/stats
    """
    from data_tools.tell import tell_stats

    result = run_tool(
        make_part("stats", tokenizer=tokenizer, context=context, top=top, **caption_fields(captions)), shards, out
    )
    tell_stats(result)
    if out is not None:
        typer.echo(f"written: {out}/stats.json, pictures.png, captions.png")
