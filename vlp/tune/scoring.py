"""What a fitted classifier says of pictures, by whatever it needs of them, and how right it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from vlp.adapters.task import Examples
from vlp.metrics.accuracy import Accuracy
from vlp.metrics.calibration import Calibration
from vlp.metrics.interval import Interval
from vlp.pictures import Decoded, Pictures, Pixels, stack
from vlp.progress import progress

ROWS, TOKEN_ROWS = 4096, 256  # pictures scored at once by features, and by tokens, which take so much more room


class Score(NamedTuple):
    """Numbers of one classifier on pictures that have a label; `rows` are their places, `hits` whether it was right."""

    metrics: dict[str, float]
    ci95: dict[str, Interval]
    chance: dict[str, float]
    hits: Bool[Tensor, "n"]
    rows: Int[Tensor, "n"]


def logits_of(classifier: Any, encoder: Any, pictures: Examples) -> Float[Tensor, "n C"]:
    """Logits of every picture, on the CPU; ValueError for a classifier that needs what is not there."""
    found = [part.detach().float().cpu() for part in _parts(classifier, encoder, pictures)]
    logits = torch.cat(found)
    if logits.shape != (len(pictures), len(classifier.names)):
        raise ValueError(
            f"{type(classifier).__name__} gave logits {list(logits.shape)} for {len(pictures)} pictures and "
            f"{len(classifier.names)} names"
        )
    return logits


def score(logits: Float[Tensor, "n C"], label: Int[Tensor, "n"]) -> Score:
    """acc1, acc5, mean_per_class_recall and calibration over the pictures whose label is not -1."""
    rows = torch.where(label >= 0)[0]
    if not len(rows):
        raise ValueError("none of the test pictures has a usable label")
    accuracy, calibration = Accuracy(logits.shape[1]), Calibration()
    for part in (accuracy, calibration):
        part.update(logits[rows], label[rows])
    return Score(
        metrics={**accuracy.compute(), **calibration.compute()},
        ci95=accuracy.intervals(),
        chance=accuracy.chance(),
        hits=accuracy.hits()["acc1"],
        rows=rows,
    )


def _parts(classifier: Any, encoder: Any, pictures: Examples) -> Iterator[Tensor]:
    needs = classifier.needs
    if needs == "features":
        for image in pictures.image.split(ROWS):
            yield classifier(image)
        return
    if pictures.pictures is None:
        raise ValueError(
            f"{type(classifier).__name__} needs {needs}, and of the test pictures only features are there; give a "
            "model and pictures: vlp tune METHOD CHECKPOINT configs/tune/FILE.yaml"
        )
    if needs == "tokens":
        tokens = encoder.image_tokens(pictures.pictures)
        for rows in torch.arange(len(pictures)).split(TOKEN_ROWS):
            yield classifier(tokens.rows(rows))
    elif needs == "pictures":
        yield from (classifier(image) for image in pixels(encoder, pictures.pictures))
    else:
        raise ValueError(f'{type(classifier).__name__} needs "{needs}"; known: features, pictures, tokens')


def pixels(encoder: Any, pictures: Pictures) -> Iterator[Tensor]:
    """uint8 [B, 3, H, W] of all pictures on the encoder's device; ValueError if one can no longer be read."""
    loader: DataLoader[Any] = DataLoader(
        Decoded(pictures, encoder.dual.transform),
        batch_size=encoder.batch_size,
        sampler=range(len(pictures)),
        num_workers=encoder.workers,
        collate_fn=stack,
        generator=torch.Generator(),  # or it would draw from the default one
    )
    for batch in progress(loader, total=len(pictures), size=Pixels.looked_at, what="pictures", quiet=encoder.quiet):
        if batch.skips or batch.image is None:
            skip = batch.skips[0]
            raise ValueError(f"{skip.shard}: picture {skip.key} could be read before, and now not: {skip.reason}")
        yield batch.image.to(encoder.device)
