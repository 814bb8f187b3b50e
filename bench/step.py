"""Forward and backward of a training step: our Dual and InfoNCE beside open_clip's CLIP and ClipLoss, same weights.

Captions are those of rendered scenes, at context 77: of any length, or short ones of one relation.
Ours takes uint8 pictures and normalises them, theirs gets them normalised. The loss and the gradient of every
parameter are equal to 1e-4 of the largest element.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from captions import scene_captions
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from paired import Case, arguments, close, main, parse
from torch import Tensor

from vlp.data.collate import collate
from vlp.data.stages import Item
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.models.dual import Dual
from vlp.models.model import Model
from vlp.models.state import to_open_clip
from vlp.types import Batch


def cases(archs: list[str], num: int, forms: list[int]) -> Iterator[Case]:
    for arch in archs:
        for number in forms:
            dual = Model(arch=arch).build()
            batch = make_batch(dual, scene_captions(num, forms=number))
            mean = float(batch.token_mask.sum() / num)
            yield case(f"{arch}, {num} pairs, mean {mean:.1f} of {dual.context} tokens", dual, batch)


def case(name: str, dual: Dual, batch: Batch) -> Case:
    theirs = CLIP(**dual.config)
    theirs.load_state_dict(to_open_clip(dual))
    theirs.train()
    dual.train()
    image = dual.transform.normalize(batch.image)
    text = torch.zeros(len(batch), dual.context, dtype=torch.long)
    text[:, : batch.text.shape[-1]] = batch.text[:, 0]
    objective, clip_loss = Objective([InfoNCE()]), ClipLoss()
    names = [name for name, _ in theirs.named_parameters()]

    def run_ours() -> list[Tensor]:
        dual.zero_grad()
        loss = objective(dual(batch), batch).total
        loss.backward()
        gradients = {name: p.grad for name, p in dual.named_parameters()}
        return [loss.detach(), *(gradients[our_name(name, gradients)].squeeze() for name in names)]

    def run_theirs() -> list[Tensor]:
        theirs.zero_grad()
        loss = clip_loss(*theirs(image, text))
        loss.backward()
        return [loss.detach(), *(p.grad.squeeze() for p in theirs.parameters())]

    return Case(name, run_ours, run_theirs, close(1e-4))


def our_name(name: str, ours: dict[str, Any]) -> str:
    """The name in Dual of a parameter of CLIP, which keeps its text tower at the top."""
    return name if name in ours else f"text.{name}"


def make_batch(dual: Dual, texts: list[str]) -> Batch:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(texts), 3, *dual.transform.size), dtype=torch.uint8, generator=rng)
    items = [Item(image, [text], None, {}, text) for image, text in zip(pixels, texts, strict=True)]
    return collate(items, tokenizer=dual.tokenizer, captions=1, size=dual.transform.size)


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=4)
    parser.add_argument("--archs", default=None, help="default: vlp-tiny-64,vlp-tiny-112, or the first with --quick")
    parser.add_argument("--pairs", type=int, default=None, help="default: 24, or 4 with --quick")
    options = parse(parser)
    archs = options.archs or ("vlp-tiny-64" if options.quick else "vlp-tiny-64,vlp-tiny-112")
    forms = [5] if options.quick else [5, 2]
    main(cases(archs.split(","), options.pairs or (4 if options.quick else 24), forms), options)
