"""Contrast that looks hardest at its hardest negatives, or not at all at those that are probably none."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from vlp.kernels.blocks import Block, Impl
from vlp.kernels.masked import Limit, masked_logsumexp
from vlp.losses.contrast import Pool, global_mean, pool, positive_counts, positive_sums
from vlp.losses.distill import TeacherPool, teacher_pool
from vlp.losses.loss import Loss
from vlp.losses.scale import scale_of
from vlp.types import Batch, Features

_OF_DROPPING = ("drop_by", "judge", "image_column", "text_column")  # settings of what drop_above leaves out


class HardNegative(Loss):
    """HN-NCE (DiHT, arXiv 2301.02280), for pictures and captions what arXiv 2010.04592 is for views.

    -s x_i.y_i + log(alpha exp(s x_i.y_i) + sum_{j != i} w_ij exp(s x_i.y_j)), both directions, half each, with w_ij =
    n_i exp(beta s x_i.y_j) / sum_{k != i} exp(beta s x_i.y_k), n_i the number of negatives of i. As in the authors'
    form gradients go through w. beta 0 and alpha 1 is `infonce`, beta 0 and alpha 0 is `dcl`.

    `drop_above` takes likely false negatives out of the denominator: those more similar to the row than its own pair
    plus `drop_above` (`drop_by: margin`), or than `drop_above` itself (`drop_by: similarity`). `judge` says whose
    cosines decide: the model's own, without gradient, or the teacher's (better: judged by itself, a row whose pair is
    the least similar of all loses every negative by the margin, and with alpha 1 its gradient; such pairs are the ones
    to learn from). Our deviations: pairs with equal labels are
    positives: alpha weighs their sum, and the pull is the mean over them. With alpha 0 a row without negatives gives 0.
    """

    alpha: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="weight of the positives in the denominator")
    beta: float = Field(0.25, ge=0.0, allow_inf_nan=False, description="0: all negatives weigh alike")
    drop_above: float | None = Field(None, allow_inf_nan=False, description="leaves out negatives above this")
    drop_by: Literal["margin", "similarity"] = "margin"
    judge: Literal["own", "teacher"] = Field(
        "own", description="whose cosines decide; `own` leaves a row that is wrong about its pair without gradient"
    )
    image_column: str = Field("teacher/image", description="column of the judge's picture features")
    text_column: str = Field("teacher/text", description="column of the judge's caption features")
    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    impl: Impl = "auto"
    block: Block = None

    @model_validator(mode="after")
    def _settings_that_do_something(self) -> HardNegative:
        changed = [name for name in _OF_DROPPING if getattr(self, name) != type(self).model_fields[name].default]
        if changed and self.drop_above is None:
            raise ValueError(f"{', '.join(changed)}: only with drop_above, without which no negative is left out")
        columns = [name for name in changed if name.endswith("_column")]
        if columns and self.judge == "own":
            raise ValueError(f"{', '.join(columns)}: only with judge: teacher; own similarities read no columns")
        return self

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        everyone = pool(features, batch)
        judges = self._judges(everyone, batch)
        scale = scale_of(features, self.temperature)
        slots = []
        for k in range(everyone.text.shape[1]):
            image, text, valid = everyone.image, everyone.text[:, k], everyone.real[:, k]
            u, v = (judges.image, judges.text[:, k]) if judges is not None else (None, None)
            slots += [
                self._direction(image, text, scale, everyone, valid, self._limit(u, v, everyone.own)),
                self._direction(text, image, scale, everyone, valid, self._limit(v, u, everyone.own)),
            ]
        return {"contrast": global_mean(torch.stack(slots).sum() / 2, everyone.num_captions)}

    def _judges(self, everyone: Pool, batch: Batch) -> TeacherPool | None:
        if self.drop_above is None:
            return None
        if self.judge == "teacher":
            return teacher_pool(batch, self.image_column, self.text_column)
        return TeacherPool(everyone.image.detach(), everyone.text.detach())

    def _limit(self, u: Tensor | None, v: Tensor | None, own: slice) -> Limit | None:
        """What a negative of each of our rows may at most have, [B], and of whom."""
        if self.drop_above is None or u is None or v is None:
            return None
        pair = (u[own] * v[own]).sum(1) if self.drop_by == "margin" else u.new_zeros(own.stop - own.start)
        return Limit(u[own], v, pair + self.drop_above)

    def _direction(
        self,
        x: Float[Tensor, "N D"],
        y: Float[Tensor, "N D"],
        scale: Float[Tensor, "1"],
        everyone: Pool,
        valid: Bool[Tensor, "N"],
        limit: Limit | None,
    ) -> Float[Tensor, ""]:
        """Sum over this rank's rows of the losses against columns y."""
        group, own = everyone.group, everyone.own
        over = partial(
            masked_logsumexp, x[own], y, row_group=group[own], column_group=group, column_valid=valid,
            impl=self.impl, block=self.block,
        )  # fmt: skip
        if self.beta == 0:
            sums, count = over(scale, limit=limit)
        else:  # log of n sum_j e^(beta l_j) e^(l_j) / sum_k e^(beta l_k)
            harder, count = over(scale * (1 + self.beta), limit=limit)
            sums = harder - over(scale * self.beta, limit=limit).sums + count.clamp(min=1).log()
        some = count > 0
        if self.alpha > 0:
            positives = over(scale, same=True).sums + math.log(self.alpha)
            sums = torch.where(some, torch.logaddexp(positives, sums), positives)
            some = valid[own]
        counts = positive_counts(valid, group=group, own=own).clamp(min=1)
        columns = torch.where(valid[:, None], y, 0.0)
        pull = scale * (x[own] * positive_sums(columns, group=group, own=own)).sum(1) / counts
        return torch.where(valid[own] & some, sums - pull, 0.0).sum()
