"""THE encode pass: pictures and texts to unit-norm features, once, for everything that needs them.

The cache keeps features by what they were made of: weights, transform or tokenizer, precision, and the data.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from vlp import dist
from vlp.feature_cache import FeatureCache
from vlp.log import console
from vlp.pictures import Pictures, fingerprint, read_picture, where
from vlp.progress import progress
from vlp.types import BadSampleError, Skip

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Encoded(NamedTuple):
    """Features [n, D] of the pictures that could be read, which ones they are, and why the others could not."""

    features: Float[Tensor, "n D"]
    kept: list[int]  # positions in what was given, ascending
    skips: list[Skip]

    def reasons(self) -> dict[str, int]:
        """Number of pictures left out, by reason."""
        return dict(Counter(skip.reason for skip in self.skips))


class Encoder:
    """Images and texts of one dual encoder to fp32 features of unit norm on the CPU.

    Moves the model to `device`, runs it in evaluation mode without gradients, and gives every module its own mode back.
    With several processes each encodes its share and all get the whole; all must make the same calls.
    """

    def __init__(
        self,
        dual: Any,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        workers: int = 0,
        precision: Precision = "fp32",
        cache: Path | None = None,
        cache_dtype: Literal["fp32", "fp16"] = "fp32",
        quiet: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.dual = dual.to(device)
        self.device = torch.device(device)
        self.batch_size, self.workers, self.precision, self.quiet = batch_size, workers, precision, quiet
        self.cache = FeatureCache(cache, dtype=cache_dtype) if cache is not None else None

    @property
    def weights_hash(self) -> str:
        """Hash of the weights as they are now."""
        from vlp.models.pretrained import weights_hash

        return str(weights_hash(self.dual))

    @property
    def scale(self) -> float:
        """The model's temperature as it is now, inverted: what cosines are multiplied by."""
        return float(self.dual.logit_scale.detach().exp())

    def images(self, pictures: Pictures) -> Encoded:
        """Features of records (`vlp.data.open_records`), samples, paths, bytes or PIL images, in their order.

        Pictures that cannot be read are left out, counted by reason and listed in `skips`.
        """
        data = fingerprint(pictures) if self.cache else None
        return self._cached("image", data, repr(self.dual.transform), lambda: self._encode_images(pictures))

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Features [n, D] of the texts in their order; equal texts are encoded once, in order of length."""
        if isinstance(texts, str):
            raise TypeError(f'texts("{texts[:20]}"): give a list of texts, also for a single one')
        if not texts:
            return torch.empty(0, 0)
        data = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest() if self.cache else None
        encode: Callable[[], Encoded] = lambda: Encoded(self._encode_texts(texts), list(range(len(texts))), [])  # noqa: E731
        return self._cached("text", data, self.dual.tokenizer.fingerprint, encode).features

    def _cached(self, kind: str, data: str | None, reader: str, encode: Callable[[], Encoded]) -> Encoded:
        if self.cache is None or data is None:
            return encode()
        parts = {
            "kind": kind,
            "weights": self.weights_hash,
            "reader": reader,
            "precision": self.precision,
            "data": data,
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        # only the first process looks, so that all do the same, also where they share no disk
        entry = dist.broadcast_object(self.cache.read(key) if dist.is_main() else None)
        if entry is not None:
            return Encoded(entry.features, entry.kept, entry.skips)
        found = encode()
        if dist.is_main():
            self.cache.write(key, features=found.features, kept=found.kept, skips=found.skips)
        return found

    def _encode_images(self, pictures: Pictures) -> Encoded:
        mine = range(dist.rank(), len(pictures), dist.world())
        loader: DataLoader[Any] = DataLoader(
            _Decoded(pictures, self.dual.transform),
            batch_size=self.batch_size,
            sampler=mine,
            num_workers=min(self.workers, -(-len(mine) // self.batch_size)),
            collate_fn=_stack,
            pin_memory=self.device.type == "cuda",
        )
        rows, kept, skips = [], list[int](), list[Skip]()
        batches = progress(loader, total=len(mine), size=_Pixels.looked_at, what="pictures", quiet=self.quiet)
        with self._running():
            for batch in batches:
                skips += batch.skips
                if batch.kept:
                    kept += batch.kept
                    image = batch.image.to(self.device, non_blocking=True)
                    rows.append(self._finish(self.dual.encode_image(image)))
        shares = dist.gather_object((torch.cat(rows) if rows else None, kept, skips))
        whole = _in_order([(share[0], share[1]) for share in shares])
        found = Encoded(*whole, [skip for share in shares for skip in share[2]])
        if found.skips and not self.quiet and dist.is_main():
            console.print(
                f"left out {len(found.skips)} of {len(pictures)} pictures: {found.reasons()}", highlight=False
            )
        return found

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = self.dual.tokenizer.encode(list(unique))
        context = self.dual.tokenizer.context
        # a tower that does not trim pads every text to its whole context, so short texts cost as much as long ones
        shortest = 1 if self.dual.trims else context
        widths = [min(_width(max(len(row), shortest)), context) for row in ids]
        batches = _by_length(widths, budget=self.batch_size * context)[dist.rank() :: dist.world()]
        rows, places = [], list[int]()
        total = sum(map(len, batches))
        with self._running():
            for batch in progress(batches, total=total, size=len, what="texts", quiet=self.quiet):
                padded, mask = _pad([ids[row] for row in batch], self.dual.tokenizer)
                rows.append(self._finish(self.dual.encode_text(padded.to(self.device), mask.to(self.device))))
                places += batch
        shares = dist.gather_object((torch.cat(rows) if rows else None, places))
        features, _ = _in_order(shares)
        return features[[unique[text] for text in texts]]

    def _finish(self, features: Tensor) -> Tensor:
        found = normalize(features.float(), dim=-1).cpu()
        if not found.isfinite().all():
            remedy = "the weights hold such values" if self.precision == "fp32" else 'try precision="fp32"'
            raise ValueError(f"the model made features that are not finite numbers, in {self.precision}: {remedy}")
        return found

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the precision asked for; afterwards every module has its own mode again."""
        modes = [(module, module.training) for module in self.dual.modules()]
        self.dual.eval()
        enabled = self.precision != "fp32"
        dtype = _DTYPES.get(self.precision, torch.bfloat16)
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
                yield
        finally:
            _restore(modes)


