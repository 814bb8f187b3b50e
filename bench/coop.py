"""A step of CoOp: ours, on stored picture features and with what all prompts begin with run once, beside the published.

Theirs runs open_clip's image tower over the batch in every step, and its text tower over 77 positions of every prompt;
pictures are decoded and normalised beforehand. Names are ImageNet's, 16 context vectors, batch 32, random weights. Loss
and gradient of the context are equal to 1e-4. The second kind of row is the text tower alone, forward and backward,
where theirs takes 100 classes at a time, since all of them do not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from paired import Case, arguments, close, main, parse
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vlp.adapters.prompts import ClassPrompts
from vlp.embed import Encoder
from vlp.models.model import Model
from vlp.models.state import to_open_clip

TOKENS, AT_ONCE = 16, 100


class Published:
    """CoOp's prompt learner and text encoder, over open_clip's CLIP."""

    def __init__(self, clip: Any, names: list[str]) -> None:
        self.clip = clip
        tokens = SimpleTokenizer(context_length=clip.context_length)
        ids = tokens([f"{' '.join(['X'] * TOKENS)} {name}." for name in names])
        embeds = clip.token_embedding(ids)
        self.prefix, self.suffix, self.end = embeds[:, :1], embeds[:, 1 + TOKENS :], ids.argmax(dim=1)

    def encode(self, context: Tensor, rows: slice = slice(None)) -> Tensor:
        clip, prefix, end = self.clip, self.prefix[rows], self.end[rows]
        x = torch.cat([prefix, context.expand(len(prefix), -1, -1), self.suffix[rows]], dim=1)
        x = clip.transformer(x + clip.positional_embedding, attn_mask=clip.attn_mask)
        x = clip.ln_final(x)[torch.arange(len(x)), end] @ clip.text_projection
        return normalize(x, dim=-1)


def cases(arch: str, steps: list[int], towers: list[int], batch: int) -> Iterator[Case]:
    dual = Model(arch=arch, context=77).build().eval().requires_grad_(False)
    clip = CLIP(**dual.config)
    clip.load_state_dict(to_open_clip(dual))
    clip.eval().requires_grad_(False)
    encoder = Encoder(dual, quiet=True)
    for count in steps:
        yield step(encoder, clip, count, batch)
    for count in towers:
        yield tower(encoder, clip, count)


def step(encoder: Encoder, clip: Any, count: int, batch: int) -> Case:
    """The loss of a batch, and its gradient."""
    dual, rng = encoder.dual, torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, *dual.transform.size), dtype=torch.uint8, generator=rng)
    image = dual.transform.normalize(pixels)
    label = torch.randint(count, (batch,), generator=rng)
    with torch.no_grad():
        stored = dual.encode_image(pixels)
    prompts, theirs, context = sides(encoder, clip, count)

    def finish(features: Tensor, weight: Tensor) -> list[Tensor]:
        loss = cross_entropy(encoder.scale * features @ weight.T, label)
        return [loss.detach()[None], torch.autograd.grad(loss, context)[0]]

    def run_theirs() -> list[Tensor]:
        return finish(clip.encode_image(image, normalize=True), theirs.encode(context))

    def run_ours() -> list[Tensor]:
        return finish(stored, prompts.encode(context))

    return Case(f"a step, {count} classes, batch {batch}, {says(prompts)}", run_ours, run_theirs, close(1e-4))


def tower(encoder: Encoder, clip: Any, count: int) -> Case:
    """Text features, and the gradient of a weighted sum of them."""
    prompts, theirs, context = sides(encoder, clip, count)
    aim = torch.randn(count, encoder.dual.dim, generator=torch.Generator().manual_seed(0))

    def run_ours() -> list[Tensor]:
        features = prompts.encode(context)
        return [features.detach(), torch.autograd.grad((features * aim).sum(), context)[0]]

    def run_theirs() -> list[Tensor]:
        found, gradient = [], torch.zeros_like(context)
        for start in range(0, count, AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            features = theirs.encode(context, rows)
            gradient += torch.autograd.grad((features * aim[rows]).sum(), context)[0]
            found.append(features.detach())
        return [torch.cat(found), gradient]

    return Case(f"text tower, {count} classes, {says(prompts)}", run_ours, run_theirs, close(1e-4))


def sides(encoder: Encoder, clip: Any, count: int) -> tuple[ClassPrompts, Published, Tensor]:
    names = IMAGENET_CLASSNAMES[:: len(IMAGENET_CLASSNAMES) // count][:count]
    prompts = ClassPrompts(encoder, names, count=TOKENS)
    context = prompts.first(torch.Generator().manual_seed(0)).requires_grad_()
    return prompts, Published(clip, names), context


def says(prompts: ClassPrompts) -> str:
    return f"names of up to {prompts.tokens - 2} tokens"


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--arch", default=None, help="default: vlp-tiny-112, or vlp-nano with --quick")
    options = parse(parser)
    if options.quick:
        main(cases(options.arch or "vlp-nano", [5], [7], 4), options)
    else:
        main(cases(options.arch or "vlp-tiny-112", [10, 100], [1000], 32), options)
