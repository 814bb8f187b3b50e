"""A suite: benchmarks in a YAML file, one encode pass per data set, one record per benchmark.

What `run_suite(encoder, suite, out=OUT)` leaves behind, for reports, search and people:

    OUT/results.jsonl            one `eval.record.Record` a line, appended
    OUT/eval/<dataset>/          of each benchmark the latest run on that data set, while its pictures stay the same
                                 (<dataset>-label_prefix/ for texts with that prefix):
      features.safetensors       image [n, D], and text [m, D] where captions were encoded; fp32, unit norm
      items.json                 schema 1, dataset, data (its spec), and columns:
                                 keys, shards, indices [n] (where each picture lies in the source),
                                 captions [m], caption_image [m] (row of the picture that each describes),
                                 labels [n] (class or null), names [C]; null where there are none;
                                 skipped: {reason, shard, key, detail} of every picture that could not be read
      retrieval.json             schema 1, k, num_images, num_texts, and examples:
                                 text_to_image: {caption (row), text, image (row of its picture), rank,
                                                 found [k image rows], scores [k], correct [k bools]}
                                 image_to_text: {image (row), rank, found [k caption rows], texts [k], scores, correct}
      retrieval_<head>.json      the same of a benchmark with `head: tokens` or `conditioned`
      alignment.json             of models trained with tokens: schema 1, pairs of a picture and a caption, see
                                 `vlp.explain.Alignment.to_json`; with image, caption (rows) and picture (base64 JPEG)
      ranks.json                 schema 1, keys, caption_image and the ranks of every query
      ranks_<head>.json          the same of a benchmark with that head
      alignment.json             of models trained with tokens: word-patch similarities of four pairs
      pointing.json, *_hits.json what compositional and pointing benchmarks found, item by item, for `vlp compare`
      linear_probe.json, knn.json, few_shot.json   what probes tried on validation pictures, and what each reached
      few_shot_draws.json        the pictures that few_shot learned from, see `vlp.probe.draw`
      caption_selection.json     accuracy, items, interval and chance by group
      *_examples.json            of compositional benchmarks questions that were answered wrong, see `eval.mistakes`
      corruptions.json           schema 1, severities, clean, accuracy {corruption: [by severity]}, sheet_row, sheet
                                 (base64 PNG); corruptions_tokens.json where tokens score
      segmentation*.json         schema 1, name, iou and pixels by class, overlays [{row, pixel_accuracy, legend, png}]
      prompting_patch.json       threshold, what validation reached, keys and iou by region, histograms of cosines
      confusion.json             schema 1, names, support, recall [C] (null without samples), the most frequent
                                 mistakes, pairs: {true, predicted (classes), count, examples [image rows]}, and the
                                 classes found worst and best: {class, examples: [{row, predicted}]}
      reliability.json           schema 1, bins, and of each bin of the top probability count, confidence and accuracy
                                 (means, null where it is empty); both files end in _tokens.json where tokens score
      multilabel.json            schema 1, names, support, average_precision [C] (null without samples), and the worst
                                 classes, worst: {class, average_precision, missed, false [image rows]}
      label_retrieval.json       schema 1, k, num_images, num_texts, and examples by kind of query (text_to_image,
                                 class_to_image, image_to_image): {query (row of the picture that asks, or null), text,
                                 label, image (row of the best right one), rank, found, scores, correct}
      anomaly.json               schema 1, grid (rows, columns of a map, or null), rows, objects, anomalous, scores [n],
                                 examples: {row, object, anomalous, score, map [patches] or null};
                                 anomaly_reference.json with `normal`
      thumbnails/<row>.jpg       every picture row that the files above name, longest side 160

Files of an adapter other than zero-shot are called after it (confusion-loki.json, zeroshot-loki_hits.json), with the
first digits of its settings' hash where these are not its defaults (confusion-waffle-1a2b3c.json).

Rows count the pictures that could be read; the others are counted by reason in the record's `skips`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from rich.box import SIMPLE
from rich.table import Table

from eval import artefacts, record
from eval.benchmark import BenchmarkPart, Outcome
from eval.data import open_data
from eval.record import Record
from eval.resume import measured, settings_hash
from eval.view import View
from vlp import __version__, config, dist
from vlp.embed import Encoder
from vlp.log import console, host_facts
from vlp.registry import Named, Part

WIDTH = 110  # of a table that goes into a file: what a terminal would cut is whole there
BenchmarkField = Annotated[BenchmarkPart, Named("eval:BENCHMARKS")]


class Suite(Part):
    """Benchmarks by name. Relative paths start at `data`; without it here, or at the folder of the suite's file."""

    name: str
    data: str | None = None  # the folder that holds the data sets: `data=FOLDER` moves a whole suite
    benchmarks: Annotated[tuple[BenchmarkField, ...], Field(min_length=1)]
    folder: str = "."  # of the suite's own file; `load_suite` fills it in

    @model_validator(mode="after")
    def _one_meaning_a_name(self) -> Suite:
        known: dict[str, Any] = {}
        seen: dict[Any, int] = {}
        for number, part in enumerate(self.benchmarks):
            if known.setdefault(part.dataset, part.data) != part.data:
                raise ValueError(f'benchmarks.{number}: dataset "{part.dataset}" stands already for other data')
            first = seen.setdefault((type(part), part.dataset, *part.apart()), number)
            if first != number:
                raise ValueError(
                    f"benchmarks.{number}: its files in eval/{part.dataset} would replace those of benchmarks.{first}, "
                    "which differs in neither head, prefix nor adapter; give one of them another `dataset` name "
                    "(pictures come from the cache of features)"
                )
        return self

    def data_folders(self) -> list[Path]:
        """Where relative paths of data are looked for, in order: nowhere else, lest a like-named folder is measured."""
        here = [Path(), Path(self.folder)]
        return list(dict.fromkeys(place / self.data for place in here)) if self.data else here


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """The suite in a YAML file with `key=value` overrides; ConfigError with dotted paths for what is wrong in it."""
    values = config.apply_overrides({"folder": str(Path(path).parent), **config.read_yaml(path)}, overrides)
    return config.validate(Suite, values, where=str(path))


