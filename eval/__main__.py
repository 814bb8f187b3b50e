"""`python -m eval CHECKPOINT SUITE.yaml`, also mounted as `vlp eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
compare_app = typer.Typer()  # `vlp compare`; apart, so that `python -m eval` stays the one command


@app.command("eval", no_args_is_help=True)
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="run folder, model folder, Hugging Face folder or open_clip name")],
    suite: Annotated[Path, typer.Argument(help="YAML file of benchmarks, e.g. configs/eval/scenes.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. data=FOLDER benchmarks.0.block=64")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="the same as an override, key=value")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of results.jsonl; default: the run, or runs/out/eval/NAME")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="weights file of an open_clip name")] = None,
    batch_size: Annotated[int, typer.Option(help="pictures encoded at once")] = 64,
    workers: Annotated[int, typer.Option(help="processes that decode pictures")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "fp32",
    cache: Annotated[Path | None, typer.Option(help="folder that keeps features for the next time")] = None,
) -> None:
    """Measure CHECKPOINT on the benchmarks of SUITE; one record each in OUT/results.jsonl, examples in OUT/eval."""
    from eval.suite import load_suite, run_suite
    from vlp.embed import Encoder
    from vlp.trained import load

    plan = load_suite(suite, [*(overrides or []), *(set_ or [])])
    encoder = Encoder(
        load(checkpoint, weights=weights),
        device=_device(device),
        batch_size=batch_size,
        workers=workers,
        precision=_precision(precision),
        cache=cache,
    )
    name = Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint
    folder = out or default_out(checkpoint, name)
    run_suite(encoder, plan, out=folder, model_name=name, pretrained=weights.name if weights else "")
    typer.echo(str(folder / "results.jsonl"))


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
    baseline: Annotated[str, typer.Option(help="name of the arm that the others are compared with")] = "clip",
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


def _device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _precision(precision: str) -> Literal["fp32", "bf16", "fp16"]:
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f'--precision "{precision}"; known: fp32, bf16, fp16')
    return precision  # type: ignore[return-value]


def main() -> None:
    """Faults that a user can mend are a message, not a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
