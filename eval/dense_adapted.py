"""Adapters of patches where pixels are measured: what they learn from, and how they score windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from eval.data import Data
from eval.masks import Masks
from eval.pixel_words import Words
from eval.view import View
from eval.windows import Layout, Size, dense_encoder, look
from vlp.adapters.dense_task import DENSE_ADAPTERS, DenseAdapter, DenseExamples, DenseTask, PatchMaps
from vlp.data.schema import DataError
from vlp.models.dense import DenseTower, How, grid_of, halves
from vlp.registry import Named
from vlp.types import BadSampleError

DenseAdapterPart = Annotated[DenseAdapter, Named("vlp.adapters.dense_task:DENSE_ADAPTERS")]
_HALVED = 256  # pictures whose tokens are in full precision at once


def adapter_name(part: DenseAdapter) -> str:
    """Its name in the table, and its variant."""
    return "_".join(filter(None, (DENSE_ADAPTERS.name_of(type(part)), part.variant)))


def check_adapter(part: DenseAdapter, scores: str, train: Data | None, field: str) -> None:
    """ValueError for an adapter that scores something else, and for one whose pictures are missing or of no use."""
    if part.scores != scores:
        fitting = [name for name in DENSE_ADAPTERS.names() if DENSE_ADAPTERS.resolve(name).scores == scores]
        raise ValueError(f"adapter: {adapter_name(part)} scores {part.scores}; of {scores} are {', '.join(fitting)}")
    if part.learns and train is None:
        raise ValueError(f"adapter: {adapter_name(part)} learns from pictures with masks; give `{field}`")
    if not part.learns and train is not None:
        raise ValueError(f"adapter: {adapter_name(part)} learns nothing; leave `{field}` out")


def split_maps(tokens: Tensor, dim: int, window: Size, *, image: Tensor | None = None) -> PatchMaps:
    """Patches of a DenseTower's tokens [n, P, W]: in the joint space, and what stands behind them as hidden.

    image: features of the whole pictures; without them the normed means of patches stand there.
    """
    patches, hidden = halves(tokens, dim)
    whole = normalize(patches.mean(dim=1), dim=-1) if image is None else image
    grid = grid_of(tokens.shape[1], window)
    return PatchMaps(whole, patches, grid, hidden if hidden.shape[-1] else None)


def patch_maps(view: View, how: How, *, hidden: bool) -> PatchMaps:
    """Patches of every picture of the view as the model sees it, in half precision, with its own pooled features."""
    dual, kept = view.encoder.dual, view.encoded.kept
    if how == "tokens" and not hidden:
        made = view.image_tokens(reduce=False)
    else:
        tower = DenseTower(dual, how, beside="hidden" if hidden else None, resize_mode=view.opened.resize_mode)
        made = dense_encoder(view.encoder, tower).image_tokens(view.opened.records, reduce=False)
    if made.kept != kept:
        raise DataError(f"{view.dataset}: {len(made.kept)} of {len(kept)} pictures could be read a second time")
    height, width = dual.transform.size
    parts = [
        split_maps(tokens, view.image.shape[1], (height, width), image=image)
        for tokens, image in zip(made.tokens.split(_HALVED), view.image.split(_HALVED))
    ]
    return joined(parts)


def joined(parts: list[PatchMaps]) -> PatchMaps:
    """All of them, patches in half precision."""
    hidden = [part.hidden.half() for part in parts if part.hidden is not None]
    patches = torch.cat([part.patches.half() for part in parts])
    return PatchMaps(
        torch.cat([part.image for part in parts]), patches, parts[0].grid, torch.cat(hidden) if hidden else None
    )


@dataclass(frozen=True)
class WindowMaker:
    """How pictures with masks become windows of the model's size with the classes of their pixels."""

    tower: DenseTower
    masks: Masks
    arrange: Callable[[Size], Layout]
    words: Words
    batch: int

    def examples(self, view: View, *, told: Counter[str]) -> DenseExamples:
        """Every window of every picture; masks are enlarged to the canvas by the nearest value.

        told: reasons why pictures were left out. DataError where none is left or they need more than token_gb.
        """
        maps, masks, keys, held = list[PatchMaps](), list[Tensor](), list[str](), 0.0
        places = view.places()
        for row, part, classes in self._windows(view, told):
            maps.append(part)
            masks.append(classes)
            keys += [places[row].key] * len(classes)
            held += part.patches.nelement() * 2e-9 + (0 if part.hidden is None else part.hidden.nelement() * 2e-9)
            if held > view.encoder.token_gb:
                raise DataError(
                    f"{view.dataset}: the patches of the first {row + 1} of {len(places)} pictures to learn from take "
                    f"{held:.1f} GB; allow more by token_gb, or give fewer pictures (limit), a smaller zoom or overlap"
                )
        if not maps:
            raise DataError(f"{view.dataset}: no picture to learn from has a mask that could be used: {dict(told)}")
        return DenseExamples(joined(maps), torch.cat(masks), keys=tuple(keys))

    def _windows(self, view: View, told: Counter[str]) -> Iterator[tuple[int, PatchMaps, Tensor]]:
        window: Size = self.tower.transform.size
        view.label_reads["learning"] += 1
        for seen in look(view, self.tower, self.masks, self.arrange, told, batch=self.batch):
            try:
                classes = self.masks.classes(seen.mask, self.words.names, background=self.words.background)
            except BadSampleError as error:
                told[error.reason] += 1
                continue
            canvas = interpolate(classes[None, None].double(), size=seen.layout.canvas, mode="nearest-exact")[0, 0]
            cut = [canvas[top : top + window[0], left : left + window[1]] for top, left in seen.layout.corners]
            maps = split_maps(seen.tokens, view.image.shape[1], window)
            yield seen.row, joined([maps]), torch.stack(cut).short()