def run_suite(
    model: Any,
    suite: Suite,
    *,
    out: Path,
    step: int | None = None,
    model_name: str = "dual",
    pretrained: str = "",
    again: bool = True,
) -> list[Record]:
    """One record per benchmark, written to `out` and shown; `model` is a dual encoder or an Encoder.

    again: measure also what `out` has a record of, of the same weights, settings, data and code.

    The data sets are all opened before the first is encoded, so that a missing one costs no time. A picture is encoded
    once, and the seconds of the first benchmark on a data set include it.
    """
    encoder = model if isinstance(model, Encoder) else Encoder(model)
    for part in suite.benchmarks:
        part.prefixed(encoder)  # refused before anything is read
    views = _views(encoder, suite)
    provenance = {
        "model": model_name,
        "pretrained": pretrained,
        "weights_hash": encoder.weights_hash,
        "code_version": f"{__version__}+{host_facts()['commit'][:12]}",
        "step": step,
    }
    records = []
    for dataset in list(views):
        view = views.pop(dataset)  # what it holds goes with it
        parts = [part for part in suite.benchmarks if part.dataset == dataset]
        asked = [settings_hash(part, view) for part in parts]
        kept = None if again else _kept(out, dict.fromkeys(asked, view.opened.records.fingerprint), **provenance)
        if kept is not None:
            if dist.is_main():
                console.print(
                    f"{dataset}: measured before, in {out / 'results.jsonl'}; --again measures it anew", highlight=False
                )
            records += kept
            continue
        outcomes = []
        for part, settings in zip(parts, asked):
            began, reads = time.perf_counter(), view.label_reads.total()
            with part.prefixed(encoder):
                outcomes.append(part.measure(view))
                prefix = getattr(encoder.dual, "prefix_kind", None)
            spent = {
                "seconds": round(time.perf_counter() - began, 3),
                "test_label_reads": view.label_reads.total() - reads,
            }
            records.append(
                make_record(part, view, outcomes[-1], prefix=prefix, settings_hash=settings, **spent, **provenance)
            )
        if dist.is_main():
            _write(out, view, parts, outcomes, records[-len(parts) :])
    if dist.is_main():
        console.print(as_table(records, title=suite.name), width=None if console.is_terminal else WIDTH)
    return records


