"""Tokens of many pictures or texts in half precision: one allocation of known size, filled batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlp import dist
from vlp.types import Skip

_EXCHANGED = 256  # rows that a process hands to the others at once


class ImageTokens(NamedTuple):
    """Features and tokens of the pictures that could be read, which ones they are, and why the others could not."""

    features: Float[Tensor, "n D"]
    tokens: Float[Tensor, "n P D"]  # fp16, unit norm
    kept: list[int]  # positions in what was given, ascending
    skips: list[Skip]

    def rows(self, rows: Tensor) -> ImageTokens:
        """Some of the pictures, by their row here."""
        kept = [self.kept[row] for row in rows.tolist()]
        return ImageTokens(self.features[rows], self.tokens[rows], kept, self.skips)


class TextTokens(NamedTuple):
    """Features, tokens and the mask of real tokens; texts that do not fill the context have padding behind them."""

    features: Float[Tensor, "n D"]
    tokens: Float[Tensor, "n T D"]  # fp16, unit norm, zero behind the end
    mask: Bool[Tensor, "n T"]


class TokenStore:
    """Features and tokens of `rows` things, at most `limit_gb` of them; several processes end up with the same."""

    def __init__(self, rows: int, *, limit_gb: float, what: str, length: int | None = None) -> None:
        self.rows, self.limit_gb, self.what = rows, limit_gb, what
        self.length = length  # tokens a row; None: as many as the first rows have
        self.features, self.tokens = torch.empty(0, 0), torch.empty(0, 0, 0, dtype=torch.float16)
        self.mine: list[int] = []

    def add(self, places: Sequence[int], features: Tensor, tokens: Tensor) -> None:
        """Puts features [b, D] and tokens [b, t, D] at their places; tokens beyond `length` are padding and are cut."""
        if not self.mine:
            self._allocate(tuple(tokens.shape[1:]))
        t = min(tokens.shape[1], self.tokens.shape[1])
        self.features[list(places)] = features
        self.tokens[list(places), :t] = tokens[:, :t].half()
        self.mine += places

    def share(self) -> None:
        """Every process gets the rows of all, a few at a time."""
        shapes = dist.gather_object(tuple(self.tokens.shape[1:]) if self.mine else None)
        known = next((shape for shape in shapes if shape is not None), None)
        if dist.world() == 1 or known is None:
            return
        if not self.mine:
            self._allocate(known)
        counts = dist.gather_object(len(self.mine))
        for start in range(0, max(counts), _EXCHANGED):
            places = self.mine[start : start + _EXCHANGED]
            for theirs, features, tokens in dist.gather_object((places, self.features[places], self.tokens[places])):
                self.features[theirs], self.tokens[theirs] = features, tokens

    def real(self) -> Tensor:
        """Bool [rows, t]: where a token stands; padding is zero, and no unit vector is."""
        return torch.cat([(part != 0).any(dim=-1) for part in self.tokens.split(_EXCHANGED)])

    def keep(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features and tokens of these ascending places, moved together in the memory they lie in."""
        for new, old in enumerate(places):
            if new != old:
                self.features[new], self.tokens[new] = self.features[old], self.tokens[old]
        return self.features[: len(places)], self.tokens[: len(places)]

    def _allocate(self, shape: tuple[int, ...]) -> None:
        length, dim = self.length or shape[0], shape[1]
        size = self.rows * length * dim * 2 / 1e9
        if size > self.limit_gb:
            raise ValueError(
                f"tokens of {self.rows} {self.what} take {size:.3g} GB ({length} of width {dim} each, fp16), more than "
                f"token_gb = {self.limit_gb:g}: raise it, limit the data, or use the pooled head (head: global)"
            )
        with torch.inference_mode(False):
            self.features = torch.zeros(self.rows, dim)
            self.tokens = torch.zeros(self.rows, length, dim, dtype=torch.float16)
