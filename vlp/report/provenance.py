"""Where the run comes from: configuration, versions, hashes, machine facts; no host name and no absolute path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from vlp.report.page import Html, figure, fold, section, table, tag
from vlp.report.read import RunFolder

# an absolute path: a slash or a drive after a boundary, two names or more; URLs have "//" and are left alone
_PATH = re.compile(r"(?<![\w./:~-])(?:[A-Za-z]:[\\/]|/)[\w.@+~-]+(?:[\\/][\w.@+~{}*?,-]+)+[\\/]?")
_PRIVATE = frozenset({"host", "hostname", "node", "user", "username", "cwd", "home", "ip", "address"})
_LARGE = 12  # mappings with more entries than this are folded (the bad samples of a checkpoint's state, for one)


def hide_paths(text: str) -> str:
    """The text with the folders of absolute paths left out: `/a/b/x.tar` becomes `…/x.tar`."""
    return _PATH.sub(lambda match: f"…/{PurePosixPath(match[0].replace(chr(92), '/')).name}", text)


def skipped(counts: Counter[str], latest: Sequence[Mapping[str, Any]]) -> Html:
    """Samples that were left out in training and in the latest evaluations, by reason."""
    rows = [["training", reason.replace("_", " "), figure(count)] for reason, count in counts.most_common()]
    for record in latest:
        where = f"{record.get('dataset')}, {str(record.get('task')).replace('_', ' ')}"
        rows += [
            [where, reason.replace("_", " "), figure(count)] for reason, count in (record.get("skips") or {}).items()
        ]
    none = tag("p", "None was skipped.")
    return section("Skipped samples", table(["Where", "Reason", "Samples"], rows, numeric=(2,)) if rows else none)


def provenance(run: RunFolder) -> Html:
    """Facts as a table, versions, and the configuration folded away."""
    facts = {key: value for key, value in run.provenance.items() if key.lower() not in _PRIVATE}
    versions = facts.pop("versions", None)
    rows = [[name, tag("code", value)] for name, value in (_hashes(run) | dict(_flat(facts))).items()]
    parts = [table(["Fact", "Value"], rows)] if rows else []
    if isinstance(versions, Mapping):
        parts.append(tag("p", "Packages: ", ", ".join(f"{name} {version}" for name, version in versions.items()), "."))
    if run.config:
        parts.append(fold("Configuration (config.yaml)", tag("pre", hide_paths(run.config))))
    return section("Provenance", *parts)


def _hashes(run: RunFolder) -> dict[str, str]:
    """Hashes of weights and data that the latest records name."""
    found: dict[str, str] = {}
    for record in run.latest:
        for key in ("weights_hash", "data_hash", "templates_hash", "classes_hash", "code_version"):
            if record.get(key):
                of = "" if key in ("weights_hash", "code_version") else f" of {record.get('dataset')}"
                found[key.replace("_", " ") + of] = str(record[key])
    return found


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and len(value) <= _LARGE:
            yield from _flat({k: v for k, v in value.items() if str(k).lower() not in _PRIVATE}, f"{prefix}{key}.")
        elif isinstance(value, Mapping) or (isinstance(value, list) and len(value) > _LARGE):
            yield name, f"{len(value)} entries"
        elif value is not None:
            yield name, hide_paths(str(value))
