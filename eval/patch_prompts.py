"""Segmentation from one patch: MMC's protocol, in which patches ask patches and no word is needed (2308.11448)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from eval.benchmark import BenchmarkPart, Outcome
from eval.data import Data, DataField
from eval.hits import picture_keys
from eval.masks import Mask, Masks
from eval.patch_pairs import PatchPairs, Region
from eval.segment import reasons_beside
from eval.view import View
from eval.windows import Size, layout, look
from vlp.data.schema import DataError
from vlp.metrics.interval import of_means
from vlp.models.dense import DenseTower, How, grid_of, halves
from vlp.types import BadSampleError


class Picture(NamedTuple):
    """Unit tokens [P, W] of a picture, its regions, and which pixels count."""

    row: int
    tokens: Tensor
    grid: Size
    regions: list[Region]
    counted: Bool[Tensor, "h w"]


class Asked(NamedTuple):
    """One region asked for by a prompt: pixels flagged above each threshold, right ones, and the region's own."""

    row: int
    iou: Float[Tensor, "T"]
    area: float  # share of the picture


class PatchPrompts(BenchmarkPart):
    """prompt_iou: a patch of an object is the prompt, patches whose cosine with it is above a threshold are the object.

    Cosines are interpolated to the mask's size. The threshold is chosen among `thresholds` on `validation` by the mean
    IoU over regions, or given. Besides, of all pairs of patches of a picture, the similarity inside a region and
    between a region and what is not it (other regions, background), and the overlap of their two histograms.

    Ours, where the paper is silent: the prompt is the patch that the region covers most (of equals the nearest to its
    centre), and a region that covers no patch by `least` is left out and counted; a patch belongs to the region that
    covers more than half of it, or to the background where all cover less; pictures weigh alike in the histograms; the
    picture is squashed to the model's size. `support`: the prompt comes from labelled other pictures, `shots` of each
    class, drawn by a hash of `seed` and their keys; regions of a class are one, and a pixel takes the highest cosine
    over the shots. `background`: the value of no region.
    """

    task: ClassVar[str] = "prompting_patch"

    masks: Masks = Masks()
    background: int | None = 0
    how: How = "hidden"
    residual: bool = True
    support: DataField | None = None
    shots: int = Field(1, ge=1)
    seed: int = 0
    validation: DataField | None = None
    threshold: float | None = Field(None, ge=-1, le=1)
    thresholds: tuple[float, ...] = Field(tuple(step / 20 for step in range(20)), min_length=1)
    least: float = Field(0.5, gt=0, le=1)
    batch: int = Field(64, ge=1)  # pictures held at once
    n_boot: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _one_threshold(self) -> PatchPrompts:
        if (self.threshold is None) == (self.validation is None):
            raise ValueError("give `validation` data to choose the threshold on, or `threshold`, and not both")
        return self

    @property
    def named(self) -> dict[str, Data]:
        """Data beside the measured ones, by what they are for."""
        given = {"validation": self.validation, "support": self.support}
        return {name: data for name, data in given.items() if data is not None}

    def others(self) -> tuple[Data, ...]:
        """The same without the names."""
        return tuple(self.named.values())

    def measure(self, view: View) -> Outcome:
        """prompt_iou with intervals that draw pictures, intra_similarity, inter_similarity, similarity_overlap."""
        self._refuse_same(view)
        skips = Counter[str](reasons_beside(view, self.named))
        prompts = self._prompts(view, skips)
        threshold, selection, swept = self._chosen(view, prompts, skips)
        view.label_reads["scoring"] += 1
        asked, pairs = list[Asked](), PatchPairs()
        for picture in self._pictures(view, skips):
            asked += self._asked(picture, prompts, [threshold], skips)
            if not pairs.add(picture.tokens, picture.regions):
                skips["no_pairs_of_patches"] += 1
        if not asked:
            raise DataError(f"{view.dataset}: no region of {self.masks.member} could be asked for: {dict(skips)}")
        rows = torch.tensor([one.row for one in asked])
        iou = torch.stack([one.iou for one in asked]).double()
        chance = {"prompt_iou": sum(one.area for one in asked) / len(asked)}  # of flagging all, the best of guesses
        similar, intervals = pairs.compute(), pairs.intervals(n_boot=self.n_boot)
        return Outcome(
            metrics={"prompt_iou": float(iou.mean()), **similar},
            n=len(rows.unique()),
            counts={"images": len(rows.unique()), "regions": len(asked)},
            ci95={"prompt_iou": of_means(iou, groups=rows, n_boot=self.n_boot)[0], **intervals},
            chance={**chance, **({"similarity_overlap": 1.0} if similar else {})},
            lower_is_better=frozenset({"inter_similarity", "similarity_overlap"}),
            head=self.how,
            skips=dict(skips),
            selection=selection,
            files={
                "prompting_patch.json": {
                    "schema": 1,
                    "threshold": threshold,
                    "validation": swept,
                    "keys": picture_keys(view, rows.tolist()),
                    "iou": iou[:, 0].tolist(),
                    **pairs.histograms(),
                }
            },
        )

    def _refuse_same(self, view: View) -> None:
        views = [view, *(view.beside(data) for data in self.others())]
        if len({one.opened.records.fingerprint for one in views}) < len(views):
            raise DataError(
                f"{view.dataset}: two of data, validation and support are the same pictures, so the threshold or the "
                "prompts would come from what is measured; give other data"
            )

    def _chosen(
        self, view: View, prompts: dict[str, Tensor] | None, told: Counter[str]
    ) -> tuple[float, dict[str, str | int], Any]:
        """The threshold, what the record says of it, and the mean IoU of every candidate on validation."""
        source: dict[str, str | int] = {}
        if self.support is not None:
            source["support_hash"] = view.beside(self.support).opened.records.fingerprint
        if self.validation is None:
            assert self.threshold is not None
            return self.threshold, {"split": "none", "threshold": f"{self.threshold:g}", **source}, None
        held, skips = view.beside(self.validation), Counter[str]()
        held.label_reads["choosing"] += 1
        asked = [
            one
            for picture in self._pictures(held, skips)
            for one in self._asked(picture, prompts, self.thresholds, skips)
        ]
        told.update({f"validation_{reason}": count for reason, count in skips.items()})
        if not asked:
            raise DataError(f"{view.dataset}: no region of validation could be asked for: {dict(skips)}")
        mean = torch.stack([one.iou for one in asked]).double().mean(dim=0)
        best = self.thresholds[int(mean.argmax())]
        selection: dict[str, str | int] = {
            "split": "validation",
            "candidates": len(self.thresholds),
            "criterion": "prompt_iou",
            "threshold": f"{best:g}",
            "validation_hash": held.opened.records.fingerprint,
        }
        return best, selection | source, {"thresholds": list(self.thresholds), "iou": mean.tolist()}

    def _pictures(self, view: View, skips: Counter[str]) -> Iterator[Picture]:
        tower = DenseTower(view.encoder.dual, self.how, residual=self.residual)
        window: Size = tower.transform.size
        squash = lambda shape: layout(shape, window, resize="squash")  # noqa: E731
        for seen in look(view, tower, self.masks, squash, skips, batch=self.batch):
            tokens = halves(seen.tokens[0], seen.tokens.shape[-1])[0]
            grid = grid_of(len(tokens), window)
            try:
                regions = self._regions(seen.mask, grid)
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            ignored = torch.isin(torch.from_numpy(seen.mask.values), torch.tensor(self.masks.ignore, dtype=torch.long))
            yield Picture(seen.row, tokens, grid, regions, ~ignored)

    def _regions(self, mask: Mask, grid: Size) -> list[Region]:
        """Every object, or every value; with `support` those of one class together."""
        found: dict[str, Tensor] = {}
        for value, pixels in self.masks.regions(mask, background=self.background).items():
            name = str(value)
            if self.support is not None and mask.objects is not None:
                if value > len(mask.objects):
                    raise BadSampleError("mask_value_unknown", f"value {value}, and {len(mask.objects)} objects")
                name = self.masks.class_of(mask.objects[value - 1])
            here = torch.from_numpy(pixels)
            found[name] = found[name] | here if name in found else here
        return [Region(name, pixels, coverage(pixels, grid)) for name, pixels in found.items()]

    def _asked(
        self, picture: Picture, prompts: dict[str, Tensor] | None, thresholds: Sequence[float], skips: Counter[str]
    ) -> Iterator[Asked]:
        for region in picture.regions:
            if prompts is None:
                if float(region.cover.max()) < self.least:
                    skips["region_smaller_than_patch"] += 1
                    continue
                prompt = picture.tokens[prompt_patch(region.cover, picture.grid)][None]
            elif region.kind in prompts:
                prompt = prompts[region.kind]
            else:
                skips["class_not_in_support"] += 1
                continue
            cosines = (picture.tokens @ prompt.T).amax(dim=1).unflatten(0, picture.grid)
            shown = interpolate(cosines[None, None], size=region.pixels.shape, mode="bilinear", align_corners=False)
            iou = threshold_iou(shown[0, 0][picture.counted], region.pixels[picture.counted], thresholds)
            yield Asked(picture.row, iou, float(region.pixels[picture.counted].double().mean()))

    def _prompts(self, view: View, told: Counter[str]) -> dict[str, Tensor] | None:
        """Tokens [shots, W] of each class of `support`; None: each region is asked for by a patch of its own."""
        if self.support is None:
            return None
        support, skips = view.beside(self.support), Counter[str]()
        support.label_reads["prompting"] += 1
        keys, drawn = picture_keys(support, range(len(support.encoded.kept))), dict[str, list[tuple[str, Tensor]]]()
        for picture in self._pictures(support, skips):
            rank = hashlib.sha256(f"{self.seed} {keys[picture.row]}".encode()).hexdigest()
            for region in picture.regions:
                if float(region.cover.max()) >= self.least:
                    token = picture.tokens[prompt_patch(region.cover, picture.grid)]
                    drawn.setdefault(region.kind, []).append((rank, token))
                    drawn[region.kind] = sorted(drawn[region.kind], key=lambda one: one[0])[: self.shots]
        told.update({f"support_{reason}": count for reason, count in skips.items()})
        if not drawn:
            raise DataError(f"{view.dataset}: no region of support covers a patch: {dict(skips)}")
        return {kind: torch.stack([token for _, token in tokens]) for kind, tokens in drawn.items()}


