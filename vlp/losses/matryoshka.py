"""Features that can be cut: a loss on their first dimensions, at several widths at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp.kernels.blocks import full
from vlp.losses.loss import Loss
from vlp.registry import Named
from vlp.types import Batch, Features

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Matryoshka(Loss):
    """Matryoshka representations (arXiv 2205.13147): a loss on the first m dimensions, for every m of `widths`.

    Pictures, captions and their tokens are cut and made unit again; the terms of `of` are averaged over widths, or
    added with `shares`. Our deviation: the mean where the paper adds with weights of 1, so that `weight` means what it
    means for `of` alone. Scale and bias are shared by all widths. What heads, momentum copy and queue made is cut where
    the inner loss says that it lies in the joint space (`joint`); a loss that does not look at the joint space, or
    whose head needs its whole width, is refused.
    """

    of: Annotated[Loss, Named("vlp.losses:LOSSES")] = Field(description="the loss, whose needs it has")
    widths: tuple[Width, ...] = Field(min_length=1, description="numbers of dimensions")
    shares: tuple[Share, ...] | None = Field(None, description="weight of each width; default: the mean")

    @model_validator(mode="after")
    def _fits(self) -> Matryoshka:
        if len(set(self.widths)) < len(self.widths):
            raise ValueError(f"widths {list(self.widths)}: each only once")
        if self.shares is not None and len(self.shares) != len(self.widths):
            raise ValueError(f"shares: {len(self.shares)} for {len(self.widths)} widths; give one each, or none")
        if isinstance(self.of, Matryoshka) and max(self.of.widths) > min(self.widths):
            raise ValueError(f"of.widths {list(self.of.widths)}: wider than {min(self.widths)}, to which widths cut")
        if self.of.weight != 1:
            raise ValueError(f"of.weight is {self.of.weight}, and would be lost; set weight of matryoshka itself")
        if not self.of.cuts:
            raise ValueError(
                f"of: {self.of.name} cannot be cut: it reads no pooled features or tokens of the joint space, or its "
                "head needs their whole width; list it beside matryoshka, not inside"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the inner loss needs."""
        return self.of.needs

    @property
    def batchless(self) -> frozenset[str]:  # type: ignore[override]
        """Those of the inner loss."""
        return self.of.batchless

    @property
    def joint(self) -> frozenset[str]:  # type: ignore[override]
        """Those of the inner loss."""
        return self.of.joint

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """Heads of the inner loss; ValueError for a width beyond the model's."""
        if max(self.widths) > dual.dim:
            raise ValueError(f"matryoshka: widths {list(self.widths)}, but the joint space has {dual.dim} dimensions")
        return self.of.heads(dual)

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms of the inner loss."""
        found = [self.of(self._cut(features, batch, width), self._cut_columns(batch, width)) for width in self.widths]
        shares = self.shares or (1 / len(self.widths),) * len(self.widths)
        return {
            name: torch.stack(
                [share * terms[name].reshape(()) for share, terms in zip(shares, found, strict=True)]
            ).sum()
            for name in found[0]
        }

    def _cut(self, features: Features, batch: Batch, width: int) -> Features:
        real = batch.valid[:, None] & batch.caption_mask
        return features._replace(
            image=_unit(features.image, width, batch.valid[:, None]),
            text=_unit(features.text, width, real[..., None]),
            image_tokens=_tokens(features.image_tokens, width, batch.valid[:, None, None]),
            text_tokens=_tokens(features.text_tokens, width, real[..., None, None]),
            extra={**features.extra, **self._rows(features.extra, batch, width)},
        )

    def _cut_columns(self, batch: Batch, width: int) -> Batch:
        """The batch with columns and queues of the joint space cut, too."""
        queues = {name: x for name, x in batch.memory.items() if name in self.joint}
        memory = {name: normalize(full(x[..., :width]), dim=-1) for name, x in queues.items()}
        return batch.plus(self._rows(batch.extra, batch, width), memory)

    def _rows(self, columns: Mapping[str, Tensor], batch: Batch, width: int) -> dict[str, Tensor]:
        """Those of the joint space, cut; [B, ..., width]."""
        return {
            name: _unit(x, width, batch.valid.reshape(-1, *[1] * (x.ndim - 1)))
            for name, x in columns.items()
            if name in self.joint
        }


def _tokens(x: Tensor | None, width: int, real: Tensor) -> Tensor | None:
    return None if x is None else _unit(x, width, real)


def _unit(x: Tensor, width: int, real: Tensor) -> Tensor:
    """The first `width` dimensions, of unit norm; zeros where nothing is real, whatever stands there."""
    return normalize(torch.where(real, full(x[..., :width]), 0.0), dim=-1)
