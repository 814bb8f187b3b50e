"""What a teacher thinks of the batch, learned: its similarities, its features, or how its own sides relate."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full
from vlp.kernels.recompute import by_rows
from vlp.losses.contrast import Pool, global_mean, pool
from vlp.losses.loss import Loss, column
from vlp.types import Batch, Features

ADVICE = (
    "add a companion that makes it ({name: teacher, pretrained: ...}), or store the teacher's features in the shards "
    "(vlp data teach) and name their columns (data.sources[].columns, and image_column, text_column of the loss)"
)


class TeacherPool(NamedTuple):
    """Unit features of the teacher, of all ranks, without gradient; zero where there is no picture or caption."""

    image: Tensor  # [N, E]
    text: Tensor  # [N, K, E]


class FromTeacher(Loss):
    """A loss that reads a teacher's features, from a live companion or from columns of the shards."""

    image_column: str = Field("teacher/image", description="column of the teacher's picture features [B, E]")
    text_column: str = Field("teacher/text", description="column of its caption features [B, K, E]")


def teacher_rows(batch: Batch, image_column: str, text_column: str) -> TeacherPool:
    """This rank's part of a TeacherPool; ValueError where columns do not fit the batch or each other."""
    image = column(batch, image_column, advice=ADVICE).detach()
    text = column(batch, text_column, advice=ADVICE).detach()
    (B, K), width = batch.caption_mask.shape, image.shape[-1]
    if image.shape != (B, width) or text.shape != (B, K, width):
        raise ValueError(
            f'columns "{image_column}" {list(image.shape)} and "{text_column}" {list(text.shape)} should be '
            f"[{B}, E] and [{B}, {K}, E] of one teacher's joint space"
        )
    real = batch.valid[:, None] & batch.caption_mask
    unit = (normalize(full(rows), dim=-1) for rows in (image, text))
    return TeacherPool(
        *(torch.where(seen[..., None], rows, 0.0) for rows, seen in zip(unit, (batch.valid, real), strict=True))
    )


def teacher_pool(batch: Batch, image_column: str, text_column: str) -> TeacherPool:
    """The teacher's features of all ranks: one collective."""
    own = teacher_rows(batch, image_column, text_column)
    rows = dist.gather_const(torch.cat([own.image[:, None], own.text], 1))
    return TeacherPool(rows[:, 0], rows[:, 1:])


def divergence(
    teacher: Float[Tensor, "B N"], student: Float[Tensor, "B N"], seen: Bool[Tensor, "B N"], *, entropy: bool
) -> Float[Tensor, "B"]:
    """Cross entropy of the student's softmax against the teacher's over what is seen; less the teacher's own: KL."""
    lowest = torch.finfo(student.dtype).min
    target = teacher.masked_fill(~seen, lowest).log_softmax(1)
    apart = -student.masked_fill(~seen, lowest).log_softmax(1)
    if entropy:
        apart = apart + target
    return (target.exp() * apart.masked_fill(~seen, 0.0)).sum(1)


class LogitDistill(FromTeacher):
    """Distillation of similarities (open_clip's DistillClipLoss; with stored features DataCompDR, arXiv 2311.17049).

    -sum_j softmax(s_T u_i.v)_j log softmax(s x_i.y)_j over the global batch, both directions, half each; u, v the
    teacher's features and s_T its own scale: `teacher_scale`, else what the companion or the shards say in
    `scale_column`. DataCompDR's mixture
    (1 - lambda) CLIP + lambda distillation is made with `weight`. K captions an image as in `infonce`; equal labels
    have no part in it. Our deviation: blocks of rows, the same values.
    """

    teacher_scale: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of scale_column")
    scale_column: str = Field("teacher/scale", description="column of the teacher's scale, [B] if stored, [1] if live")
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "distill"."""
        everyone = pool(features, batch)
        teacher = teacher_pool(batch, self.image_column, self.text_column)
        known = self._teacher_scale(batch, everyone.image)[:, None]
        scale = full(features.scale)
        slots = []
        for k in range(everyone.text.shape[1]):
            image, text = (everyone.image, teacher.image), (everyone.text[:, k], teacher.text[:, k])
            slots += [
                self._direction(image, text, scale, known, everyone, k),
                self._direction(text, image, scale, known, everyone, k),
            ]
        return {"distill": global_mean(torch.stack(slots).sum() / 2, everyone.num_captions)}

    def _teacher_scale(self, batch: Batch, like: Tensor) -> Float[Tensor, "B"]:
        """That of each of this rank's rows."""
        if self.teacher_scale is not None:
            return like.new_full((len(batch),), self.teacher_scale)
        advice = (
            "set teacher_scale, add the companion {name: teacher, pretrained: ...}, or take the stored one into the "
            'columns of the source: {field: "teacher.npz:scale"} (`vlp data teach` stores it)'
        )
        known = column(batch, self.scale_column, advice=advice).detach().to(like).flatten().expand(len(batch))
        return torch.where(batch.valid, known, 1.0)

    def _direction(
        self,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor],
        scale: Float[Tensor, "1"],
        known: Float[Tensor, "B 1"],
        everyone: Pool,
        k: int,
    ) -> Float[Tensor, ""]:
        """Sum of the cross entropies of this rank's rows; student's and teacher's features stand beside each other."""
        own, valid = everyone.own, everyone.real[:, k]
        (x, u), (y, v) = rows, columns
        u, v = u.to(x), v.to(x)

        def tile(x: Tensor, u: Tensor, known: Tensor) -> Tensor:
            seen = valid.expand(len(x), -1)
            return divergence(known * u @ v.T, scale * x @ y.T, seen, entropy=False)

        found = by_rows(tile, x[own], u[own], known, num_columns=len(y), impl=self.impl, block=self.block)
        return torch.where(valid[own], found, 0.0).sum()


