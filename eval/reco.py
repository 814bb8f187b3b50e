"""ReCo: retrieve pictures of a concept, find what they have in common, and look for that (arXiv 2206.07045)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from eval.data import Data, DataField
from eval.pixel_words import Words
from eval.segment import Scorer, Segmented
from eval.view import View
from eval.windows import dense_encoder
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.schema import DataError
from vlp.models.dense import How, halves

CONTEXT = ("tree", "sky", "building", "road", "person")
_NUMBERS = 1 << 24  # similarities held at once


class ReCo(Segmented):
    """For each text the `k` pictures of `archive` that fit it best; their common patches make its reference vector.

    A patch then scores sigmoid(reference_scale * cosine with the reference) * sigmoid(attention_scale * cosine of its
    dense feature with the text) (the language attention), the class with the highest score wins. Defaults are the
    paper's, but for: the visual features are those of the same model (`features`, default the patches before the
    projection), not of a second one; the released code scales the reference's cosine by 1; no CRF. `archive` needs no
    labels; its pictures are seen as the model sees them for retrieval. `context: []` eliminates nothing.
    """

    task: ClassVar[str] = "zeroshot_segmentation_reco"
    method: ClassVar[str] = "reco"

    archive: DataField
    k: int = Field(50, ge=1)
    features: How = "hidden"
    context: tuple[str, ...] = CONTEXT
    language_attention: bool = True
    attention_scale: float = Field(10.0, gt=0)
    reference_scale: float = Field(10.0, gt=0)

    @property
    def named(self) -> dict[str, Data]:
        return {**super().named, "archive": self.archive}

    def about(self, view: View) -> dict[str, str | int]:
        archive = view.beside(self.archive)
        return {"archive_hash": archive.opened.records.fingerprint, "archive_images": len(archive.image)}

    @property
    def beside(self) -> How | Literal["keys"] | None:
        return self.features

    def scorer(self, view: View, words: Words) -> Scorer:
        texts = tuple(dict.fromkeys([*words.texts, *self.context]))
        weight = ZeroShot().fit(view.encoder, Task(texts, words.templates)).weight
        found = self._references(view, texts, weight)
        device, place = view.encoder.device, [texts.index(text) for text in words.texts]
        reference, weight = torch.stack([found[text] for text in words.texts]).to(device), weight[place].to(device)

        def score(tokens: Tensor) -> Tensor:
            language, features = halves(tokens, weight.shape[1])
            scores = torch.sigmoid(self.reference_scale * features @ reference.T)
            return (
                scores * torch.sigmoid(self.attention_scale * language @ weight.T)
                if self.language_attention
                else scores
            )

        return score

    def _references(self, view: View, texts: Sequence[str], weight: Tensor) -> dict[str, Tensor]:
        """Reference [W] of each text. A context word eliminates those before it (released); a text that is one of
        them takes its reference.
        """
        found = dict[str, Tensor]()
        for text in self.context:
            found[text] = self._reference(view, weight[texts.index(text)], list(found.values()))
        context = list(found.values())
        for text, own in zip(texts, weight):
            if text not in found:
                found[text] = self._reference(view, own, context)
        return found

    def _reference(self, view: View, text: Tensor, context: Sequence[Tensor]) -> Tensor:
        """One concept's reference; only its own k pictures are held."""
        archive, device = view.beside(self.archive), view.encoder.device
        tower = self.tower(view, resize_mode=archive.opened.resize_mode)
        places = [archive.encoded.kept[row] for row in retrieved(text, archive.image, k=self.k).tolist()]
        pictures = [archive.opened.records[place] for place in places]
        tokens = dense_encoder(view.encoder, tower).image_tokens(pictures, reduce=False).tokens
        if not len(tokens):
            raise DataError(f"{view.dataset}: none of {len(places)} pictures of the archive could be read again")
        language, features = halves(tokens.to(device), len(text))
        weights = torch.ones(features.shape[:2], device=device)
        if self.language_attention:
            weights = weights * torch.sigmoid(self.attention_scale * language @ text.to(device))
        if context:
            weights = weights * eliminated(features, torch.stack(list(context)).to(device))
        return reference_of(features, weights).cpu()


def retrieved(text: Float[Tensor, "D"], archive: Float[Tensor, "N D"], *, k: int) -> Int[Tensor, "k"]:
    """Rows of the k pictures (all, if there are fewer) nearest to a text, nearest first, equal ones in their order."""
    return (archive @ text).argsort(descending=True, stable=True)[:k]


def eliminated(features: Float[Tensor, "k P W"], context: Float[Tensor, "m W"]) -> Float[Tensor, "k P"]:
    """Product over context references of 1 - sigmoid(cosine): small where a patch looks like context."""
    return (1 - torch.sigmoid(features @ context.T)).prod(dim=-1)


def seed_patches(
    features: Float[Tensor, "k P W"], weights: Float[Tensor, "k P"], *, numbers: int = _NUMBERS
) -> Int[Tensor, "k"]:
    """Of each picture the patch that the other pictures have most in common with.

    A patch scores the mean over the other pictures of its highest cosine with one of their patches, times that patch's
    weight. The released code counts the picture itself, too, and takes the maximum for picture i over the pictures
    behind it as well (its slice ends at the sum of start and end). A picture alone has the patch of highest weight.
    """
    k, P, _ = features.shape
    if k == 1:
        return weights.argmax(dim=1)
    total = features.new_zeros(k, P)
    step = max(1, numbers // (k * P * P))
    for start in range(0, k, step):
        others = slice(start, min(start + step, k))
        likeness = torch.einsum("ipw,jqw->ipjq", features, features[others]) * weights[others]
        best = likeness.amax(dim=-1)  # [k, P, pictures of the block]
        own = torch.arange(others.start, others.stop, device=features.device)
        best[own, :, own - start] = 0.0
        total += best.sum(dim=-1)
    return total.argmax(dim=1)


def reference_of(features: Float[Tensor, "k P W"], weights: Float[Tensor, "k P"]) -> Float[Tensor, "W"]:
    """The mean of the pictures' seeds, of unit norm."""
    seeds = seed_patches(features, weights)
    return normalize(features[torch.arange(len(features), device=features.device), seeds].mean(dim=0), dim=0)
