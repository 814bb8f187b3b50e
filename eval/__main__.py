"""`python -m eval MODEL SUITE.yaml`, also mounted as `vlp eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class MeasuresByDefault(TyperGroup):
    """`vlp eval MODEL SUITE` is `vlp eval run MODEL SUITE`: what is no command of the group is what to measure."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=MeasuresByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Measure models on suites of benchmarks: `vlp eval MODEL... SUITE.yaml` is short for `vlp eval run`.",
)
compare_app = typer.Typer()  # `vlp compare`; apart, so that it stands beside `vlp eval`


@app.command("run", no_args_is_help=True)
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... SUITE.yaml|PICTURES... [KEY=VALUE...]",
            help="run, model or Hugging Face folders, open_clip names; suites or folders of pictures; key=value",
        ),
    ],
    set_: Annotated[list[str] | None, typer.Option("--set", help="the same as an override, key=value")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of results.jsonl; default: the run, or runs/out/eval/NAME; of several: OUT/NAME"),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="weights file of an open_clip name")] = None,
    batch_size: Annotated[int, typer.Option(help="pictures encoded at once")] = 64,
    workers: Annotated[int, typer.Option(help="processes that decode pictures")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "fp32",
    resizer: Annotated[str, typer.Option(help="torch, or pillow: open_clip's pixels bit for bit, slower")] = "torch",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="folder that keeps features for the next time; default: features under $VLP_CACHE, else ~/.cache/vlp"
        ),
    ] = None,
    cache_dtype: Annotated[str, typer.Option(help="fp16, or fp32 for features to the last bit")] = "fp16",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="keep no features, and read none")] = False,
    again: Annotated[bool, typer.Option("--again", help="measure also what has been measured before")] = False,
) -> None:
    """Measure models on the benchmarks of suites; records in results.jsonl, examples beside it, a report.

    What has a record of the same weights, settings, data and code is not measured again: an interrupted suite goes on.
    For several processes: `torchrun --nproc-per-node 2 -m eval MODEL SUITE.yaml`.

    Example: `vlp eval runs/out/a runs/out/b configs/eval/scenes.yaml data=FOLDER`
    """
    from eval.processes import device_of, processes
    from eval.words import own_names, sort_words
    from vlp.data.index import cache_folder
    from vlp.embed import Encoder

    asked = sort_words(words)
    if weights and len(asked.models) > 1:
        raise ValueError(f"--weights is of one open_clip name, and {len(asked.models)} models were given")
    plans = asked.plans(set_ or [])
    with processes():
        for model, name in zip(asked.models, own_names(asked.models)):
            encoder = Encoder(
                _loaded(model, weights, _one_of("--resizer", resizer, ("torch", "pillow"))),
                device=device_of(device),
                batch_size=batch_size,
                workers=workers,
                precision=_one_of("--precision", precision, ("fp32", "bf16", "fp16")),
                cache=None if no_cache else cache or cache_folder() / "features",
                cache_dtype=_one_of("--cache-dtype", cache_dtype, ("fp32", "fp16")),
            )
            folder = out if out and len(asked.models) == 1 else out / name if out else default_out(model, name)
            _measure(encoder, plans, folder, model_name=name, pretrained=weights.name if weights else "", again=again)


def _measure(encoder: Any, plans: Any, folder: Path, **how: Any) -> None:
    """The suites on one model, then its report."""
    from eval.suite import run_suite
    from vlp import dist
    from vlp.report import write_report

    for plan in plans:
        run_suite(encoder, plan, out=folder, **how)
    if dist.is_main():
        typer.echo(str(folder / "results.jsonl"))
        typer.echo(str(write_report(folder)))


@app.command("check", no_args_is_help=True)
def check(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SUITE.yaml|NAME... [data=FOLDER]", help="suites, or known sets, e.g. imagenet1k"),
    ],
) -> None:
    """Say what of a suite's data is there, and how to get what is not; leaves with 1 if anything is missing.

    Example: `vlp eval check configs/eval/vtab+.yaml data=FOLDER`
    """
    from eval.check import run_check

    raise typer.Exit(run_check(words))


