"""What captions a sample has, and when two captions are the same."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CAPTION_FIELDS = ("caption", "captions", "txt")
_APART = re.compile(r"[\W_]+")


def normalise(caption: str) -> str:
    """The caption without case, punctuation and extra space, NFKC: equal means "the same caption"."""
    return _APART.sub(" ", unicodedata.normalize("NFKC", caption).casefold()).strip()


def fingerprint(caption: str) -> int:
    """64 bits of a normalised caption; sets of them hold millions of captions."""
    return int.from_bytes(
        hashlib.blake2b(normalise(caption).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def captions_of(members: Mapping[str, bytes], fields: Sequence[str] = CAPTION_FIELDS) -> list[str]:
    """All captions under the given json fields ("a.b" for nested ones) and members, in order, repeats left out."""
    values = parse_json(members)
    found: list[str] = []
    for field in fields:
        if field in members and field != "json":
            found.append(members[field].decode("utf-8", "replace"))
        else:
            found.extend(_strings(_field(values, field)))
    return list(dict.fromkeys(text for text in found if text.strip()))


def parse_json(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The json member as a mapping; empty when there is none or it is not one."""
    try:
        value = json.loads(members.get("json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def dataset_captions(folder: str | Path) -> Iterator[str]:
    """Every caption of every sample in a folder of shards."""
    from data_tools.shards import find_shards, samples

    for shard in find_shards([str(folder)]):
        for sample in samples(shard, only=("json", "txt")):
            yield from captions_of(sample.members)


def _field(values: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
