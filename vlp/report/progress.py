"""The course of the run: curves of the training, measures over steps, seconds by stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlp.report.curves import Line, Points, chart, smooth
from vlp.report.page import Html, duration, figure, section, table, tag

Record = Mapping[str, Any]
Value = Callable[[Record], Any]
_SHOWN = {  # the measures drawn for a task that has them, with short names
    "acc1": "accuracy",
    "mean_per_class_recall": "per class",
    "image_retrieval_recall@10": "R@10 to image",
    "text_retrieval_recall@10": "R@10 to text",
    "rankme_image": "RankMe, image",
    "rankme_text": "RankMe, text",
}


def training(steps: Sequence[Record]) -> Html:
    """The curves of metrics.jsonl; says so when there is no record yet."""
    if not steps:
        return section(
            "Training", tag("p", "No step was recorded yet (metrics.jsonl is missing or empty).", class_="note")
        )
    loss = series(steps, lambda r: r.get("loss"))
    main = chart(
        "Loss", [Line("raw", loss, faint=True), Line("smoothed", smooth(loss))], unit="raw and smoothed", size="wide"
    )
    return section(
        "Training", tag("div", main, *_terms(steps), *_small(steps), class_="charts"), note=_note(steps, loss)
    )


def series(steps: Sequence[Record], value: Value) -> Points:
    """(step, value) of each record that has a finite number there; "nan" and "inf" are left out, not drawn as 0."""
    pairs = [(float(record["step"]), number(value(record))) for record in steps]
    return [(x, y) for x, y in pairs if y is not None]


def number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _note(steps: Sequence[Record], loss: Points) -> str:
    last = steps[-1]
    parts = [f"{figure(int(last['step']))} steps"]
    if number(last.get("samples")) is not None:
        parts.append(f"{figure(int(last['samples']))} samples")
    if (epoch := number(last.get("epoch"))) is not None:
        parts.append(f"{figure(epoch, 3)} epochs")
    text = f"{', '.join(parts)}; {figure(len(steps))} records."
    if loss:
        text += f" Loss {figure(loss[0][1])} at first, {figure(smooth(loss)[-1][1])} at the end (smoothed)."
    if left_out := sum("loss" in record for record in steps) - len(loss):
        text += f" {left_out} records have a loss that is not finite and are not drawn."
    return text


def _terms(steps: Sequence[Record]) -> list[Html]:
    names = list(dict.fromkeys(name for record in steps for name in (record.get("terms") or {})))
    if len(names) < 2:  # one term is the loss itself
        return []
    points = {name: series(steps, lambda r, name=name: (r.get("terms") or {}).get(name)) for name in names}  # type: ignore[misc]
    return [
        chart(name, [Line("", line, faint=True), Line(name, smooth(line))], unit="term of the loss")
        for name, line in points.items()
    ]


def _small(steps: Sequence[Record]) -> list[Html]:
    rate = series(steps, lambda r: r.get("lr"))
    scale = series(steps, lambda r: r.get("scale"))
    speed = series(steps, lambda r: r.get("samples_per_s"))
    wait = [(x, 100 * y) for x, y in series(steps, lambda r: r.get("data_wait"))]
    norm = series(steps, lambda r: r.get("grad_norm"))
    return [
        chart("Learning rate", [Line("", rate)], zero=True),
        chart("Logit scale", [Line("", scale)], unit="1 / temperature"),
        chart("Throughput", [Line("raw", speed, faint=True), Line("", smooth(speed))], unit="samples/s", zero=True),
        chart(
            "Waiting for data", [Line("raw", wait, faint=True), Line("", smooth(wait))], unit="% of the time", zero=True
        ),
        chart("Gradient norm", [Line("raw", norm, faint=True), Line("", smooth(norm))], zero=True),
    ]


def measured(records: Sequence[Record]) -> Html:
    """Measures over steps for every data set and task that was evaluated at two steps or more."""
    groups: dict[tuple[str, str], dict[str, Points]] = {}
    for record in records:
        step = number(record.get("step"))
        if step is None:
            continue
        task = str(record.get("task")) + (f", {record['prefix']} prefix" if record.get("prefix") else "")
        task += "" if record.get("head") in (None, "global") else f", by {record['head']}"
        lines = groups.setdefault((str(record.get("dataset")), task), {})
        for name, value in (record.get("metrics") or {}).items():
            if (found := number(value)) is not None:
                lines.setdefault(name, []).append((step, found))
    charts = [_over_steps(key, lines) for key, lines in groups.items()]
    return section("Measures over steps", tag("div", *charts, class_="charts two")) if any(charts) else Html("")


def _over_steps(key: tuple[str, str], lines: Mapping[str, Points]) -> Html:
    several = {name: sorted(dict(points).items()) for name, points in lines.items() if len(dict(points)) > 1}
    names = [name for name in _SHOWN if name in several] or list(several)[:1]
    shown = [Line(_SHOWN.get(name, name), several[name], dots=True) for name in names]
    return chart(key[0], shown, unit=key[1].replace("_", " "), size="middle")


def seconds(steps: Sequence[Record], records: Sequence[Record]) -> Html:
    """Where the time went: the stages that the trainer metered, and each evaluation."""
    stages = stage_seconds(steps)
    total = sum(stages.values())
    spent = [
        [name, duration(value), f"{100 * value / total:.1f} %", _meter(value / total)]
        for name, value in sorted(stages.items(), key=lambda item: -item[1])
    ]
    evals = [
        [r.get("dataset", ""), str(r.get("task", "")).replace("_", " "), figure(r.get("step")), duration(value)]
        for r in records
        if (value := number(r.get("seconds"))) is not None
    ]
    parts = []
    if spent and total > 0:
        rows = [*spent, [tag("b", "together"), tag("b", duration(total)), "", ""]]
        parts.append(tag("div", table(["Stage", "Time", "Share", ""], rows, numeric=(1, 2))))
    if evals:
        parts.append(tag("div", table(["Evaluated", "Task", "Step", "Time"], evals, numeric=(2, 3))))
    wall = number(steps[-1].get("seconds")) if steps else None
    note = f"Metered up to the last record, {duration(wall)} after the start." if wall is not None else None
    return section("Where the time went", tag("div", *parts, class_="pair") if parts else None, note=note)


def stage_seconds(steps: Sequence[Record]) -> dict[str, float]:
    """Seconds by stage over all processes of the run: `stages` counts up, and from zero again after a resume."""
    totals: dict[str, float] = {}
    before: dict[str, float] = {}
    for record in steps:
        stages = record.get("stages")
        for name, value in stages.items() if isinstance(stages, Mapping) else ():
            now, last = number(value) or 0.0, before.get(name, 0.0)
            totals[name] = totals.get(name, 0.0) + (now - last if now >= last else now)
            before[name] = now
    return totals


def _meter(share: float) -> Html:
    return tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="meter")
