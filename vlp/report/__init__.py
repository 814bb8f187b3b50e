"""One page about a run: `write_report(run_folder)` makes `report.html`, which needs nothing beside itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlp.report import (
    alignment,
    anomaly,
    classes,
    corruptions,
    few_shot,
    grids,
    multilabel,
    overview,
    progress,
    provenance,
    reliability,
    results,
    segmentation,
    selection,
)
from vlp.report.page import Html, document, figure, fold, section, tag
from vlp.report.read import Artefacts, RunFolder, read_run

__all__ = ["write_report"]

OPEN = 4  # data sets of each kind whose sections are not folded away
_KINDS: dict[str, Callable[[Artefacts, grids.Thumbnails], Html]] = {
    "Compositional tests": selection.compositional,
    "What queries find": grids.retrieval,
    "What words look at": lambda artefacts, _: alignment.grids(artefacts),
    "Classes": classes.classes,
    "Labels": multilabel.multilabel,
    "Anomalies": anomaly.anomalies,
    "Segmentation": segmentation.segmentation,
    "Corrupted pictures": corruptions.corruptions,
}


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
    page = _Page(run)
    latest, trained = run.latest, bool(run.steps or run.config)
    return document(
        f"vlp: {run.name}",
        results.header(run.name, latest, _sentence(run)),
        overview.overview(latest),
        results.metrics(latest, run.results),
        progress.training(run.steps) if trained else None,
        progress.measured(run.results),
        *page.by_data_set(),
        page.figures("How sure, and how often right", reliability.diagrams, note=reliability.NOTE),
        page.figures("From few pictures", few_shot.curves, note=few_shot.NOTE, class_="charts two"),
        progress.seconds(run.steps, run.results) if trained else None,
        provenance.skipped(run.skips, run.artefacts),
        provenance.provenance(run),
        page.remarks(),
    )


class _Page:
    """The parts about single data sets; what could not be drawn is kept for the remarks."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.thumbnails = grids.Thumbnails()
        self.faults: list[str] = []

    def by_data_set(self) -> Iterator[Html]:
        """Sections by kind; of each kind those of some data sets, and the others folded away."""
        made: dict[str, list[tuple[str, Html]]] = {}
        for place, artefacts in enumerate(self.run.artefacts):
            self.thumbnails.share(len(self.run.artefacts) - place)
            for kind, draw in _KINDS.items():
                if drawn := self._drawn(kind, artefacts, draw, self.thumbnails):
                    made.setdefault(kind, []).append((artefacts.name, drawn))
        for kind in _KINDS:
            shown = made.get(kind, [])
            yield from (drawn for _, drawn in shown[:OPEN])
            if more := shown[OPEN:]:
                title = f"{kind}: {len(more)} more data sets, {', '.join(name for name, _ in more)}"
                yield tag("section", fold(title, *(drawn for _, drawn in more)))

    def figures(self, title: str, draw: Callable[[Artefacts], Html], *, note: str, class_: str = "charts") -> Html:
        """One section with a figure a data set."""
        drawn = [self._drawn(title, artefacts, draw) for artefacts in self.run.artefacts]
        return section(title, tag("div", *drawn, class_=class_), note=note) if any(drawn) else Html("")

    def remarks(self) -> Html:
        """What this page does not show, so that nothing is left out in silence."""
        torn = self.run.torn.items()
        lines = [f"{name}: {count} unreadable line(s), torn by a kill, were passed over." for name, count in torn]
        lines += self.faults
        if self.thumbnails.left_out:
            lines.append(f"{self.thumbnails.left_out} pictures were left out to keep the page small.")
        return tag("section", *(tag("p", line, class_="note") for line in lines)) if lines else Html("")

    def _drawn(self, kind: str, artefacts: Artefacts, draw: Callable[..., Html], *more: Any) -> Html:
        """The part, or nothing and a remark where a file is not what an evaluation leaves."""
        try:
            return draw(artefacts, *more)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            self.faults.append(
                f'{artefacts.name}: "{kind}" was left out, since a file in eval/{artefacts.folder.name} is not as '
                f"`vlp eval` writes it ({type(error).__name__}: {error}); measure again."
            )
            return Html("")


def _sentence(run: RunFolder) -> str:
    if not run.steps and run.latest:
        sets, tasks = (len({str(record.get(key)) for record in run.latest}) for key in ("dataset", "task"))
        return f"Measured on {sets} data sets, by {tasks} tasks; no training step was recorded here."
    if not run.steps:
        return "No training step was recorded."
    last = run.steps[-1]
    samples = f" and {figure(int(last['samples']))} samples" if "samples" in last else ""
    return f"Trained for {figure(int(last['step']))} steps{samples}."