class _Pixels(NamedTuple):
    """One batch from the loader: uint8 [B, 3, H, W] of what could be read."""

    image: Tensor | None
    kept: list[int]
    skips: list[Skip]

    def looked_at(self) -> int:
        return len(self.kept) + len(self.skips)


class _Decoded(Dataset[Any]):
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


def _stack(items: Sequence[tuple[int, Tensor | Skip]]) -> _Pixels:
    good = [(index, value) for index, value in items if isinstance(value, Tensor)]
    image = torch.stack([value for _, value in good]) if good else None
    return _Pixels(image, [index for index, _ in good], [value for _, value in items if isinstance(value, Skip)])


def _in_order(shares: Sequence[tuple[Tensor | None, list[int]]]) -> tuple[Tensor, list[int]]:
    """Rows of all processes by their place, and the places, ascending."""
    rows = [features for features, _ in shares if features is not None]
    if not rows:
        return torch.empty(0, 0), []
    places = torch.tensor([place for _, share in shares for place in share])
    order = places.argsort()
    return torch.cat(rows)[order], places[order].tolist()


def _by_length(widths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Rows in order of their padded length, cut into batches of at most `budget` tokens."""
    batches: list[list[int]] = []
    for row in sorted(range(len(widths)), key=lambda row: widths[row]):
        if not batches or (len(batches[-1]) + 1) * widths[row] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _pad(ids: Sequence[Sequence[int]], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Ids [n, T] and the mask of real tokens, T the longest rounded up to 8, but not above the context."""
    width = min(_width(max(map(len, ids))), tokenizer.context)
    padded = torch.full((len(ids), width), tokenizer.pad)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    lengths = torch.tensor([len(tokens) for tokens in ids])
    return padded, torch.arange(width) < lengths[:, None]


def _width(length: int) -> int:
    return -(-length // 8) * 8


def _restore(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
