"""Our contrastive losses beside open_clip's, forward and backward: time, and peak memory beyond the features.

    python bench/losses.py --pairs 1024,4096,8192

Loss and gradients are equal to 1e-4 of the largest element. Memory is the peak of torch's own allocation events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from paired import MEMORY, Case, Run, arguments, close, main, megabytes, parse
from torch import Tensor
from torch.nn.functional import normalize

from vlp.losses.infonce import InfoNCE
from vlp.losses.sigmoid import Sigmoid
from vlp.types import UNLABELLED, Batch, Features


def cases(pairs: list[int], width: int, blocks: list[int]) -> Iterator[Case]:
    for num in pairs:
        for block in blocks:
            for name, ours, theirs in contestants(num, width, block):
                title = f"{name} N={num}" + (f" block {block}" if block else "")
                more = {MEMORY[0]: megabytes(theirs), MEMORY[1]: megabytes(ours)}
                yield Case(title, ours, theirs, close(1e-4), more)


def contestants(num: int, width: int, block: int) -> list[tuple[str, Run, Run]]:
    rng = torch.Generator().manual_seed(num)
    image, text = (normalize(torch.randn(num, width, generator=rng), dim=1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (30.0, -10.0))
    features = Features(image, text[:, None], scale, bias)
    nothing = torch.zeros(num, 1, 1, dtype=torch.long)
    yes = torch.ones(num, 1, dtype=torch.bool)
    label = UNLABELLED + torch.arange(num)
    batch = Batch(nothing, nothing, nothing.bool(), yes, yes[:, 0], label, nothing[:, 0, 0])

    def run(fn: Callable[[], Tensor], *inputs: Tensor) -> Run:
        def forward_backward() -> tuple[Tensor, ...]:
            value = fn()
            return value.detach(), *torch.autograd.grad(value, inputs, retain_graph=False)

        return forward_backward

    clip, siglip = ClipLoss(), SigLipLoss()
    plain = (image, text, scale)

    def fresh() -> Features:  # the view of the text belongs to the graph that each backward frees
        return features._replace(text=text[:, None])

    infonce, sigmoid = InfoNCE(block=block or None), Sigmoid(block=block or None)
    return [
        (
            "infonce",
            run(lambda: infonce(fresh(), batch)["contrast"], *plain),
            run(lambda: clip(image, text, scale), *plain),
        ),
        (
            "sigmoid",
            run(lambda: sigmoid(fresh(), batch)["contrast"], *plain, bias),
            run(lambda: siglip(image, text, scale, bias), *plain, bias),
        ),
    ]


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--pairs", default=None, help="default: 1024,4096, or 1024 with --quick")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", default="0", help="rows of a tile; 0: chosen by the device")
    options = parse(parser)
    pairs = options.pairs or ("1024" if options.quick else "1024,4096")
    numbers = [[int(n) for n in text.split(",")] for text in (pairs, options.blocks)]
    main(cases(numbers[0], options.width, numbers[1]), options, columns=MEMORY)
