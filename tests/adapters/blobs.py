"""Features of made-up pictures: a cloud a class on the unit sphere, and words that lie near each cloud."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from vlp.adapters.stored import Stored
from vlp.adapters.task import Examples, Task

ENCODER = Stored(scale=20.0)


def blobs(
    *, classes=4, shots=6, width=12, noise=0.5, views=0, held=5, validation=0, seed=0, counts=None, dtype=torch.float32
):
    """A task whose support has `shots` (or counts[c]) pictures a class, and labelled pictures that it did not see."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    centre = drawn(classes, width) + drawn(1, width)
    text = normalize(centre + 2 * drawn(classes, width), dim=1)[:, None].to(dtype)

    def examples(count, copies=0):
        label = torch.arange(classes).repeat_interleave(torch.as_tensor(count))
        image = normalize(centre[label] + noise * drawn(len(label), width), dim=1).to(dtype)
        own = None
        if copies:
            own = normalize(image[:, None] + 0.05 * drawn(len(label), copies, width), dim=2).to(dtype)
        return Examples(image, label, tuple(f"k{row}" for row in range(len(label))), views=own)

    task = Task(
        [f"class {place}" for place in range(classes)],
        text=text,
        support=examples(shots if counts is None else counts, views),
        validation=examples(validation) if validation else None,
        seed=seed,
    )
    return task, examples(held)


def accuracy(classifier, examples):
    return float((classifier(examples.image).argmax(dim=1) == examples.known).double().mean())
