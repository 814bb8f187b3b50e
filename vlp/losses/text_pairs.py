"""Softmax contrast between two captions of the same picture, such as a sentence and its translation."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vlp.losses.infonce import InfoNCE
from vlp.losses.per_sample import idle
from vlp.types import Batch, Features


class TextPairs(InfoNCE):
    """MURAL's task of texts alone (arXiv 2109.05125, section 3): `infonce` with the first caption for the picture.

    Every other caption of a sample is drawn to its first one, both ways; samples with one caption take no part.
    In the sum with `infonce`, pictures and translations meet in one space. Ours: the pairs are captions of the batch's
    own pictures, where the paper adds translation pairs without pictures.
    """

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "text_pairs"; ValueError for batches of one caption a picture."""
        if features.text.shape[1] < 2:
            raise ValueError("text_pairs compares captions of one picture, and the batch has one each: data.captions=2")
        texts = features._replace(image=features.text[:, 0], text=features.text[:, 1:])
        both = replace(
            batch,
            text=batch.text[:, 1:],
            token_mask=batch.token_mask[:, 1:],
            caption_mask=batch.caption_mask[:, 1:],
            valid=batch.valid & batch.caption_mask[:, 0],
        )
        return {"text_pairs": super().__call__(texts, both)["contrast"] + idle(features, batch)}
