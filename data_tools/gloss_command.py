"""The command `gloss` of `python -m data_tools`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.commands import make_part, run_tool, say
from data_tools.options import Overwrite, Shards

Dictionary = Annotated[
    list[str] | None, typer.Option(help="LANGUAGE=NAME of dictd files NAME.index, NAME.dict.dz, or a .tsv file.")
]


def gloss(
    shards: Shards,
    out: Annotated[Path, typer.Option(help="Folder to write to; made if it is not there.")],
    dictionary: Dictionary = None,
    turned: Annotated[
        list[str] | None, typer.Option(help="The same, of a dictionary into the language of --source.")
    ] = None,
    field: Annotated[str, typer.Option(help="json field of texts by language.")] = "texts",
    out_field: Annotated[str, typer.Option(help="json field for these and their glosses.")] = "texts_glossed",
    source: Annotated[str, typer.Option(help="Language that is glossed; its endings are taken for English.")] = "en",
    overwrite: Overwrite = False,
) -> None:
    """Add word-by-word glosses of the English texts by bilingual dictionaries, such as FreeDict's, for training.

    The real texts stay where they are, so that evaluations never see a gloss.

      python -m data_tools gloss 'data/storybook_pages/train-*.tar' --out glossed --dictionary de=dictd/freedict-eng-deu
    """
    part = make_part(
        "gloss",
        dictionaries=tuple(map(_named, dictionary or ())),
        turned=tuple(map(_named, turned or ())),
        field=field,
        out_field=out_field,
        source=source,
        overwrite=overwrite,
    )
    say(run_tool(part, shards, out))


def _named(text: str) -> tuple[str, Path]:
    language, equals, path = text.partition("=")
    if not (language and equals and path):
        typer.echo(f'gloss: "{text}" is not LANGUAGE=NAME, such as de=dictd/freedict-eng-deu', err=True)
        raise typer.Exit(2)
    return language, Path(path)
