"""The members of a sample by name: texts, paths into its JSON, its picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlp.paths import IMAGE_ENDINGS
from vlp.types import BadSampleError, Sample

IMAGE_MEMBERS = IMAGE_ENDINGS  # a member is named by its ending
MAX_JSON = 4 << 20  # bytes of a sample's JSON: the small lists that 4 MB may hold take half a second and 100 MB
_MISSING = object()


class Fields:
    """The members of a sample by name; the JSON is parsed once, when first asked for."""

    def __init__(self, sample: Sample) -> None:
        self.members = sample.members
        self._json: Any = _MISSING

    def find(self, name: str, *, errors: str = "strict") -> Any:
        """The value of a field, or None: a member's text, or a path into the JSON ("json:a.b" is only that)."""
        only_json = name.startswith("json:")
        if not only_json and name in self.members and name != "json":
            return decode_text(self.members[name], name, errors=errors)
        return self.in_json(name.removeprefix("json:"), errors)

    def in_json(self, path: str, errors: str = "strict") -> Any:
        """The value at a dotted path into the JSON, or None."""
        value = self.json(errors)
        for step in path.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        return value

    def json(self, errors: str = "strict") -> Any:
        if self._json is _MISSING:
            raw = self.members.get("json")
            self._json = None if raw is None else _parsed(raw, errors)
        return self._json


def _parsed(raw: bytes, errors: str) -> Any:
    """The value in a json member; BadSampleError bad_json or bad_encoding."""
    if len(raw) > MAX_JSON:
        raise BadSampleError("bad_json", f"{len(raw)} bytes, at most {MAX_JSON} are parsed")
    text = decode_text(raw, "json", errors=errors)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
        raise BadSampleError("bad_json", str(error)) from error


def image_bytes(sample: Sample) -> bytes:
    """The picture of a sample: its first member with the ending of a picture; BadSampleError no_image without."""
    for name in IMAGE_MEMBERS:
        if name in sample.members:
            return sample.members[name]
    raise BadSampleError("no_image", f"members: {', '.join(sorted(sample.members))}")


def decode_text(raw: bytes, member: str, *, errors: str = "strict") -> str:
    """The text of a member; BadSampleError bad_encoding if it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise BadSampleError("bad_encoding", f"{member}: {error}") from error
