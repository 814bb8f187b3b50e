"""A sequence of domains as pictures: scores by stage and domain as a heat map, and a page with methods side by side."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlp.report.page import DASH, Html, document, join, section, table, tag

Result = Mapping[str, Any]  # continual.json of an arm
MEASURES = {
    "average": "mean score over the domains seen, after the last one",
    "learned": "mean score of each domain right after training on it",
    "forgetting": "mean fall from a domain's best earlier score to its last; lower is better",
    "backward": "mean change of a domain's score by what came after it",
    "forward": "mean gain on a domain by what came before it, over the starting model",
}


def write_page(results: Sequence[Result], path: Path, *, title: str, rows: Sequence[Sequence[str]] = ()) -> Path:
    """The page of one arm or of several; `rows`: (arm, measure, difference, interval, verdict) against the first."""
    maps = [_arm(result) for result in results]
    head = tag("header", tag("h1", title), tag("p", _sentence(results[0]), class_="sub"))
    page = document(title, head, _measures(results), _differences(rows), *maps)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def heat_map(results: Sequence[Result]) -> bytes:
    """PNG with a matrix an arm, all of one scale: a row a stage, a column a domain; framed where a domain was new."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    domains = results[0]["domains"]
    height = 1.1 + 0.44 * max(len(result["stages"]) for result in results)
    size = (len(results) * (1.6 + 0.95 * len(domains)) + 0.6, height + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    top = 100 * max(value for result in results for row in result["matrix"] for value in row) or 1.0
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        percent = [[100 * value for value in row] for row in result["matrix"]]
        drawn = axes.imshow(percent, vmin=0, vmax=top, cmap="viridis", aspect="auto")
        _label(axes, result, top)
    figure.colorbar(drawn, ax=figure.axes, shrink=0.85, label="score, percent")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _label(axes: Any, result: Result, top: float) -> None:
    from matplotlib.patches import Rectangle

    axes.set_title(result["arm"])
    axes.set_xticks(range(len(result["domains"])), result["domains"], rotation=20, ha="right")
    axes.set_yticks(range(len(result["stages"])), list(map(_when, result["stages"])))
    for row, values in enumerate(result["matrix"]):
        for column, value in enumerate(values):
            colour = "black" if 100 * value > 0.55 * top else "white"
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=9)
            if row == column + 1 and not result["joint"]:
                axes.add_patch(
                    Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor="white", lw=1.5)
                )


def shown(value: float, interval: Sequence[float] | None, *, sign: bool = False) -> str:
    """A share as a percentage with its 95 % interval."""
    form = "+.2f" if sign else ".2f"
    text = format(100 * value, form)
    return text if interval is None else f"{text} ({100 * interval[0]:{form}} to {100 * interval[1]:{form}})"


def _when(stage: str) -> str:
    number, _, name = stage.partition("-")
    return "start" if number == "0" else f"after {name}"


def _sentence(result: Result) -> str:
    return f"{len(result['domains'])} domains in turn: {', '.join(result['domains'])}. Scores in percent."


def _measures(results: Sequence[Result]) -> Html:
    names = [name for name in MEASURES if any(name in result["measures"] for result in results)]
    rows = [[result["arm"], *(_cell(result, name) for name in names)] for result in results]
    words = tag("ul", *(tag("li", tag("b", name), f": {MEASURES[name]}") for name in names))
    note = "With 95 % bootstrap intervals over test pictures."
    return section("Measures", table(["", *names], rows, numeric=range(1, len(names) + 1)), words, note=note)


def _cell(result: Result, name: str) -> str:
    value = result["measures"].get(name)
    return DASH if value is None else shown(value, result["ci95"].get(name))


def _differences(rows: Sequence[Sequence[str]]) -> Html:
    if not rows:
        return Html("")
    note = "The same pictures are drawn for both; seeds are not, so a difference may still be one of this seed."
    head = ["", "measure", "difference", "what it says"]
    return section("Against the first", table(head, rows, numeric=(2,)), note=note)


def _arm(result: Result) -> Html:
    encoded = base64.b64encode(heat_map([result])).decode()
    picture = tag(
        "img", src=f"data:image/png;base64,{encoded}", alt=f"scores of {result['arm']}", style="max-width:100%"
    )
    rows = [
        [_when(stage), *(shown(value, pair) for value, pair in zip(values, pairs, strict=True))]
        for stage, values, pairs in zip(result["stages"], result["matrix"], result["intervals"], strict=True)
    ]
    rows.append(["chance", *(DASH if value is None else f"{100 * value:.2f}" for value in result["chance"])])
    numbers = table(["", *result["domains"]], rows, numeric=range(1, len(result["domains"]) + 1))
    note = "A row a stage, a column a domain; framed where a domain was just trained on."
    return section(result["arm"], join([picture, numbers]), note=note)
