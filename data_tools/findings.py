"""What `verify` found: counts by reason, the first places of each, and if asked a line for every one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vlp.log import JsonLines

# what a set can live with; all other reasons are faults
WARNINGS = frozenset(
    {"no_caption", "dotted_key", "orphan_member", "meta_member", "no_manifest", "torn_sample", "flat_image"}
)
FOUND = "findings.jsonl"
EXAMPLES = 3


class Findings:
    """Reason -> count, and the first few places of each; with `out` each is also a line of findings.jsonl there."""

    def __init__(self, out: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        if out is not None:
            (out / FOUND).unlink(missing_ok=True)
        self._lines = JsonLines(out / FOUND) if out is not None else None

    def add(self, reason: str, shard: Path | str, detail: str = "", *, key: str = "", count: int = 1) -> None:
        """One finding, or `count` equal ones; `key` where it is about one sample."""
        self.counts[reason] += count
        known = self.examples.setdefault(reason, [])
        if len(known) < EXAMPLES:
            known.append(visible(": ".join(str(part) for part in (shard, key, detail) if part)))
        if self._lines is not None:
            line = {"reason": reason, "shard": str(shard), "key": key, "detail": detail, "count": count}
            self._lines.write(line)

    @property
    def faults(self) -> int:
        return sum(count for reason, count in self.counts.items() if reason not in WARNINGS)

    def __enter__(self) -> Findings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()


def visible(text: str) -> str:
    """The text with everything that a terminal would obey or cannot show spelled out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def summary_rows(result: dict[str, Any]) -> Sequence[tuple[str, str, str, str]]:
    """Reason, count, kind and first example, faults first."""
    rows = [
        (reason, str(count), "warning" if reason in WARNINGS else "fault", result["examples"][reason][0])
        for reason, count in result["reasons"].items()
    ]
    return sorted(rows, key=lambda row: (row[2] != "fault", row[0]))
