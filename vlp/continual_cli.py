"""`vlp continual`: train on one domain after another, by several methods, and say what was forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from eval.continual import Course
    from vlp.continual import Continual

app = typer.Typer(help="Train on domains in sequence.", no_args_is_help=True)
WIDTH = 100  # columns that the table of arms needs, also where nobody looks at a terminal


@app.command("continual")
def continual_command(
    file: Annotated[Path, typer.Argument(help="YAML file of the sequence, e.g. configs/continual/scenes.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value with dotted keys, e.g. data=FOLDER run.optim.lr=1e-3")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="only this method (may be given several times)")] = None,
) -> None:
    """Train on the domains of FILE one after another, by each method in it, and measure all domains after each.

    Every domain is an ordinary run in OUT/NAME/ARM/1-DOMAIN with its own report; 0-start holds the scores of the
    starting model. Started again, what is done is skipped and what was cut short goes on. `continual.json`, `heat.png`
    and `report.html` of each arm, and of all arms together in OUT/NAME, say what was learned, kept and passed on.

    Methods (`arms`) are settings: `{}` is plain fine-tuning, `replay: 0.3` mixes in earlier domains, `joint: true`
    trains on all at once, `later: {losses: ..., companions: ...}` holds from the second domain on, where "{previous}"
    is the run before. docs/continual.md has more.

    Example: `vlp continual configs/continual/scenes.yaml --arm finetune --arm ctp run.seed=1`
    """
    from vlp import config, dist
    from vlp.continual import Continual, plan
    from vlp.sequence import train

    continual = config.load(Continual, file, overrides or [])
    chosen = list(dict.fromkeys(arm or continual.arms))
    plans = {name: plan(continual, name) for name in chosen}
    judge = _judge(continual)
    for name, runs in plans.items():
        train(runs, judge, after=lambda name=name: _write_arm(continual, name))  # type: ignore[misc]
        if dist.is_main():
            for run in runs:
                _write_run(run.folder)
    if dist.is_main():
        typer.echo(str(_write_all(continual)))


def _judge(continual: Continual) -> Any:
    from eval.forgetting import Asked, Judge
    from eval.suite import load_suite
    from vlp.continual import filled

    words = {"data": continual.data}
    suites = []
    for plan in continual.evals:
        overrides = [f"{key}={value}" for key, value in filled(plan.overrides, words).items()]
        suites.append(load_suite(Path(plan.suite), overrides))
    return Judge([Asked(d.name, d.test or d.name, d.metrics) for d in continual.domains], suites)


def _write_run(folder: Path) -> None:
    from vlp.report import write_report

    write_report(folder)


def _course(continual: Continual, arm: str) -> Course | None:
    """What is there of an arm."""
    from eval.continual import read
    from vlp.continual import START

    joint = continual.arms[arm].joint
    names = ["1-joint"] if joint else [f"{i}-{domain.name}" for i, domain in enumerate(continual.domains, start=1)]
    domains = [domain.name for domain in continual.domains]
    return read(continual.folder / arm, arm=arm, stages=[START, *names], domains=domains, joint=joint)


def _write_arm(continual: Continual, arm: str) -> None:
    """`continual.json`, `heat.png` and `report.html` of an arm, as far as it has come."""
    from eval.continual import write
    from vlp import dist
    from vlp.report.continual import heat_map, write_page

    course = _course(continual, arm) if dist.is_main() else None
    if course is None:
        return
    folder = continual.folder / arm
    result = write(course, folder)
    (folder / "heat.png").write_bytes(heat_map([result]))
    write_page([result], folder / "report.html", title=f"{continual.name}: {arm}")


def _write_all(continual: Continual) -> Path:
    """The page of all arms that came to their end, and their table on the console."""
    from eval.continual import differences, verdict
    from vlp.log import console
    from vlp.report.continual import heat_map, shown, write_page

    found = [course for arm in continual.arms if (course := _course(continual, arm)) is not None and course.whole]
    results = [course.to_json() for course in found]
    rows = [
        (course.arm, name, shown(value, interval, sign=True), verdict(name, interval))
        for course in found[1:]
        for name, (value, interval) in differences(course, found[0]).items()
    ]
    Console(stderr=True, width=max(console.width, WIDTH)).print(_table(results, rows))
    (continual.folder / "heat.png").write_bytes(heat_map(results))
    return write_page(results, continual.folder / "report.html", title=continual.name, rows=rows)


def _table(results: list[dict[str, Any]], rows: list[tuple[str, str, str, str]]) -> Table:
    """Every arm's scores and measures after its last stage, and how the measures differ from the first arm's."""
    from vlp.report.continual import shown

    apart = {(arm, name): (difference, says) for arm, name, difference, says in rows}
    table = Table(title="after the last domain, in percent (95 % interval)", title_justify="left", box=SIMPLE)
    for heading in ("", "value", f"against {results[0]['arm']}", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for result in results:
        table.add_section()
        table.add_row(f"[bold]{result['arm']}")
        last = zip(result["domains"], result["matrix"][-1], result["intervals"][-1], result["chance"], strict=True)
        for domain, value, interval, chance in last:
            table.add_row(
                f"  {domain}", shown(value, interval), "", "" if chance is None else f"chance {100 * chance:.2f}"
            )
        for name, value in result["measures"].items():
            table.add_row(f"  {name}", shown(value, result["ci95"][name]), *apart.get((result["arm"], name), ("", "")))
    return table
