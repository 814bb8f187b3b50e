"""The command line: `vlp COMMAND --help` teaches each one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

app = typer.Typer(
    name="vlp",
    help="Contrastive vision-language pretraining and what its users do next: train, measure, embed, search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
tokenizer_app = typer.Typer(help="Make a tokenizer from the captions of shards.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")


def _say_version(asked: bool) -> None:
    """Print what one would write into a report of a fault, and leave."""
    if asked:
        from vlp import __version__
        from vlp.log import host_facts

        facts = host_facts()
        commit = "" if facts["commit"] == "unknown" else f" (commit {facts['commit'][:12]})"
        typer.echo(f"vlp {__version__}{commit}, torch {facts['versions']['torch']}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="say the version, the commit and torch's"),
    ] = False,
) -> None:
    """Options that stand before any command."""


Config = Annotated[Path, typer.Argument(help="YAML file of the run, e.g. configs/train/scenes.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value with dotted keys, e.g. optim.lr=1e-3 losses.0.name=sigmoid")
]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="train a dozen steps of a spare copy and write where their time went")
    ] = False,
) -> None:
    """Train (or go on training) the run in CONFIG; results, checkpoints and report.html lie in its folder.

    Started again with the same name, the run goes on from its newest valid checkpoint, in the middle of an epoch.
    For several processes: `torchrun --nproc-per-node 2 -m vlp.cli train CONFIG`. SIGTERM saves and leaves with code 75.
    """
    from vlp import dist
    from vlp.report import write_report
    from vlp.trainer import Evaluator, Trainer

    run = _run(config, overrides)
    if profile:
        return _profile(run)
    trainer = Trainer(run, evaluators=[Evaluator(plan.every, _measure(run, plan), plan.weights) for plan in run.evals])
    trainer.train()
    if dist.is_main():
        typer.echo(str(write_report(run.folder)))


def _profile(run: Any) -> None:
    from vlp import dist
    from vlp.profiling import profile_run

    folder = profile_run(run)
    if dist.is_main():
        typer.echo((folder / "profile.md").read_text(encoding="utf-8"))
        typer.echo(f"{folder / 'profile.md'}\n{folder / 'trace.json'}")


def _run(config: Path, overrides: list[str] | None) -> Any:
    from vlp import config as files
    from vlp.run import Run

    return files.load(Run, config, overrides or [])


def _measure(run: Any, plan: Any) -> Any:
    """The function (dual, step) that runs the plan's suite and writes its records into the run's folder."""
    from eval.suite import load_suite, run_suite
    from vlp.embed import Encoder

    suite = load_suite(Path(plan.suite), [f"{key}={value}" for key, value in plan.overrides.items()])

    name = run.name if plan.weights == "model" else f"{run.name}-{plan.weights}"

    def measure(dual: Any, step: int) -> Mapping[str, float]:
        encoder = Encoder(dual, device=str(next(dual.parameters()).device), quiet=True)
        records = run_suite(encoder, suite, out=run.folder, step=step, model_name=name)
        return {f"{_told(r)}/{name}": value for r in records for name, value in r.metrics.items()}

    return measure


def _told(record: Any) -> str:
    """The data set, and what sets a record apart from others of it."""
    return "/".join([record.dataset, *(said.removeprefix("by ").replace(" ", "_") for said in record.apart)])


@app.command()
def report(run: Annotated[Path, typer.Argument(help="folder of a run, e.g. runs/out/demo")]) -> None:
    """Write RUN/report.html: curves, metrics with intervals, retrieved examples, seconds per stage, provenance."""
    from vlp.report import write_report

    typer.echo(str(write_report(run)))


@app.command("ensemble", no_args_is_help=True)
def ensemble_of(
    models: Annotated[list[str], typer.Argument(help="runs or model folders, two or more")],
    out: Annotated[Path, typer.Option(help="folder of the ensemble, not there yet")],
) -> None:
    """Put models side by side as one: a cosine is the mean of theirs. They read pictures and texts alike.

    Runs that differ in their seed alone disagree by chance, and their mean does so less. The folder is a model for
    `vlp eval`, `embed`, `search` and `vlp.load`, K times as slow and wide as one.

    Example: `vlp ensemble runs/out/a-seed0 runs/out/a-seed1 runs/out/a-seed2 --out runs/out/a-three`
    """
    from vlp.models import ensemble, pretrained

    ensemble.save([pretrained.load(model) for model in models], out, names=models)
    typer.echo(str(out))


@app.command()
def explain(
    checkpoint: Annotated[str, typer.Argument(help="run folder, model folder, Hugging Face folder or open_clip name")],
    image: Annotated[Path, typer.Argument(help="picture")],
    caption: Annotated[str, typer.Argument(help='words about it, e.g. "a red circle above a blue square"')],
    out: Annotated[Path | None, typer.Option(help="picture to write; default: explain.png here")] = None,
    html: Annotated[
        bool, typer.Option("--html", help="also write a page beside it, whose letters know every script")
    ] = False,
    weights: Annotated[Path | None, typer.Option(help="weights file of an open_clip name")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda when there is one")] = None,
) -> None:
    """Draw which patches of IMAGE go with which words of CAPTION, and print the words' scores.

    For each word a map of the cosine of its tokens with every patch, for the caption that of the pooled text, and for
    each patch the word that fits it best; beside them the similarity of the pooled features and the token-wise ones of
    both directions (FILIP). Every tower has tokens, but of our losses only filip compares patches with words: wukong
    compares words with mixtures of the patches, dreamlip patches with whole captions, flair these through projections
    of its own. What the run had is said on the picture.

    Example: `vlp explain runs/out/filip photo.jpg "a red circle above a blue square" --out circle.png`
    """
    from vlp.explained import write_explanation

    drawn = write_explanation(
        checkpoint, image, caption, out or Path("explain.png"), html=html, weights=weights, device=device
    )
    grid = Grid("word", "score", "lowest", "highest")
    for word in drawn.alignment.words:
        values = (word.score, float(word.map.min()), float(word.map.max()))
        grid.add_row(escape(word.text), *(f"{value:.3f}" for value in values))
    Console().print(grid)
    for line in (*drawn.remarks, *map(str, drawn.files)):
        typer.echo(line)


@app.command()
def doctor(config: Config, overrides: Overrides = None) -> None:
    """Look at a run before it starts: shards, streams, first batch as a picture, cut captions, speed, memory, disk."""
    from vlp.doctor import examine

    if not examine(_run(config, overrides), console=Console()):
        raise typer.Exit(1)


@app.command()
def losses(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="losses whose fields to show; all: every one")
    ] = None,
) -> None:
    """List the losses and what each needs of the model; with a NAME its fields, their defaults and what they mean.

    Example: `vlp losses filip`, or `vlp losses all`
    """
    from vlp.losses.listing import describe_losses, list_losses

    typer.echo(describe_losses(names) if names else list_losses())


@tokenizer_app.command("train")
def tokenizer_train(
    shards: Annotated[str, typer.Argument(help="shards to read captions from: glob, braces or a::b list")],
    out: Annotated[Path, typer.Argument(help="file to write, e.g. runs/out/words.model")],
    vocab_size: Annotated[int, typer.Option(help="pieces in the vocabulary, bytes and characters included")] = 8000,
    fields: Annotated[
        str, typer.Option(help="caption fields, comma between them; all texts of the first found")
    ] = "caption",
    kind: Annotated[str, typer.Option(help="unigram or bpe")] = "unigram",
    context: Annotated[int, typer.Option(help="token positions of the text tower it is for")] = 77,
    limit: Annotated[int, typer.Option(help="samples to read; 0 reads all")] = 0,
) -> None:
    """Train a sentencepiece tokenizer on the captions of given shards.

    The lines printed at the end are the `model.tokenizer` block of a run that uses it.
    """
    from vlp import config as files
    from vlp.data.texts import captions_of
    from vlp.text import TOKENIZERS
    from vlp.text.train import train_sentencepiece

    if kind not in ("unigram", "bpe"):
        raise ValueError(f'--kind is unigram or bpe, not "{kind}"')
    texts = captions_of(shards, fields=tuple(fields.split(",")), limit=limit)
    part = train_sentencepiece(texts, out, vocab_size=vocab_size, kind=kind, context=context)  # type: ignore[arg-type]
    typer.echo(files.to_yaml({"model": {"tokenizer": TOKENIZERS.dump(part)}}), nl=False)


def _mount() -> None:
    """Commands that live with their packages."""
    from data_tools.__main__ import app as data_app
    from eval.__main__ import app as eval_app
    from eval.__main__ import compare_app
    from vlp.continual_cli import app as continual_app
    from vlp.search_cli import app as search_app
    from vlp.tune_cli import app as tune_app

    app.add_typer(data_app, name="data", help="Make, check, describe and filter shards.")
    app.add_typer(eval_app, name="eval")
    app.add_typer(tune_app, name="tune")
    for sub in (compare_app, search_app, continual_app):
        app.registered_commands.extend(sub.registered_commands)


def main(args: list[str] | None = None) -> None:
    """Run the command line; faults a user can mend are one red message, not a traceback (VLP_TRACE=1 shows it)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _mount()
    try:
        app(args)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        if os.environ.get("VLP_TRACE"):
            raise
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def run_train() -> None:
    """`python train.py CONFIG key=value ...`."""
    main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    main()