def _kept(out: Path, settings: dict[str, str], **provenance: Any) -> list[Record] | None:
    """As `measured`, looked up by the first process, which also writes: all others do what it does."""
    found: list[Record] | None = dist.broadcast_object(
        measured(out, settings, **provenance) if dist.is_main() else None
    )
    return found


def _views(encoder: Encoder, suite: Suite) -> dict[str, View]:
    """Every data set, opened with what its benchmarks need beside it."""
    views = dict[str, View]()
    data, words = suite.data_folders(), [*suite.data_folders(), Path(suite.folder), Path()]
    for part in suite.benchmarks:
        if part.dataset not in views:
            opened = open_data(part.data, folders=data)
            views[part.dataset] = View(encoder, opened, dataset=part.dataset, folders=words)
        for other in part.others():
            views[part.dataset].beside(other, folders=data)
    return views


def _write(
    out: Path, view: View, parts: Sequence[BenchmarkPart], outcomes: Sequence[Outcome], records: Sequence[Record]
) -> None:
    """The files and lines of one data set; what the label prefix made stands apart."""
    for folder in dict.fromkeys(map(artefact_folder, parts)):
        chosen = [outcome for part, outcome in zip(parts, outcomes) if artefact_folder(part) == folder]
        artefacts.write(out / folder, view, parts[0].data, chosen)
    for row in records:
        record.append(row, out / "results.jsonl")


def artefact_folder(part: BenchmarkPart) -> str:
    """Where the files of a benchmark go, under the folder of results."""
    return f"eval/{part.dataset}-label_prefix" if part.prefix == "label" else f"eval/{part.dataset}"


def make_record(part: BenchmarkPart, view: View, outcome: Outcome, **provenance: Any) -> Record:
    """The record of one outcome; `provenance` holds what neither the benchmark nor the data know."""
    skips = Counter(view.encoded.reasons()) + Counter(outcome.skips)
    return Record(
        dataset=part.dataset,
        task=part.task,
        language=part.language,
        metrics=outcome.metrics,
        n=outcome.n,
        counts=outcome.counts,
        ci95={name: (interval.low, interval.high) for name, interval in outcome.ci95.items()},
        chance=outcome.chance,
        contains_chance=outcome.contains_chance(),
        head=outcome.head,
        **part.named_adapter,
        warnings=(*getattr(view.encoder.dual, "mismatches", ()), *part.warnings(view)),
        selection=outcome.selection,
        templates_hash=outcome.templates_hash,
        classes_hash=outcome.classes_hash,
        data_hash=view.opened.records.fingerprint,
        skips=dict(skips),
        artefacts=artefact_folder(part),
        **provenance,
    )


def as_table(records: Sequence[Record], *, title: str) -> Table:
    """Every number with its interval and what chance reaches; a star where the two cannot be told apart."""
    table = Table(title=title, title_justify="left", box=SIMPLE, caption="* not shown to be better than chance")
    table.add_column("metric", overflow="fold")  # the one that may take two lines: numbers are never cut
    for heading in ("value", "95 % interval", "chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in records:
        table.add_section()
        table.add_row(", ".join([f"[bold]{row.dataset}[/] n = {row.n}", *row.apart]))
        for name, value in row.metrics.items():
            interval = row.ci95.get(name)
            star = "*" if row.contains_chance.get(name) else " "
            table.add_row(
                f"  {name}",
                f"{value:.3g}",
                f"{interval[0]:.3g} to {interval[1]:.3g}" if interval else "",
                f"{row.chance[name]:.3g} {star}" if name in row.chance else "",
            )
    return table