class RelationDistill(FromTeacher):
    """Distillation of how pictures relate to pictures and captions to captions (topology of CTP, arXiv 2308.07146).

    KL(softmax(u_i.u / tau) || softmax(x_i.x / tau)) over the global batch without i itself, and the same of captions in
    each slot; the mean of both sides. tau is fixed, and the same for both. A row without another one gives 0. Our
    deviation: the paper's third relation, pictures to captions, is `distill`.
    """

    temperature: float = Field(0.07, gt=0.0, allow_inf_nan=False)
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "image" and "text", half of each."""
        everyone = pool(features, batch)
        teacher = teacher_pool(batch, self.image_column, self.text_column)
        valid = dist.gather_const(batch.valid)
        image = self._side(everyone.image, teacher.image, valid, everyone.own)
        texts = [
            self._side(everyone.text[:, k], teacher.text[:, k], everyone.real[:, k], everyone.own)
            for k in range(everyone.text.shape[1])
        ]
        return {
            "image": global_mean(image / 2, valid.sum().clamp(min=1).to(image)),
            "text": global_mean(torch.stack(texts).sum() / 2, everyone.num_captions),
        }

    def _side(
        self, x: Float[Tensor, "N D"], u: Float[Tensor, "N E"], valid: Bool[Tensor, "N"], own: slice
    ) -> Float[Tensor, ""]:
        """Sum of the divergences of this rank's rows."""
        place = torch.arange(len(x), device=x.device)
        u = u.to(x)

        def tile(rows: Tensor, known: Tensor, at: Tensor) -> Tensor:
            seen = (at[:, None] != place) & valid
            student, teacher = rows @ x.T / self.temperature, known @ u.T / self.temperature
            return divergence(teacher, student, seen, entropy=True)

        found = by_rows(tile, x[own], u[own], place[own], num_columns=len(x), impl=self.impl, block=self.block)
        return torch.where(valid[own], found, 0.0).sum()


class FeatureDistill(FromTeacher):
    """Distillation of features (CLIP-KD, arXiv 2307.12732): each sample by itself, no negatives.

    `mse`: |P x_i - u_i|^2 of pictures plus the same of captions, u the teacher's unit features; `cosine`: 1 - cosine
    instead. P is a linear head, made with `teacher_width`; without it widths must be equal, and mse is twice cosine.
    Our deviation: P has no bias.
    """

    kind: Literal["mse", "cosine"] = "mse"
    teacher_width: int | None = Field(None, ge=1, description="E, where a linear head should lead to it")

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        return {} if self.teacher_width is None else {"feature_distill": Projections(dual.dim, self.teacher_width)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "image" and "text"."""
        teacher = teacher_rows(batch, self.image_column, self.text_column)
        image, text = features.image, features.text
        if self.teacher_width is not None:
            image, text = features.extra["feature_distill/image"], features.extra["feature_distill/text"]
        if image.shape[-1] != teacher.image.shape[-1]:
            raise ValueError(
                f"feature_distill: the student's features have width {image.shape[-1]}, the teacher's "
                f"{teacher.image.shape[-1]}; set teacher_width: {teacher.image.shape[-1]}"
            )
        real = batch.valid[:, None] & batch.caption_mask
        counts = dist.total(torch.stack([batch.valid.sum(), real.sum()])).clamp(min=1)
        return {
            "image": global_mean(self._apart(image, teacher.image, batch.valid), counts[0].to(teacher.image)),
            "text": global_mean(self._apart(text, teacher.text, real), counts[1].to(teacher.image)),
        }

    def _apart(self, x: Tensor, u: Tensor, seen: Tensor) -> Tensor:
        """Sum over what is seen of the distances."""
        x = torch.where(seen[..., None], full(x), 0.0)
        each = (x - u).square().sum(-1) if self.kind == "mse" else 1 - (normalize(x, dim=-1) * u).sum(-1)
        return torch.where(seen, each, 0.0).sum()


class Projections(nn.Module):
    """Linear maps of pictures and captions into the teacher's space."""

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        self.image = nn.Linear(width, teacher_width, bias=False)
        self.text = nn.Linear(width, teacher_width, bias=False)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        """Columns "feature_distill/image" [B, E] and "feature_distill/text" [B, K, E]."""
        return {
            "feature_distill/image": self.image(towers.features.image),
            "feature_distill/text": self.text(towers.features.text),
        }