def coverage(pixels: Bool[Tensor, "h w"], grid: Size) -> Float[Tensor, "P"]:
    """Share of each patch of a grid over the whole picture that a region covers."""
    return interpolate(pixels.float()[None, None], size=grid, mode="area").flatten()


def prompt_patch(cover: Float[Tensor, "P"], grid: Size) -> int:
    """The patch that a region covers most; of equals the nearest to the region's centre, then the first."""
    row, column = torch.meshgrid(*(torch.arange(side) + 0.5 for side in grid), indexing="ij")
    place = torch.stack([row, column], dim=-1).flatten(0, 1)  # [P, 2]
    centre = (cover[:, None] * place).sum(dim=0) / cover.sum()
    distance = (place - centre).square().sum(dim=1)
    return int(torch.where(cover == cover.max(), distance, torch.inf).argmin())


def threshold_iou(
    scores: Float[Tensor, "n"], inside: Bool[Tensor, "n"], thresholds: Sequence[float]
) -> Float[Tensor, "T"]:
    """Intersection over union with a region of the pixels whose score is above each threshold."""
    flagged = scores[:, None] > torch.tensor(thresholds, dtype=scores.dtype)
    hit = (flagged & inside[:, None]).sum(dim=0)
    return hit / (flagged.sum(dim=0) + inside.sum() - hit).clamp(min=1)
