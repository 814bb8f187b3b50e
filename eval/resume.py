"""Which benchmarks of a suite have been measured before, by what they were asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import record
from eval.benchmark import BenchmarkPart
from eval.record import Record
from eval.view import View

_WORDS = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".yaml")  # files whose content is part of a setting


def settings_hash(part: BenchmarkPart, view: View) -> str:
    """16 hex digits of a benchmark's settings, the files that they name, the class words of the data's folder, the data
    that it needs besides, and how pictures are read and encoded.
    """
    settings = part.model_dump(mode="json")
    files = {word: _content(word, view.folders) for word in sorted(set(_strings(settings))) if word.endswith(_WORDS)}
    others = [view.beside(data).opened.records.fingerprint for data in part.others()]
    encoding = [repr(view.encoder.dual.transform), view.encoder.precision]
    asked = [type(part).__name__, settings, files, view.opened.names, view.opened.templates, encoding, *others]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def measured(out: Path, settings: Mapping[str, str], **provenance: Any) -> list[Record] | None:
    """The newest record of each of these settings (hash by name of a data hash), or None if one is missing.

    settings: settings_hash to data_hash. provenance: what a record must say besides, e.g. weights_hash.
    """
    file = out / "results.jsonl"
    if not file.is_file():
        return None
    wanted = {
        key: value for key, value in provenance.items() if key in ("weights_hash", "code_version", "step", "model")
    }
    found = {
        row.settings_hash: row
        for row in record.read(file)
        if row.settings_hash is not None
        and row.settings_hash in settings
        and row.data_hash == settings[row.settings_hash]
        and all(getattr(row, key) == value for key, value in wanted.items())
        and row.artefacts is not None
        and (out / row.artefacts / "items.json").is_file()
    }
    return [found[key] for key in settings] if len(found) == len(settings) else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _content(word: str, folders: Sequence[Path]) -> str | None:
    for folder in folders:
        if (folder / word).is_file():
            return hashlib.sha256((folder / word).read_bytes()).hexdigest()
    return None
