"""`python -m data_tools`: the command line of the data tools; also mounted as `vlp data`."""

from __future__ import annotations

import typer

from data_tools.commands import build, index, scenes, stats, verify
from data_tools.contamination_command import contamination
from data_tools.gloss_command import gloss
from data_tools.teach_command import teach

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@app.callback()
def main() -> None:
    """Make, import, check and count data sets of tar shards. Start with: scenes data --split train --count 2000."""


for command in (scenes, build, index, verify, stats, teach, gloss, contamination):
    app.command()(command)

if __name__ == "__main__":
    app(prog_name="python -m data_tools")
