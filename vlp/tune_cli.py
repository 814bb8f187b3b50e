"""`vlp tune`: fit an adapter to a few pictures, measure it, keep it; tables of many of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand

from eval.__main__ import MeasuresByDefault

if TYPE_CHECKING:
    from vlp.embed import Encoder


class MethodCommand(TyperCommand):
    """`vlp tune METHOD --help` ends with what METHOD is and its settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from vlp.adapters import ADAPTERS
        from vlp.tune.methods import describe_methods

        super().format_help(ctx, formatter)
        if named := [word for word in ctx.meta.get("words", ())[:1] if word in ADAPTERS.entries]:
            typer.echo(describe_methods(named) + "\n")


def _shots(text: str) -> int | None:
    """The number; None for all."""
    if text != "all" and not text.isdecimal():
        raise typer.BadParameter(f'"{text}" is neither a number of labelled pictures of each class nor all')
    return None if text == "all" else int(text)


app = typer.Typer(
    cls=MeasuresByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Adapt a model to a domain: `vlp tune METHOD ...` is short for `vlp tune run METHOD ...`. `vlp tune list`, or "
    "`vlp tune --list`, says which methods there are, `vlp tune list METHOD` what its settings are.",
)

Words = Annotated[
    list[str] | None, typer.Argument(metavar="METHOD [CHECKPOINT FILE.yaml] [KEY=VALUE...]", help="what is said above")
]
GridWords = Annotated[
    list[str], typer.Argument(metavar="FILE.yaml [CHECKPOINT] [KEY=VALUE...]", help="what is said above")
]
Features = Annotated[
    Path | None,
    typer.Option(help="folder of train.npz, test.npz, classes.npz (docs/tune.md), in place of CHECKPOINT and FILE"),
]
Folders = Annotated[
    list[Path] | None,
    typer.Option("--features", help="folder of features in place of the file's sets; may be given several times"),
]
Shots = Annotated[
    int | None,
    typer.Option(parser=_shots, metavar="N|all", help="labelled pictures of each class, 0: none; default: all"),
]
Seeds = Annotated[str | None, typer.Option(help="several, as in 1,2,3; the last line is their mean")]
Set = Annotated[list[str] | None, typer.Option("--set", help="a setting of METHOD, key=value, dotted keys")]
Drawn = Annotated[Path | None, typer.Option(help="draws.json of an earlier run: the same pictures, not new draws")]
Test = Annotated[
    list[str] | None,
    typer.Option("--test", help="other data to measure, FILE.yaml or a folder of features; may be given several times"),
]
ProtocolName = Annotated[
    str | None,
    typer.Option("--protocol", help="few_shot, base_to_new, ... or {name: imbalanced, ratio: 20}; paper: as published"),
]
Out = Annotated[
    Path | None, typer.Option(help="folder for the fitted adapter (of several: SET/seed-N), draws and records")
]
GridOut = Annotated[Path | None, typer.Option("--out", help="folder of the results; default: runs/out/tune/NAME")]
Weights = Annotated[Path | None, typer.Option(help="weights file of an open_clip name")]
Batch = Annotated[int, typer.Option(help="pictures encoded at once")]
Workers = Annotated[int, typer.Option(help="processes that decode pictures")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda when there is one")]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the encode pass: fp32, bf16 or fp16")]
Cache = Annotated[
    Path | None, typer.Option(help="folder that keeps features; default: features under $VLP_CACHE, else ~/.cache/vlp")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="keep no features, and read none")]


class Reading(NamedTuple):
    """How a model is read and run, as `Encoder` takes it."""

    weights: Path | None
    batch_size: int
    workers: int
    device: str | None
    precision: Literal["fp32", "bf16", "fp16"]
    cache: Path | None
    no_cache: bool

    def encoder(self, model: str | None) -> Encoder | None:
        """The model to encode with; None where there is none."""
        import torch

        from vlp.data.index import cache_folder
        from vlp.embed import Encoder
        from vlp.trained import load

        if model is None:
            return None
        return Encoder(
            load(model, weights=self.weights),
            device=self.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch_size=self.batch_size,
            workers=self.workers,
            precision=self.precision,
            cache=None if self.no_cache else self.cache or cache_folder() / "features",
        )


