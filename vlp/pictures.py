"""Everything that stands for a picture: a sample of a source, a file, bytes, a PIL image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlp.data.fields import image_bytes
from vlp.paths import refuse_url
from vlp.types import BadSampleError, Sample, Skip

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = Any  # Sample | str | Path | bytes | PIL.Image.Image: PIL has no types that mypy could follow


class Pictures(Protocol):
    """Any finite sequence of pictures: a list of them, or the records of a source."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def read_picture(picture: Picture) -> bytes | Image:
    """What a transform takes: the bytes of a picture, or the PIL image itself; BadSampleError if there is none."""
    if isinstance(picture, Sample):
        return image_bytes(picture)
    if isinstance(picture, str | PathLike):
        refuse_url(picture if isinstance(picture, str) else Path(picture))
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


def fingerprint(pictures: Pictures) -> str | None:
    """What identifies the pictures for a cache: the source's own word or a hash of the content; None for PIL."""
    known = getattr(pictures, "fingerprint", None)
    if known is not None:
        return str(known)
    digest = hashlib.sha256()
    for picture in (pictures[index] for index in range(len(pictures))):
        if not isinstance(picture, Sample | str | PathLike | bytes):
            return None
        try:
            content = read_picture(picture)
        except BadSampleError as error:  # it will be left out, for the same reason
            content = str(error).encode()
        assert isinstance(content, bytes)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


class Pixels(NamedTuple):
    """One batch from the loader: uint8 [B, 3, H, W] of what could be read."""

    image: Tensor | None
    kept: list[int]
    skips: list[Skip]

    def looked_at(self) -> int:
        return len(self.kept) + len(self.skips)


class Decoded(Dataset[Any]):
    """Position -> pixels or the reason why there are none; runs in the loader's workers."""

    def __init__(self, pictures: Pictures, transform: Callable[[Any], Tensor]) -> None:
        self.pictures, self.transform = pictures, transform

    def __getitem__(self, index: int) -> tuple[int, Tensor | Skip]:
        picture = None
        try:
            picture = self.pictures[index]
            return index, self.transform(read_picture(picture))
        except BadSampleError as error:
            shard, key = where(picture, index)
            return index, Skip(error.reason, "", shard, key, error.detail)


def stack(items: Sequence[tuple[int, Tensor | Skip]]) -> Pixels:
    good = [(index, value) for index, value in items if isinstance(value, Tensor)]
    image = torch.stack([value for _, value in good]) if good else None
    return Pixels(image, [index for index, _ in good], [value for _, value in items if isinstance(value, Skip)])
