"""Everything that stands for a picture: a sample of a source, a file, bytes, a PIL image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp.data.stages import image_bytes
from vlp.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = Any  # Sample | str | Path | bytes | PIL.Image.Image: PIL has no types that mypy could follow


def read_picture(picture: Picture) -> bytes | Image:
    """What a transform takes: the bytes of the picture, or the PIL image itself; BadSampleError if a sample has none."""
    if isinstance(picture, Sample):
        return image_bytes(picture)
    if isinstance(picture, str | PathLike):
        path = Path(picture)
        if not path.is_file():
            raise FileNotFoundError(f"no picture at {path} (in {Path.cwd()}); give a file, bytes or a PIL image")
        return path.read_bytes()
    return picture  # type: ignore[no-any-return]


def where(picture: Picture, index: int) -> tuple[str, str]:
    """Shard and key of a picture, for messages."""
    if isinstance(picture, Sample):
        return picture.shard, picture.key
    return (str(picture), Path(picture).stem) if isinstance(picture, str | PathLike) else ("", str(index))


def fingerprint(pictures: Sequence[Picture]) -> str | None:
    """What identifies the pictures for a cache: the source's own word or a hash of the content; None for PIL."""
    known = getattr(pictures, "fingerprint", None)
    if known is not None:
        return str(known)
    digest = hashlib.sha256()
    for picture in pictures:
        if not isinstance(picture, Sample | str | PathLike | bytes):
            return None
        content = read_picture(picture)
        assert isinstance(content, bytes)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