@app.command("table", no_args_is_help=True)
def table(
    places: Annotated[list[Path], typer.Argument(help="results.jsonl files, or folders with some in or below them")],
    format: Annotated[str, typer.Option(help="md, csv or latex")] = "md",
    metric: Annotated[str | None, typer.Option(help="instead of the main metric of each task, e.g. acc5")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="data set to show, or a pattern, e.g. '*-test'; once for each; default: all"),
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals/--no-intervals", help="95 % intervals in md and latex")
    ] = True,
    shift: Annotated[
        str | None,
        typer.Option(help="effective robustness: ORIGINAL:SHIFTED,..., e.g. imagenet1k:imagenetv2,imagenet_sketch"),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="with --shift: model of the line, or a pattern of names; once for each")
    ] = None,
) -> None:
    """Print results of many models as one table: rows are models, columns data sets, the best bold.

    Means are of one measure over all sets shown; --dataset keeps validation sets out of those of tests.
    With --shift instead: how far the accuracy on each shifted set lies above the line of the --baseline models.

    Example: `vlp eval table runs/out --format latex`
    """
    from eval.leaderboard import as_text, notes, read_board
    from eval.shifts import as_text as shift_text
    from eval.shifts import parse_shift, robustness

    how = _one_of("--format", format, ("md", "csv", "latex"))
    board = read_board(places, metric=metric, datasets=dataset or ())
    for note in notes(board):
        typer.echo(note, err=True)
    if shift is None:
        if baseline:
            raise ValueError("--baseline: models of the line of --shift ORIGINAL:SHIFTED,..., which was not given")
        typer.echo(as_text(board, how, intervals=intervals), nl=False)
        return
    found = robustness(board, parse_shift(shift), baseline or ())
    typer.echo(shift_text(board, found, how, intervals=intervals), nl=False)
    for note in (line for effect in found for line in effect.notes()):
        typer.echo(note, err=True)


@app.command("compare", no_args_is_help=True)
def compare_two(
    first: Annotated[Path, typer.Argument(help="results folder of one model, e.g. runs/out/a")],
    second: Annotated[Path, typer.Argument(help="results folder of the other")],
    n_boot: Annotated[int, typer.Option(help="bootstrap resamples")] = 10_000,
) -> None:
    """Compare two models wherever both were measured: paired bootstrap over pictures, and classes that changed most.

    For arms of several seeds there is `vlp compare`.
    """
    from eval.differences import as_text, differences

    found = list(differences(first, second, n_boot=n_boot))
    typer.echo(as_text(found, (first.resolve().name, second.resolve().name)))


@compare_app.command("compare", no_args_is_help=True)
def compare(
    dataset: Annotated[str, typer.Argument(help="name of the data set in the suite, e.g. openstax_figures-test")],
    arms: Annotated[
        list[str], typer.Argument(help="NAME=FOLDERS, one folder a seed; NAME=FOLDERS@tokens for what tokens answered")
    ],
    measure: Annotated[
        str,
        typer.Option(help="recall, or a metric of pointing, caption_negatives or true_false, e.g. pointing_phrase"),
    ] = "recall",
    baseline: Annotated[
        str | None, typer.Option(help="name of the arm that the others are compared with; default: the first")
    ] = None,
    n_boot: Annotated[int, typer.Option(help="bootstrap resamples")] = 10_000,
) -> None:
    """Compare arms on the same queries: paired bootstrap over pictures, and the spread over seeds.

    recall is the mean of R@1, R@5 and R@10 both ways. Where two benchmarks of a data set have one metric, say which, as
    in true_false/accuracy.

    Example: `vlp compare scenes-test 'clip=runs/out/clip-seed*' 'filip=runs/out/filip-seed*@tokens'`
    """
    from eval.compare import as_text, parse_arms
    from eval.compare import compare as compared

    rows = compared(parse_arms(arms), baseline=baseline, dataset=dataset, measure=measure, n_boot=n_boot)
    typer.echo(as_text(rows, measure=measure))


def default_out(checkpoint: str, name: str) -> Path:
    """The run's own folder if the checkpoint is one, else a folder of that name under runs/out/eval."""
    folder = Path(checkpoint)
    is_run = (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file()
    return folder if is_run else Path("runs/out/eval") / name.replace("/", "_")


def _loaded(model: str, weights: Path | None, resizer: str) -> Any:
    """The model, which brings pictures to its size with that resizer."""
    from vlp.trained import load

    dual = load(model, weights=weights)
    dual.transform = dual.transform.model_copy(update={"resizer": resizer})
    return dual


def _one_of(option: str, given: str, known: tuple[str, ...]) -> Any:
    if given not in known:
        raise ValueError(f'{option} "{given}"; known: {", ".join(known)}')
    return given


def main() -> None:
    """Faults that a user can mend are a message, not a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
