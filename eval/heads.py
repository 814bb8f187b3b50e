"""How a picture and a text are compared: by pooled features, by tokens, or by the picture as the text sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.kernels.late import PadMax
from vlp.token_scores import scores_of_image, scores_of_text, token_scores
from vlp.token_store import ImageTokens, TextTokens

Head = Literal["global", "tokens", "conditioned"]
HEADS: tuple[Head, ...] = ("global", "tokens", "conditioned")
Side = Literal["image", "text"]
_NUMBERS = 1 << 22  # of what a block of pictures holds for all its texts


def file_name(stem: str, head: Head) -> str:
    """The name of a benchmark's file; those of several heads can stand in one folder."""
    return f"{stem}.json" if head == "global" else f"{stem}_{head}.json"


class Pairs(Protocol):
    """Similarities of N pictures with M texts, made for the queries that ask."""

    def one(self, side: Side, query: int, candidates: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """Of one picture (side "image") or text with some of the other side."""

    def all(self, side: Side, queries: Int[Tensor, "q"]) -> Float[Tensor, "q G"]:
        """Of some pictures or texts with the whole other side."""


@dataclass(frozen=True)
class ByTokens:
    """FILIP: texts rank pictures by the mean over words of the best patch, pictures rank texts the other way round."""

    image: ImageTokens
    text: TextTokens
    pad_max: PadMax = "exclude"
    device: torch.device | str = "cpu"

    def one(self, side: Side, query: int, candidates: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        text, mask = self.text.tokens, self.text.mask
        if side == "text":
            return scores_of_text(self.image.tokens[candidates], text[query, mask[query]], device=self.device)
        return scores_of_image(
            self.image.tokens[query], text[candidates], mask[candidates], pad_max=self.pad_max, device=self.device
        )

    def all(self, side: Side, queries: Int[Tensor, "q"]) -> Float[Tensor, "q G"]:
        image, text, mask = self.image.tokens, self.text.tokens, self.text.mask
        if side == "image":
            return token_scores(image[queries], text, mask, want="rows", pad_max=self.pad_max, device=self.device)
        return token_scores(image, text[queries], mask[queries], want="columns", device=self.device).T


@dataclass(frozen=True)
class Conditioned:
    """FLAIR: the cosine of a text with the picture's patches pooled by attention whose query is that text."""

    image: Float[Tensor, "N P D"]
    text: Float[Tensor, "M D"]
    pooling: Any  # `condition(patches [B, P, D], text [T, D] or [B, T, D]) -> unit [B, T, D]`
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, dual: Any, image: Tensor, text: Tensor, *, device: torch.device | str = "cpu") -> Conditioned:
        """With the attention layer that the model's run has trained."""
        pooling = dict(getattr(dual, "heads", {})).get("flair")
        if pooling is None:
            raise ValueError(
                "head: conditioned needs the attention layer of a run that trained the loss flair, which this model "
                "does not have; use head: global or tokens"
            )
        return cls(image, text, pooling, device)

    def one(self, side: Side, query: int, candidates: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        if side == "text":
            return self._products(self.image[candidates], self.text[query][None])[:, 0]
        return self._products(self.image[query][None], self.text[candidates])[0]

    def all(self, side: Side, queries: Int[Tensor, "q"]) -> Float[Tensor, "q G"]:
        if side == "image":
            return self._products(self.image[queries], self.text)
        return self._products(self.image, self.text[queries]).T

    def given(self, rows: Sequence[int]) -> Float[Tensor, "n"]:
        """Of picture `rows[i]` with text i."""
        found = []
        for place, text in zip(torch.tensor(rows).split(self._size(1)), self.text.split(self._size(1))):
            found.append(self._block(self.image[place], text[:, None].to(self.device).float())[:, 0])
        return torch.cat(found)

    def _products(self, image: Float[Tensor, "a P D"], text: Float[Tensor, "m D"]) -> Float[Tensor, "a m"]:
        text = text.to(self.device).float()
        return torch.cat([self._block(part, text) for part in image.split(self._size(len(text)))])

    @torch.no_grad()
    def _block(self, image: Tensor, text: Tensor) -> Tensor:
        seen: Tensor = self.pooling.condition(image.to(self.device).float(), text)
        return (seen * text).sum(-1).cpu()

    def _size(self, num_texts: int) -> int:
        patches, width = self.image.shape[1:]
        return max(1, _NUMBERS // max(1, patches * width + num_texts * (4 * width + patches)))
