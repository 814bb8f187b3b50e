"""Arguments and options that several commands of `python -m data_tools` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="Folder to write to; made if it is not there.")]
Shards = Annotated[list[str], typer.Argument(help="Folders of shards, .tar files, globs or {000..009} patterns.")]
Workers = Annotated[int, typer.Option(help="Processes. The output does not depend on it.")]
ShardSize = Annotated[int, typer.Option(help="Samples in one shard.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove shards made with other settings first.")]
CaptionFields = Annotated[str, typer.Option(help="json fields (a.b) and members that hold captions.")]
ShardRange = Annotated[
    str, typer.Option(help="i/n: write every n-th shard from i only (0/4 ... 3/4 on four machines).")
]

Defects = Annotated[
    float, typer.Option(help="Share of the pictures with a scratch, a missing part or a blob on one object.")
]
UniqueCaptions = Annotated[
    bool | None, typer.Option(help="No caption twice in the split; by default for all splits but train.")
]


def parse_range(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and int(first) < int(second)):
        typer.echo(f'--shard-range "{text}" is not i/n with i < n', err=True)
        raise typer.Exit(2)
    return int(first), int(second)
