"""The pointing game: is the patch that fits a phrase best a patch of the object the phrase names (arXiv 1608.00507)?"""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.hits import hits_file, picture_keys
from eval.view import View
from vlp.data.schema import DataError
from vlp.metrics.interval import of_means

SHOWN = 12


class Target(NamedTuple):
    """A phrase, and where it is true: per patch whether its centre lies inside, and the share of the picture."""

    row: int
    phrase: str
    inside: Tensor  # bool [P]
    area: float


class Pointing(BenchmarkPart):
    """Share of named objects that the best patch hits: the patch's centre lies in the object's mask.

    The map of a phrase is the cosine of the projected patches with the pooled phrase (`pointing_phrase`), and the mean
    over the phrase's tokens of their cosines with the patches (`pointing_tokens`): the latter is what `filip` trains,
    the former what `dreamlip` does. Chance is the mean share of the picture that the object covers. `phrase` is filled
    from the object's fields, `{a}` is the article; objects of equal phrase in one picture are one target. The mask
    holds i + 1 where object i is seen.
    """

    task: ClassVar[str] = "pointing"

    objects: str = "objects"
    phrase: str = "{a} {color} {shape}"
    mask: str = "mask.png"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """pointing_phrase and pointing_tokens; intervals draw pictures."""
        view.label_reads["scoring"] += 1
        images = view.image_tokens(reduce=False)  # a reducer's tokens stand nowhere
        targets, skips = self._targets(view, patches=images.tokens.shape[1])
        if not targets:
            raise DataError(f"{view.dataset}: no object of {self.objects} with a mask in {self.mask}: {dict(skips)}")
        phrases = list(dict.fromkeys(target.phrase for target in targets))
        words = view.text_tokens(phrases)
        place = {phrase: number for number, phrase in enumerate(phrases)}
        count = words.mask.sum(1, keepdim=True).clamp(min=1)
        mean_token = (words.tokens.float() * words.mask[..., None]).sum(1) / count
        hits, best = [], []
        for target in targets:
            number, patches = place[target.phrase], images.tokens[target.row].float()
            found = [int((patches @ query).argmax()) for query in (words.features[number], mean_token[number])]
            best.append(found)
            hits.append([float(target.inside[patch]) for patch in found])
        values, groups = torch.tensor(hits, dtype=torch.float64), torch.tensor([target.row for target in targets])
        intervals = of_means(values, groups=groups, n_boot=self.n_boot)
        chance = sum(target.area for target in targets) / len(targets)
        names = ("pointing_phrase", "pointing_tokens")
        return Outcome(
            metrics=dict(zip(names, values.mean(0).tolist())),
            n=len(set(groups.tolist())),
            counts={"images": len(set(groups.tolist())), "objects": len(targets)},
            ci95=dict(zip(names, intervals)),
            chance=dict.fromkeys(names, chance),
            skips=dict(skips),
            files={
                "pointing.json": _examples(targets, best),
                **hits_file(
                    "pointing",
                    picture_keys(view, [target.row for target in targets]),
                    [target.phrase for target in targets],
                    dict(zip(names, values.T.tolist())),
                ),
            },
            shown={target.row for target in targets[:SHOWN]},
        )

    def _targets(self, view: View, *, patches: int) -> tuple[list[Target], Counter[str]]:
        targets, skips = list[Target](), Counter[str]()
        size = view.encoder.dual.transform.size
        for row in range(len(view.encoded.kept)):
            fields = view.fields(row, (self.objects,), raw=(self.mask,))
            objects, mask = fields.find(self.objects), fields.members.get(self.mask)
            if not isinstance(objects, list) or mask is None:
                skips["no_objects" if mask is not None else "no_mask"] += 1
                continue
            seen = np.asarray(Image.open(io.BytesIO(mask)))
            x, y = _centres(patches, size, seen.shape[:2], view.resize_mode)
            values = torch.from_numpy(seen[y, x].astype(np.int64))
            for phrase, numbers in _by_phrase(self.phrase, objects).items():
                area = float(np.isin(seen, numbers).mean())
                if area == 0:
                    skips["object_hidden"] += 1
                    continue
                targets.append(Target(row, phrase, torch.isin(values, torch.tensor(numbers)), area))
        return targets, skips


def _by_phrase(template: str, objects: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Mask values of the objects that each phrase is true of."""
    found: dict[str, list[int]] = {}
    for number, facts in enumerate(objects):
        words = template.replace("{a} ", "").format(**facts)
        article = "an " if words[0] in "aeiou" else "a "
        found.setdefault(article + words if "{a}" in template else words, []).append(number + 1)
    return found


def _centres(
    patches: int, size: tuple[int, int], shape: tuple[int, int], resize_mode: str
) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Pixel columns and rows [P] of the mask under the patches' centres, patches counted row by row."""
    height, width = size
    down = round(math.sqrt(patches * height / width))
    across = patches // down
    if down * across != patches:
        raise ValueError(f"{patches} patches do not tile a picture of {height} x {width}; pointing needs a grid")
    y = (np.arange(down) + 0.5) * height / down
    x = (np.arange(across) + 0.5) * width / across
    if resize_mode == "squash":
        y, x = y * shape[0] / height, x * shape[1] / width
    else:
        ratios = shape[0] / height, shape[1] / width
        ratio = max(ratios) if resize_mode == "longest" else min(ratios)
        y, x = (
            (centre - side / 2) * ratio + whole / 2
            for centre, side, whole in ((y, height, shape[0]), (x, width, shape[1]))
        )
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return (
        columns.flatten().astype(int).clip(0, shape[1] - 1),
        rows.flatten().astype(int).clip(0, shape[0] - 1),
    )


def _examples(targets: list[Target], best: list[list[int]]) -> dict[str, Any]:
    shown = [
        {"row": t.row, "phrase": t.phrase, "area": t.area, "phrase_patch": b[0], "tokens_patch": b[1],
         "hit": [bool(t.inside[patch]) for patch in b]}
        for t, b in list(zip(targets, best))[:SHOWN]
    ]  # fmt: skip
    return {"schema": 1, "examples": shown}
