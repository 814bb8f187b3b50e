"""Where the run comes from: configuration, versions, hashes, machine facts; no host name and no absolute path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from vlp.report.page import DASH, Html, duration, figure, fold, section, table, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts, RunFolder
from vlp.report.results import task_of

# an absolute path: a slash or a drive after a boundary, two names or more; URLs have "//" and are left alone
_PATH = re.compile(r"(?<![\w./:~-])(?:[A-Za-z]:[\\/]|/)[\w.@+~-]+(?:[\\/][\w.@+~{}*?,-]+)+[\\/]?")
_PRIVATE = frozenset({"host", "hostname", "node", "user", "username", "cwd", "home", "ip", "address"})
_HASHES = ("data_hash", "templates_hash", "classes_hash", "settings_hash")
_SHOWN = 3  # names of skipped pictures
_LARGE = 12  # mappings with more entries than this are folded (the bad samples of a checkpoint's state, for one)


def hide_paths(text: str) -> str:
    """The text with the folders of absolute paths left out: `/a/b/x.tar` becomes `…/x.tar`."""
    return _PATH.sub(lambda match: f"…/{PurePosixPath(match[0].replace(chr(92), '/')).name}", text)


def skipped(counts: Counter[str], artefacts: Sequence[Artefacts]) -> Html:
    """Samples that were left out in training and in the latest evaluations, by reason, with the names of some."""
    rows = [["training", reason.replace("_", " "), figure(count), ""] for reason, count in counts.most_common()]
    for place in artefacts:
        for record in place.records:
            where = f"{record.get('dataset')}, {str(record.get('task')).replace('_', ' ')}"
            for reason, count in record["skips"].items():
                rows.append([where, reason.replace("_", " "), figure(count), _names(place.items, reason)])
    none = tag("p", "None was skipped.")
    head = ["Where", "Reason", "Samples", "For example"]
    return section("Skipped samples", table(head, rows, numeric=(2,)) if rows else none)


def _names(items: Mapping[str, Any], reason: str) -> str:
    """Some pictures that could not be read for this reason."""
    stored = items.get("skipped")
    every = stored if isinstance(stored, list) else []
    known = [one for one in every if isinstance(one, Mapping) and one.get("reason") == reason]
    return ", ".join(str(one.get("key")) for one in known[:_SHOWN])


def provenance(run: RunFolder) -> Html:
    """Facts as a table, versions, and the configuration folded away."""
    facts = {key: value for key, value in run.provenance.items() if key.lower() not in _PRIVATE}
    versions = facts.pop("versions", None)
    rows = [[name, tag("code", value)] for name, value in (_hashes(run) | dict(_flat(facts))).items()]
    parts = [table(["Fact", "Value"], rows)] if rows else []
    if isinstance(versions, Mapping):
        parts.append(tag("p", "Packages: ", ", ".join(f"{name} {version}" for name, version in versions.items()), "."))
    if run.latest:
        parts.append(fold(f"Of each result ({len(run.latest)})", _records(run.latest)))
    if run.config:
        parts.append(fold("Configuration (config.yaml)", tag("pre", hide_paths(run.config))))
    return section("Provenance", *parts)


def _hashes(run: RunFolder) -> dict[str, str]:
    """Model, weights and code that the latest records name; what is of one data set stands in the table of results."""
    found: dict[str, dict[str, None]] = {}
    for record in run.latest:
        for key in ("model", "pretrained", "weights_hash", "code_version"):
            if record.get(key):
                found.setdefault(key.replace("_", " "), {})[str(record[key])] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _records(records: Sequence[Mapping[str, Any]]) -> Html:
    """A row a result: what it was measured on and with, where choices were made, how often labels were read."""
    head = ["Data set", "Task", "Data", "Templates", "Classes", "Settings", "Chosen on", "Label reads", "Time"]
    rows = [
        [record.get("dataset"), task_of(record), *(_hash(record.get(key)) for key in _HASHES), _selection(record),
         _reads(record.get("test_label_reads")), _time(number(record.get("seconds")))]
        for record in records
    ]  # fmt: skip
    note = "Hashes are cut to 10 places; results.jsonl has them whole. One read of the labels is scoring itself."
    return Html(table(head, rows, numeric=(7, 8)) + tag("p", note, class_="note"))


def _hash(value: Any) -> Html | str:
    return tag("code", str(value)[:10], title=value, class_="hash") if value else DASH


def _selection(record: Mapping[str, Any]) -> str:
    """The split where choices were made, and what was chosen; hashes of its data are left to results.jsonl."""
    known = {key: value for key, value in record["selection"].items() if not str(key).endswith("_hash")}
    split = str(known.pop("split", "none"))
    chosen = [f"{key} {value}" for key, value in known.items()]
    return "nothing was chosen" if split == "none" and not chosen else "; ".join([split, *chosen])


def _reads(value: Any) -> Html | str:
    reads = number(value)
    return tag("span", figure(value), class_="mark") if reads is not None and reads > 1 else figure(value)


def _time(seconds: float | None) -> str:
    return DASH if seconds is None else duration(seconds)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and len(value) <= _LARGE:
            yield from _flat({k: v for k, v in value.items() if str(k).lower() not in _PRIVATE}, f"{prefix}{key}.")
        elif isinstance(value, Mapping) or (isinstance(value, list) and len(value) > _LARGE):
            yield name, f"{len(value)} entries"
        elif value is not None:
            yield name, hide_paths(str(value))
