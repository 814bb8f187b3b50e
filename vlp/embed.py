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
from torch.utils.data import DataLoader

from vlp import dist
from vlp.feature_cache import FeatureCache
from vlp.log import console
from vlp.models.shared_prefix import can_share, run_shared
from vlp.pictures import Decoded, Pictures, Pixels, fingerprint, stack
from vlp.progress import progress
from vlp.text.batches import by_length, pad, round_up
from vlp.token_store import ImageTokens, TextTokens, TokenStore
from vlp.types import Skip

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
        token_gb: float = 4.0,
        quiet: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.dual = dual.to(device)
        self.device = torch.device(device)
        self.batch_size, self.workers, self.precision, self.quiet = batch_size, workers, precision, quiet
        self.token_gb = token_gb  # most that the tokens of one call may take
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

    @property
    def token_scale(self) -> float:
        """The same for similarities of tokens: that of the loss which compared them, where it has one of its own."""
        heads = dict(getattr(self.dual, "heads", {}))
        words = frozenset(getattr(self.dual, "needs", ())) >= {"image_tokens", "text_tokens"}
        name = "wukong_scale" if reducer(self.dual) is not None else "filip_scale" if words else "dreamlip"
        return float(heads[name].value) if name in heads else self.scale

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
        reader = "/".join(filter(None, (self.dual.tokenizer.fingerprint, getattr(self.dual, "prefix_kind", None))))
        return self._cached("text", data, reader, encode).features

    def image_tokens(self, pictures: Pictures, *, reduce: bool = True) -> ImageTokens:
        """Features [n, D] and unit tokens [n, P, D] in the joint space, as `images` otherwise; never cached on disk.

        A model with a head that reduces patches to fewer tokens (Wukong) gives those, its patches with `reduce=False`.
        Every process holds all tokens in fp16: n * P * D * 2 bytes, which more than `token_gb` is refused.
        """
        store = TokenStore(len(pictures), limit_gb=self.token_gb, what="pictures")
        head = reducer(self.dual) if reduce else None
        own = self._over_pictures(pictures, lambda batch, image: store.add(batch, *self._image_tokens(image, head)))
        store.share()
        shares = dist.gather_object(own)
        kept = sorted(place for share in shares for place in share[0])
        return ImageTokens(*store.keep(kept), kept, self._told([skip for _, own in shares for skip in own], pictures))

    def text_tokens(self, texts: Sequence[str]) -> TextTokens:
        """Features [n, D], unit tokens [n, T, D] (zero behind the end) and their mask, in order, equal texts once.

        Every process holds n * T * D * 2 bytes, T one more than the longest text has, but not above the context; more
        than `token_gb` is refused.
        """
        unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = self.dual.tokenizer.encode(list(unique))
        length = min(max(map(len, ids), default=0) + 1, self.dual.tokenizer.context)
        store = TokenStore(len(unique), limit_gb=self.token_gb, what="texts", length=length)
        with self._running():
            for places, padded, mask in self._text_batches(ids):
                features, tokens, _ = self.dual.encode_text_tokens(padded, mask)
                store.add(places, self._finish(features), self._finish(tokens))
        store.share()
        found = TextTokens(store.features, store.tokens, store.real())
        if len(unique) == len(texts):
            return found
        rows = [unique[text] for text in texts]
        return TextTokens(*(part[rows] for part in found))

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
        return found._replace(features=self.cache.as_read(found.features))

    def _encode_images(self, pictures: Pictures) -> Encoded:
        rows = list[Tensor]()
        kept, skips = self._over_pictures(pictures, lambda _, image: rows.append(self._finish(self._image(image))))
        shares = dist.gather_object((torch.cat(rows) if rows else None, kept, skips))
        whole = _in_order([(share[0], share[1]) for share in shares])
        return Encoded(*whole, self._told([skip for share in shares for skip in share[2]], pictures))

    def _image(self, image: Tensor) -> Tensor:
        return torch.as_tensor(self.dual.encode_image(image))

    def _over_pictures(
        self, pictures: Pictures, take: Callable[[list[int], Tensor], None]
    ) -> tuple[list[int], list[Skip]]:
        """Hands this process's share to `take` (places, uint8 [b, 3, H, W] on the device); places and skips."""
        mine = range(dist.rank(), len(pictures), dist.world())
        loader: DataLoader[Any] = DataLoader(
            Decoded(pictures, self.dual.transform),
            batch_size=self.batch_size,
            sampler=mine,
            num_workers=min(self.workers, -(-len(mine) // self.batch_size)),
            collate_fn=stack,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or it would draw from the default one
        )
        kept, skips = list[int](), list[Skip]()
        with self._running():
            for batch in progress(loader, total=len(mine), size=Pixels.looked_at, what="pictures", quiet=self.quiet):
                skips += batch.skips
                if batch.image is not None:
                    kept += batch.kept
                    take(batch.kept, batch.image.to(self.device, non_blocking=True))
        return kept, skips

    def _told(self, skips: list[Skip], pictures: Pictures) -> list[Skip]:
        """The same skips, said aloud."""
        if skips and not self.quiet and dist.is_main():
            first, counts = {s.reason: s.key for s in reversed(skips)}, Counter(s.reason for s in skips)
            said = ", ".join(f"{count} {reason} (such as {first[reason]})" for reason, count in counts.items())
            console.print(f"left out {len(skips)} of {len(pictures)} pictures: {said}", highlight=False, markup=False)
        return skips

    def _image_tokens(self, image: Tensor, head: Any) -> tuple[Tensor, Tensor]:
        if head is None:
            features, tokens = self.dual.encode_image_tokens(image)
        else:
            out = self.dual.image_tower.run(self.dual.pixels(image), tokens=True)
            features, tokens = out.pooled, head.tokens(out.hidden)
        return self._finish(features), self._finish(tokens)

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows, places = [], list[int]()
        ids = self.dual.tokenizer.encode(list(unique))
        with self._running():
            for batch, features in self._shared(ids) if self._shares() else self._whole(ids):
                rows.append(self._finish(features))
                places += batch
        features, _ = _in_order(dist.gather_object((torch.cat(rows) if rows else None, places)))
        return features[[unique[text] for text in texts]]

    def _shares(self) -> bool:
        """Whether texts that begin alike may have their beginning encoded once."""
        return getattr(self.dual, "prefix_kind", None) is None and can_share(getattr(self.dual, "text_tower", None))

    def _shared(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """This process's share, texts that begin alike together: places and features."""
        budget = self.batch_size * self.dual.tokenizer.context
        mine = sorted(range(len(ids)), key=lambda row: tuple(ids[row]))  # neighbours share their beginnings
        share = -(-len(mine) // dist.world())
        mine = mine[dist.rank() * share : (dist.rank() + 1) * share]
        found = run_shared(self.dual.text_tower, [ids[row] for row in mine], budget=budget)
        for places, pooled in progress(
            found, total=len(mine), size=lambda batch: len(batch[0]), what="texts", quiet=self.quiet
        ):
            yield [mine[place] for place in places], pooled

    def _whole(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        for batch, padded, mask in self._text_batches(ids):
            yield batch, self.dual.encode_text(padded, mask)

    def _text_batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """This process's share in order of length: places, ids [b, T] and mask on the device."""
        context = self.dual.tokenizer.context
        # a tower that does not trim pads every text to its whole context, so short texts cost as much as long ones
        shortest = 1 if self.dual.trims else context
        widths = [min(round_up(max(len(row), shortest)), context) for row in ids]
        batches = by_length(widths, budget=self.batch_size * context)[dist.rank() :: dist.world()]
        total = sum(map(len, batches))
        for batch in progress(batches, total=total, size=len, what="texts", quiet=self.quiet):
            padded, mask = pad([ids[row] for row in batch], self.dual.tokenizer)
            yield batch, padded.to(self.device), mask.to(self.device)

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


def reducer(dual: Any) -> Any:
    """The head that makes fewer tokens of the patches (Wukong), or None."""
    return dict(getattr(dual, "heads", {})).get("wukong")


def _in_order(shares: Sequence[tuple[Tensor | None, list[int]]]) -> tuple[Tensor, list[int]]:
    """Rows of all processes by their place, and the places, ascending."""
    rows = [features for features, _ in shares if features is not None]
    if not rows:
        return torch.empty(0, 0), []
    places = torch.tensor([place for _, share in shares for place in share])
    order = places.argsort()
    return torch.cat(rows)[order], places[order].tolist()


def _restore(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