class Adapted:
    """Scores [n, C, h, w] of windows by a fitted classifier of patches; `selection` is what a record says of it."""

    def __init__(self, classifier: Any, dim: int, window: Size, selection: dict[str, str | int]) -> None:
        self.classifier, self.dim, self.window, self.selection = classifier, dim, window, selection

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of tokens [n, P, W]."""
        found: Tensor = self.classifier(split_maps(tokens, self.dim, self.window))
        return found

    @classmethod
    def fitted(
        cls,
        part: DenseAdapter,
        view: View,
        windows: WindowMaker,
        train: Data | None,
        validation: Data | None,
        *,
        seed: int,
    ) -> Adapted:
        """The adapter after it learned; DataError where it would learn or choose on the pictures that are measured."""
        given = {"train": train, "validation": validation}
        views = {name: view.beside(data) for name, data in given.items() if data is not None}
        check_apart(view, views)
        told = {name: Counter[str]() for name in views}
        found = {name: windows.examples(own, told=told[name]) for name, own in views.items()}
        words = windows.words
        task = DenseTask(
            words.names,
            words.templates,
            support=found.get("train"),
            validation=found.get("validation"),
            seed=seed,
        )
        classifier = part.fit(view.encoder, task)
        left_out = {f"{name}_{why}": n for name, reasons in told.items() for why, n in reasons.items()}
        selection = {**described(classifier), **hashes(views), **left_out}
        selection |= {f"{name}_windows": len(one) for name, one in found.items()}
        return cls(classifier, view.image.shape[1], windows.tower.transform.size, selection)


def check_apart(view: View, others: dict[str, View]) -> None:
    """DataError where two of the data are the same pictures."""
    known = {view.opened.records.fingerprint: "data"}
    for name, other in others.items():
        beside = known.setdefault(other.opened.records.fingerprint, name)
        if beside != name:
            raise DataError(f"{view.dataset}: {name} are the pictures of {beside}; what is measured must be unseen")


def hashes(views: dict[str, View]) -> dict[str, str]:
    """What a record says of the data that were learned from."""
    return {f"{name}_hash": str(view.opened.records.fingerprint) for name, view in views.items()}


def described(classifier: Any) -> dict[str, str | int]:
    """What chose, in words that a record takes."""
    chosen = classifier.about.get("selection", {"split": "none"})
    return {name: value if isinstance(value, int) else _short(value) for name, value in chosen.items()}


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
