"""One page about a run: `write_report(run_folder)` makes `report.html`, which needs nothing beside itself."""

from __future__ import annotations

import os
from pathlib import Path

from vlp.report import alignment, grids, progress, provenance, results
from vlp.report.page import Html, document, figure, tag
from vlp.report.read import RunFolder, by_heads, read_run

__all__ = ["write_report"]


def write_report(run_folder: str | Path) -> Path:
    """The path of the page, `run_folder/report.html`, written whole; raises FileNotFoundError if there is no run."""
    folder = Path(run_folder)
    page = render(read_run(folder))
    out, part = folder / "report.html", folder / ".report.html.part"
    part.write_text(page, encoding="utf-8")
    os.replace(part, out)
    return out


def render(run: RunFolder) -> str:
    """The HTML of the page."""
    thumbnails = grids.Thumbnails()
    latest = run.latest
    return document(
        f"vlp: {run.name}",
        results.header(run.name, latest, _sentence(run)),
        results.metrics(latest, run.results),
        progress.training(run.steps),
        progress.measured(run.results),
        *(grids.retrieval(artefacts, thumbnails) for artefacts in run.artefacts),
        *(grids.retrieval(shown, thumbnails) for artefacts in run.artefacts for shown in by_heads(artefacts)),
        *(alignment.grids(artefacts) for artefacts in run.artefacts),
        *(grids.confusion(artefacts, thumbnails) for artefacts in run.artefacts),
        progress.seconds(run.steps, run.results),
        provenance.skipped(run.skips, latest),
        provenance.provenance(run),
        _remarks(run, thumbnails),
    )


def _sentence(run: RunFolder) -> str:
    if not run.steps:
        return "No training step was recorded."
    last = run.steps[-1]
    samples = f" and {figure(int(last['samples']))} samples" if "samples" in last else ""
    return f"Trained for {figure(int(last['step']))} steps{samples}."


def _remarks(run: RunFolder, thumbnails: grids.Thumbnails) -> Html:
    """What this page does not show, so that nothing is left out in silence."""
    lines = [
        f"{name}: {count} unreadable line(s), torn by a kill, were passed over." for name, count in run.torn.items()
    ]
    if thumbnails.left_out:
        lines.append(f"{thumbnails.left_out} pictures were left out to keep the page small.")
    return tag("section", *(tag("p", line, class_="note") for line in lines)) if lines else Html("")
