"""What lies in a run folder, as plain values; whatever is missing is empty, whatever is torn is left out and said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlp.log import read_lines, read_steps


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The files of one evaluated data set (`eval.suite` says what is in them)."""

    name: str
    folder: Path
    items: Mapping[str, Any] = field(default_factory=dict)
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    retrieval_tokens: Mapping[str, Any] = field(default_factory=dict)
    retrieval_conditioned: Mapping[str, Any] = field(default_factory=dict)
    alignment: Mapping[str, Any] = field(default_factory=dict)
    confusion: Mapping[str, Any] = field(default_factory=dict)


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
        """Of each data set, task, prefix and head the last record: the measures of the run as it stands."""
        keys = ("dataset", "task", "prefix")
        return list({(*map(r.get, keys), r.get("head") or "global"): r for r in self.results}.values())


def read_run(folder: Path) -> RunFolder:
    """The content of a run folder; FileNotFoundError, naming what was looked for, when it is none."""
    names = ("metrics.jsonl", "results.jsonl", "config.yaml")
    if not any((folder / name).is_file() for name in names):
        known = "there is no such folder" if not folder.is_dir() else f"it has none of {', '.join(names)}"
        raise FileNotFoundError(f"{folder} is not a run folder: {known}; give the folder that `vlp train` wrote")
    lines = [folder / name for name in ("metrics.jsonl", "results.jsonl", "skips.jsonl")]
    whole = [*folder.glob("eval/*/*.json"), folder / "host.json"]
    torn = {path: _torn(path) for path in lines} | {path: _broken(path) for path in whole}
    return RunFolder(
        name=folder.resolve().name,
        steps=read_steps(folder / "metrics.jsonl"),
        results=[record for record in read_lines(folder / "results.jsonl") if "metrics" in record],
        skips=_skips(folder / "skips.jsonl"),
        config=_text(folder / "config.yaml"),
        provenance=_provenance(folder),
        artefacts=[_artefacts(path) for path in sorted((folder / "eval").glob("*")) if path.is_dir()],
        torn={path.relative_to(folder).as_posix(): count for path, count in torn.items() if count},
    )


def _torn(path: Path) -> int:
    lines = _text(path).split("\n")
    return sum(bool(line.strip()) for line in lines) - sum(1 for _ in read_lines(path))


def _skips(path: Path) -> Counter[str]:
    """Skipped samples by reason; one that was skipped again after a resume counts once a step."""
    seen = {json.dumps(record, sort_keys=True): str(record.get("reason", "unknown")) for record in read_lines(path)}
    return Counter(seen.values())


def _artefacts(folder: Path) -> Artefacts:
    names = ("items", "retrieval", "retrieval_tokens", "retrieval_conditioned", "alignment", "confusion")
    parts = {name: _object(folder / f"{name}.json") for name in names}
    return Artefacts(str(parts["items"].get("dataset") or folder.name), folder, **parts)


def by_heads(artefacts: Artefacts) -> list[Artefacts]:
    """The same data set with what its queries find by tokens and by conditioned pooling, under names that say so."""
    found = {"by tokens": artefacts.retrieval_tokens, "as the caption sees it": artefacts.retrieval_conditioned}
    return [replace(artefacts, name=f"{artefacts.name}, {how}", retrieval=shown) for how, shown in found.items()]


def _provenance(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint says of its data (batch size, streams, fingerprint), and host.json's facts."""
    states = sorted(folder.glob("checkpoints/step-*/state.json"))
    state = _object(states[-1]) if states else {}
    host = _object(folder / "host.json") or state.get("host")
    facts = {key: value for key, value in state.items() if key not in _CARRIED}
    return {**facts, **(host if isinstance(host, dict) else {})}


_CARRIED = frozenset(
    {"schema", "step", "seconds", "skips", "scaler", "host"}
)  # shown elsewhere, or the run's own affair


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _broken(path: Path) -> int:
    """1 for a file that is there and holds no JSON object."""
    return int(path.is_file() and not _object(path) and _text(path).strip() != "{}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
