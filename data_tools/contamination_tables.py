"""What `contamination` found as files: pairs, keep-lists of training samples, pictures not looked at, the summary."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.contamination import KINDS, Contamination, Evaluation, Report
from data_tools.dataset import SKIPS
from data_tools.leaks import Leak, Place
from vlp.data.schema import write_atomic

LEAKS, SUMMARY = "leaks.csv", "summary.json"
COLUMNS = (
    *("evaluation", "eval_shard", "eval_key", "train_shard", "train_key", "kind", "score", "inside"),
    *("left", "top", "right", "bottom", "worst", "colour", "same_file", "same_caption"),
)


def write_tables(report: Report, out: Path) -> list[str]:
    """Writes leaks.csv, skips.jsonl and the keep-lists, each whole or not at all; names of the keep-lists."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(leak) for leak in ordered(report.leaks))
    write_atomic(out / LEAKS, text.getvalue().encode("utf-8", "surrogateescape"))
    lines = [
        {"reason": reason, "source": place.side, "shard": str(place.shard), "key": place.key, "detail": detail}
        for place, reason, detail in report.skips
    ]
    write_atomic(out / SKIPS, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return _write_keep_lists(report, out)


def ordered(leaks: Iterable[Leak]) -> list[Leak]:
    """By evaluation set, then the strongest kind and the surest pairs first."""
    return sorted(leaks, key=lambda leak: (leak.test.side, KINDS.index(leak.match.kind), -leak.match.score, leak.test))


def _row(leak: Leak) -> tuple[Any, ...]:
    match = leak.match
    numbers = (round(value, 4) for value in (*match.box, match.worst, match.colour))
    places = (leak.test.side, leak.test.shard, leak.test.key, leak.train.shard, leak.train.key)
    return (*places, match.kind, round(match.score, 4), match.inside, *numbers, leak.same_file, leak.same_caption)


def _write_keep_lists(report: Report, out: Path) -> list[str]:
    """One for each folder of training shards: shards have no folder in a keep-list, so two could be mixed up."""
    why: dict[Place, str] = {}
    for leak in reversed(ordered(report.leaks)):
        why[leak.train] = f"{leak.match.kind}: {leak.test.side} {leak.test.shard.name}:{leak.test.key}"
    folders = list(dict.fromkeys(shard.parent for shard in report.samples))
    written = []
    for number, folder in enumerate(folders):
        name = "keep.parquet" if len(folders) == 1 else f"keep-{number}-{folder.name}.parquet"
        places = [
            Place("train", shard, key)
            for shard, keys in report.samples.items()
            if shard.parent == folder
            for key in keys
        ]
        columns = {
            "shard": [place.shard.name for place in places],
            "key": [place.key for place in places],
            "keep": [place not in why for place in places],
            "why": [why.get(place, "") for place in places],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        write_atomic(out / name, buffer.getvalue())
        written.append(name)
    return written


def summary(report: Report, settings: Contamination, keep_lists: list[str]) -> dict[str, Any]:
    """The numbers as plain values: shares of each evaluation set with intervals, counts of training samples."""
    samples = sum(map(len, report.samples.values()))
    skipped = Counter(skip.reason for skip in report.skips if skip.place.side == "train")
    names = {"captions", "limits", "detail", "worst", "colour", "model", "neighbours"}
    return {
        "evaluations": [_evaluation(found) for found in report.evaluations],
        "train": {
            "shards": len(report.samples),
            "samples": samples,
            "skipped": dict(skipped),
            "flat": report.flat,
            "dropped": len({leak.train for leak in report.leaks}),
        },
        "pairs": len(report.leaks),
        "not_compared": report.not_compared,
        "model": {"threshold": report.threshold, "not_encoded": report.not_encoded},
        "keep_lists": keep_lists,
        "settings": settings.model_dump(mode="json", include=names),
    }


def _evaluation(found: Evaluation) -> dict[str, Any]:
    low, high = found.interval
    share = {"share": found.share, "low": low, "high": high}
    return {
        "name": found.name,
        "pictures": found.pictures,
        "skipped": found.skipped,
        "flat": found.flat,
        "leaked": sum(found.leaked.values()),
        **{name: None if math.isnan(value) else round(value, 6) for name, value in share.items()},
        "kinds": found.leaked,
        "same_caption": found.same_caption,
    }


def write_summary(result: dict[str, Any], out: Path) -> None:
    """Writes summary.json."""
    write_atomic(out / SUMMARY, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
