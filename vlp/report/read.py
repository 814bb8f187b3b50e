"""What lies in a run folder, as plain values; whatever is missing is empty, whatever is torn is left out and said."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vlp.log import read_lines, read_steps
from vlp.paths import refuse_url
from vlp.report.variant import variant

Record = Mapping[str, Any]
HEADS = {"": "", "_tokens": "by tokens", "_conditioned": "as the caption sees it"}  # how names of files end
_LARGE = ("_hits", "ranks", "_draws")  # in the names of files for other commands, which no page draws
_MAPPINGS = ("ci95", "chance", "contains_chance", "counts", "selection", "skips")  # of a record
ADAPTER = ("adapter", "adapter_hash")  # keys of a record
_NAMES = ("dataset", "task", "language", "head", "prefix", *ADAPTER)


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The files of one evaluated data set (`eval.suite` says what is in them), and its latest records."""

    name: str
    folder: Path
    items: Mapping[str, Any] = field(default_factory=dict)
    alignment: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # the other JSON files, by name
    records: Sequence[Record] = ()

    def by_heads(self, stem: str) -> list[tuple[str, Mapping[str, Any]]]:
        """(Title, file) of each adapter and head that left such a file; the title is the data set's name, and these."""
        form = re.compile(rf"{stem}(?:-(?P<adapter>.+?))?(?P<head>{'|'.join(filter(None, HEADS))})?")
        found = [(match, file) for name, file in self.files.items() if file and (match := form.fullmatch(name))]
        order = list(HEADS)
        found.sort(key=lambda pair: (pair[0]["adapter"] or "", order.index(pair[0]["head"] or "")))
        with_ = [f"with {match['adapter']}" if match["adapter"] else "" for match, _ in found]
        by = [HEADS[match["head"] or ""] for match, _ in found]
        return [(", ".join(filter(None, (self.name, *how))), file) for *how, (_, file) in zip(with_, by, found)]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Everything the page shows."""

    name: str
    steps: list[dict[str, Any]]  # metrics.jsonl, one record a step
    results: list[dict[str, Any]]  # results.jsonl
    skips: Counter[str]
    config: str  # config.yaml as it is
    provenance: dict[str, Any]
    artefacts: list[Artefacts]
    torn: dict[str, int]  # file name -> lines that could not be read; a JSON file counts as one

    @property
    def latest(self) -> list[dict[str, Any]]:
        """Of each data set, task, language, prefix, adapter and head the last record: the run as it stands."""
        return _latest(self.results)


def read_run(folder: Path) -> RunFolder:
    """The content of a run folder; FileNotFoundError, naming what was looked for, when it is none."""
    refuse_url(folder)
    names = ("metrics.jsonl", "results.jsonl", "config.yaml")
    if not any((folder / name).is_file() for name in names):
        known = "there is no such folder" if not folder.is_dir() else f"it has none of {', '.join(names)}"
        raise FileNotFoundError(
            f"{folder} is not a run folder: {known}; give the folder that `vlp train` or `vlp eval` wrote"
        )
    torn = {folder / name: _torn(folder / name) for name in ("metrics.jsonl", "results.jsonl", "skips.jsonl")}
    results = [_whole(record) for record in read_lines(folder / "results.jsonl") if _is_record(record)]
    torn[folder / "results.jsonl"] += sum(not _is_record(r) for r in read_lines(folder / "results.jsonl"))
    return RunFolder(
        name=folder.resolve().name,
        steps=read_steps(folder / "metrics.jsonl"),
        results=results,
        skips=_skips(folder / "skips.jsonl"),
        config=_text(folder / "config.yaml"),
        provenance=_provenance(folder, torn),
        artefacts=_all_artefacts(folder, _latest(results), torn),
        torn={path.relative_to(folder).as_posix(): count for path, count in torn.items() if count},
    )


def _latest(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("dataset", "task", "prefix")
    ways = {
        (*map(r.get, keys), r.get("language") or "en", variant(*map(r.get, ADAPTER)), r.get("head") or "global"): r
        for r in results
    }
    return list(ways.values())


def _is_record(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("metrics"), dict)


def _whole(record: dict[str, Any]) -> dict[str, Any]:
    """The record with an empty mapping where one should be and is not; names are text."""
    there = {key: record[key] if isinstance(record.get(key), dict) else {} for key in _MAPPINGS}
    names = {key: None if record.get(key) is None else str(record[key]) for key in _NAMES}
    return record | there | names


def _torn(path: Path) -> int:
    lines = _text(path).split("\n")
    return sum(bool(line.strip()) for line in lines) - sum(1 for _ in read_lines(path))


def _skips(path: Path) -> Counter[str]:
    """Skipped samples by reason; one that was skipped again after a resume counts once a step."""
    seen = {json.dumps(record, sort_keys=True): str(record.get("reason", "unknown")) for record in read_lines(path)}
    return Counter(seen.values())


def _all_artefacts(folder: Path, latest: Sequence[Record], torn: dict[Path, int]) -> list[Artefacts]:
    """Of every folder of files, and of every data set that has records and no files."""
    folders = {path.name: path for path in sorted((folder / "eval").glob("*")) if path.is_dir()}
    by_name: dict[str, list[Record]] = {}
    for record in latest:
        by_name.setdefault(_place(record), []).append(record)
    found = [_artefacts(path, by_name.get(name, []), torn) for name, path in folders.items()]
    bare = [
        Artefacts(name, folder / "eval" / name, records=own) for name, own in by_name.items() if name not in folders
    ]
    return found + bare


def _place(record: Record) -> str:
    """The name of the folder that holds the record's files."""
    return PurePosixPath(str(record.get("artefacts") or record.get("dataset"))).name


def _artefacts(folder: Path, records: Sequence[Record], torn: dict[Path, int]) -> Artefacts:
    paths = [path for path in sorted(folder.glob("*.json")) if not any(word in path.stem for word in _LARGE)]
    files = {path.stem: _object(path, torn) for path in paths}
    items, alignment = files.pop("items", {}), files.pop("alignment", {})
    name = str(items.get("dataset") or folder.name)
    name = f"{name}, label prefix" if folder.name.endswith("-label_prefix") else name
    return Artefacts(name, folder, items, alignment, files, records)


def _provenance(folder: Path, torn: dict[Path, int]) -> dict[str, Any]:
    """What the newest checkpoint says of its data (batch size, streams, fingerprint), and host.json's facts."""
    states = sorted(folder.glob("checkpoints/step-*/state.json"))
    state = _object(states[-1], torn) if states else {}
    host = _object(folder / "host.json", torn) or state.get("host")
    facts = {key: value for key, value in state.items() if key not in _CARRIED}
    return {**facts, **(host if isinstance(host, dict) else {})}


_CARRIED = frozenset(
    {"schema", "step", "seconds", "skips", "scaler", "host"}
)  # shown elsewhere, or the run's own affair


def _object(path: Path, torn: dict[Path, int]) -> dict[str, Any]:
    """The object in a JSON file; nothing where there is no file, nor, counted in `torn`, where it holds none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except ValueError:
        value = None
    torn[path] = int(not isinstance(value, dict))
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