@app.command("run", cls=MethodCommand, no_args_is_help=True)
def tune(
    words: Words = None,
    features: Features = None,
    shots: Shots = None,
    seed: Annotated[int, typer.Option(help="of the draw and of everything random")] = 1,
    seeds: Seeds = None,
    set_: Set = None,
    protocol: ProtocolName = None,
    draws: Drawn = None,
    test: Test = None,
    out: Out = None,
    list_: Annotated[bool, typer.Option("--list", help="as `vlp tune list`")] = False,
    weights: Weights = None,
    batch_size: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    precision: Precision = "fp32",
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Fit METHOD to labelled pictures, measure it on test pictures, and print the result as one line of JSON.

    What to learn from are either stored features, `--features DIR`, or CHECKPOINT (a run, a model folder, an open_clip
    name) and FILE.yaml with pictures (configs/tune). `vlp tune list` says which methods there are; those that run a
    tower need a CHECKPOINT. KEY=VALUE are settings of FILE.yaml, such as data=FOLDER, or of METHOD, which
    `vlp tune METHOD --help` shows below.

    Test labels stay shut until METHOD is fitted. What it chooses, it chooses on validation (val.npz, or min(shots, 4)
    pictures a class that were not drawn) or inside of the support; `selection` in the record says where.
    With several seeds there is a line for each, and the last one is their mean.

    Example: `vlp tune zeroshot --features DIR`

    Example: `vlp tune linear runs/out/demo configs/tune/scenes.yaml --shots 16 --seeds 1,2,3 --out runs/out/linear`
    """
    from eval import tuning_run
    from vlp.tune.methods import build_method

    if list_:
        return list_methods(words)
    if not words:
        raise ValueError("which METHOD? `vlp tune list` shows all")
    given = tuning_run.sort_words(words, features=[features] if features else [])
    adapter = build_method(words[0], [*(set_ or []), *given.settings], paper=protocol == "paper")
    asked = tuning_run.Asked(
        shots, tuning_run.numbers(seeds) if seeds else [seed], draws, out, tuning_run.find_protocol(protocol, given)
    )
    encoder = Reading(weights, batch_size, workers, device, precision, cache, no_cache).encoder(given.model)
    tuning_run.run_all(adapter, given, encoder, test or [], asked, typer.echo)


@app.command("list")
def list_methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD...]", help="methods whose settings to show; all: every one")
    ] = None,
) -> None:
    """List the methods by what they learn from; with a METHOD its settings, their defaults and what they mean.

    Example: `vlp tune list gda`, or `vlp tune list all`
    """
    from vlp.tune import methods

    typer.echo(methods.describe_methods(names) if names else methods.list_methods())


@app.command("grid", no_args_is_help=True)
def grid(
    words: GridWords,
    features: Folders = None,
    protocol: ProtocolName = None,
    test: Test = None,
    out: GridOut = None,
    weights: Weights = None,
    batch_size: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    precision: Precision = "fp32",
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Measure all methods of FILE.yaml at all its numbers of shots, with all its seeds, on all its sets.

    Every record goes into OUT/results.jsonl at once, with the draws and the pictures that were right beside it. Started
    again, what is there is not measured again; a record knows its settings, data and weights. A method that fails
    leaves a record with its error, a set that cannot be read is named in OUT/refused.json; the others go on, and the
    command leaves with 1.

    Example: `vlp tune grid configs/tune/scenes.yaml runs/out/demo data=FOLDER`
    """
    from eval import tuning_run
    from vlp.tune.trial import run_grid

    given = tuning_run.sort_grid_words(words, features=features or [])
    plan = tuning_run.plan_of(given, protocol)
    encoder = Reading(weights, batch_size, workers, device, precision, cache, no_cache).encoder(given.model)
    folder = out or Path("runs/out/tune") / given.name
    targets = list(tuning_run.targets(given, test or [], encoder))
    found = run_grid(tuning_run.openings(given, encoder), plan, out=folder, targets=targets)
    typer.echo(str(folder / "results.jsonl"))
    for sentence in found.failures():
        typer.echo(f"{sentence}; another start tries again", err=True)
    if found.failures():
        raise typer.Exit(1)


@app.command("table", no_args_is_help=True)
def table(
    places: Annotated[list[Path], typer.Argument(help="results.jsonl files, or folders with some in or below them")],
    format: Annotated[Literal["md", "csv", "latex"], typer.Option(help="md, csv or latex")] = "md",
) -> None:
    """Print results as the papers do: methods x shots, mean ± std over seeds, zero-shot first, the best bold.

    Below stands how much better than zero-shot each is on the same pictures, with a paired 95 % interval. Of base to
    new classes H is the harmonic mean of the means. What is not shown to be above chance, saw test labels, or saw the
    measured pictures while it was fitted, is marked.

    Example: `vlp tune table runs/out/tune/scenes --format latex`
    """
    from eval.tuning_board import read_boards, read_refused
    from eval.tuning_table import as_text

    typer.echo(as_text(read_boards(places), format), nl=False)
    for sentence in read_refused(places):
        typer.echo(sentence, err=True)
