"""Pictures without labels as pictures to learn from: what a classifier says of them, and which of it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from vlp.adapters.task import Examples
from vlp.pictures import Decoded, stack


class PseudoLabels(NamedTuple):
    """Rows of the unlabelled pictures, and the class that each is taken for; a row can be there for several classes."""

    rows: Int[Tensor, "m"]
    label: Int[Tensor, "m"]

    def same(self, other: PseudoLabels | None) -> bool:
        """Whether the other one believes the same of the same pictures."""
        return other is not None and torch.equal(self.rows, other.rows) and torch.equal(self.label, other.label)

    def shots(self, pool: Examples) -> Examples:
        """The pictures with these labels."""
        return replace(pool.only(self.rows), label=self.label)

    def record(self, pool: Examples, names: Sequence[str]) -> dict[str, Any]:
        """For a record: rows of the pool, keys where it has them, labels, and how many each class has."""
        rows = self.rows.tolist()
        keys = {"keys": [pool.keys[row] for row in rows]} if pool.keys else {}
        count = self.label.bincount(minlength=len(names)).tolist()
        return {"rows": rows, **keys, "label": self.label.tolist(), "count": count}


def renumbered(record: Mapping[str, Any], places: Sequence[int], *, classes: int) -> dict[str, Any]:
    """A `PseudoLabels.record` over some classes as one over all, of which class k of the former is places[k]."""
    label = torch.as_tensor(places)[torch.as_tensor(record["label"], dtype=torch.long)]
    return {**record, "label": label.tolist(), "count": label.bincount(minlength=classes).tolist()}


def top_of_predicted(logits: Float[Tensor, "n C"], most: int) -> PseudoLabels:
    """The `most` surest pictures among those predicted as each class; a class that none is predicted as has none.

    Classes in order, the most probable picture first; of equals the one that comes first.
    """
    best = logits.double().log_softmax(dim=1).max(dim=1)
    order = best.values.argsort(descending=True, stable=True)
    order = order[best.indices[order].argsort(stable=True)]
    label = best.indices[order]
    first = torch.searchsorted(label, label)  # where the class of each row begins
    believed = torch.arange(len(label)) - first < most
    return PseudoLabels(order[believed], label[believed])


def leaderboard(logits: Float[Tensor, "n C"], most: int) -> PseudoLabels:
    """The `most` pictures of highest probability of each class, whatever they are predicted as: every class has them.

    Classes in order, the most probable picture first; of equals the one that comes first.
    """
    ranked = logits.double().log_softmax(dim=1).argsort(dim=0, descending=True, stable=True)[:most]
    classes = torch.arange(logits.shape[1]).repeat_interleave(len(ranked))
    return PseudoLabels(ranked.T.flatten(), classes)


def logits_over(classifier: Any, encoder: Any, examples: Examples, *, who: str) -> Float[Tensor, "n C"]:
    """What a fitted classifier says of every picture, on the CPU; ValueError where it needs what is not there."""
    if classifier.needs == "features":
        parts = [classifier(image) for image in examples.image.split(4096)]
    elif classifier.needs == "pictures":
        parts = [classifier(image) for image in _pixels(encoder, examples, who)]
    else:
        raise ValueError(f"{who} takes classifiers of features or pictures, and this one needs {classifier.needs}")
    return torch.cat([part.detach().float().cpu() for part in parts])


def _pixels(encoder: Any, examples: Examples, who: str) -> Any:
    """uint8 [b, 3, H, W] of all pictures in their order, on the encoder's device."""
    if examples.pictures is None:
        raise ValueError(f"{who} runs the image tower, and of the pictures only features were given: give pictures")
    loader: DataLoader[Any] = DataLoader(
        Decoded(examples.pictures, encoder.dual.transform),
        sampler=range(len(examples)),
        batch_size=encoder.batch_size,
        num_workers=min(encoder.workers, -(-len(examples) // encoder.batch_size)),
        collate_fn=stack,
        generator=torch.Generator(),  # or it would draw from the default one
    )
    for batch in loader:
        if batch.skips:
            skip = batch.skips[0]
            raise ValueError(f"picture {skip.key} cannot be read ({skip.reason} {skip.detail}); leave it out")
        yield batch.image.to(encoder.device)
