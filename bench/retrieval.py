"""Recall at 1, 5 and 10 both ways: our rank counting beside the way of CLIP_benchmark.

Theirs is restated here: the top k of each query as one-hot rows over the whole gallery, times the right answers, in
batches of 64 queries, once for each k and direction. Equal recalls to one query of each direction: two scores that
differ in the last bits may be ordered either way, and ours counts ties within 1e-6 against the model. Memory is the
peak of torch's own allocation events beyond the features.

    python bench/retrieval.py --texts 25000 --images 5000 --rounds 2
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from paired import MEMORY, Case, UnequalError, arguments, main, megabytes, parse
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vlp.metrics.recall import retrieval_ranks

KS = (1, 5, 10)


def cases(texts: int, images: int, width: int) -> Iterator[Case]:
    rng = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(images, width, generator=rng), dim=1)
    owner = torch.arange(texts) % images
    text = normalize(image[owner] + 0.3 * torch.randn(texts, width, generator=rng), dim=1)

    def ours() -> Tensor:
        ranks = retrieval_ranks(image, text, owner)
        return torch.tensor([[float((found <= k).double().mean()) for k in KS] for found in (ranks[1], ranks[0])])

    def theirs() -> Tensor:
        scores = text @ image.T
        right = torch.zeros(texts, images, dtype=torch.bool)
        right[torch.arange(texts), owner] = True
        return torch.tensor([[by_one_hot(s, r, k) for k in KS] for s, r in ((scores, right), (scores.T, right.T))])

    def check(a: Tensor, b: Tensor) -> str:
        apart = (a - b).abs()
        if bool((apart > torch.tensor([[1.01 / texts], [1.01 / images]])).any()):
            raise UnequalError(f"recalls {a.tolist()} and {b.tolist()}")
        found = "equal" if torch.equal(a, b) else f"within {float(apart.max()):.0e}"
        return f"{found}; R@1 {float(a[0, 0]):.3f} of pictures, {float(a[1, 0]):.3f} of texts"

    more = {MEMORY[0]: megabytes(theirs), MEMORY[1]: megabytes(ours)}
    yield Case(f"{texts} texts, {images} pictures, D={width}", ours, theirs, check, more)


def by_one_hot(scores: Tensor, right: Tensor, k: int, *, batch: int = 64) -> float:
    """Share of queries with a right answer among the first k."""
    hits = []
    for rows, wanted in zip(scores.split(batch), right.split(batch), strict=True):
        top = one_hot(rows.topk(k, dim=1).indices, num_classes=scores.shape[1])  # [batch, k, gallery]
        found = (top * wanted[:, None]).sum(dim=(1, 2)) / wanted.sum(dim=1)
        hits.append(found > 0)
    return float(torch.cat(hits).double().mean())


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--texts", type=int, default=None, help="default: 5000, or 1000 with --quick")
    parser.add_argument("--images", type=int, default=None, help="default: 1000, or 200 with --quick")
    options = parse(parser)
    texts = options.texts or (1000 if options.quick else 5000)
    images = options.images or (200 if options.quick else 1000)
    if texts < images:
        parser.error("every picture needs a text: --texts must be at least --images")
    main(cases(texts, images, width=512), options, columns=MEMORY)
