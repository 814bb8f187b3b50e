"""A momentum copy of the towers, which makes targets, and a queue of what it made for earlier pairs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp import dist
from vlp.kernels.blocks import row_blocks
from vlp.models.dual import Dual
from vlp.registry import Part
from vlp.types import Batch

Output = Literal["image", "text", "view_image", "view_tokens"]
_APART = ("heads.", "logit_scale", "logit_bias")  # no part of the towers


class Momentum(Part):
    """A copy of both towers whose weights follow the model's: copy <- m copy + (1 - m) model (MoCo, arXiv 1911.05722).

    Before each step it looks at the batch and adds, without gradient, unit features under the names asked for in
    `outputs`: "momentum/image" [B, D], "momentum/text" [B, K, D], and of the extra views (`data.views`)
    "momentum/view_image" [B, V, D] and "momentum/view_tokens" [B, V, P, D]. Empty slots and absent captions are zero.

    Deviation: the copy runs in eval mode, on running statistics where the towers have BatchNorm, without dropout.
    """

    momentum: float = Field(0.995, ge=0.0, le=1.0, description="share of itself that the copy keeps at a step")
    outputs: tuple[Output, ...] = Field(("image", "text"), min_length=1)
    precision: Literal["no", "bf16"] = Field("no", description="in which the copy runs")

    def build(self, dual: Dual) -> MomentumState:
        return MomentumState(self, dual)


class MomentumState:
    """The copy. Frozen weights are not kept twice."""

    def __init__(self, settings: Momentum, dual: Dual) -> None:
        self.settings = settings
        self.copy = tower_copy(dual)
        self.copy.set_needs({"image_tokens"} if "view_tokens" in settings.outputs else ())
        self.names = [name for name, _ in moving(dual)]

    @torch.no_grad()
    def before_step(self, batch: Batch, model: nn.Module) -> Batch:
        """The batch with the copy's features."""
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=bf16):
            return batch.plus(dict(self._features(batch)))

    def _features(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        outputs = self.settings.outputs
        if "image" in outputs:
            yield "momentum/image", _blank(self.copy.encode_image(batch.image), batch.valid)
        if "text" in outputs:
            real = batch.valid[:, None] & batch.caption_mask
            yield "momentum/text", _blank(self._text(batch), real)
        if "view_image" in outputs or "view_tokens" in outputs:
            yield from self._views(batch)

    def _text(self, batch: Batch) -> Tensor:
        return self.copy._run_text(self.copy._captions(batch), batch.caption_mask.shape).pooled

    def _views(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        if "views" not in batch.extra:
            raise ValueError("the companion `momentum` is to look at extra views, but there are none; give data.views")
        views, outputs = batch.extra["views"], self.settings.outputs
        pictures = views.flatten(0, 1)
        out = self.copy.image_tower.run(self.copy.pixels(pictures), tokens="view_tokens" in outputs)
        for name, rows in (("view_image", out.pooled), ("view_tokens", out.tokens)):
            if name in outputs and rows is not None:
                unit = normalize(rows, dim=-1).unflatten(0, views.shape[:2])
                yield f"momentum/{name}", _blank(unit, batch.valid)

    @torch.no_grad()
    def after_step(self, model: nn.Module, *, step: int, batch: Batch) -> None:
        """Every weight a part of the way to the model's."""
        now = dict(moving(model))
        theirs = [now[name].detach() for name in self.names]
        torch._foreach_lerp_(self.weights(), theirs, 1 - self.settings.momentum)

    def weights(self) -> list[Tensor]:
        """The copy's tensors that move, in the order of `names`."""
        found = {**dict(self.copy.named_parameters()), **dict(self.copy.named_buffers())}
        return [found[name].detach() for name in self.names]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights(), strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if odd := sorted(state.keys() ^ set(self.names)):
            raise ValueError(
                f"momentum: {len(odd)} weights are not in both the checkpoint and the model: {', '.join(odd[:4])}"
            )
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def tower_copy(dual: Dual) -> Dual:
    """Both towers of `dual` once more, in eval mode and without gradient, without its heads.

    What is frozen in `dual` is shared with it, and so is the tokenizer.
    """
    shared: dict[int, Any] = {id(p): p for p in dual.parameters() if not p.requires_grad}
    shared |= {id(dual.heads): nn.ModuleDict(), id(dual.tokenizer_source): dual.tokenizer_source}
    result: Dual = copy.deepcopy(dual, shared)
    return result.requires_grad_(False).eval()


def moving(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Trained parameters and kept float buffers of both towers, by the names they have without a wrapper (DDP)."""
    inner: Any = getattr(model, "module", model)
    trained = [(name, p) for name, p in inner.named_parameters() if p.requires_grad]
    kept = set(inner.state_dict())
    buffers = [(name, b) for name, b in inner.named_buffers() if name in kept and b.is_floating_point()]
    return [(name, tensor) for name, tensor in trained + buffers if not name.startswith(_APART)]


def _blank(rows: Tensor, real: Tensor) -> Tensor:
    """Rows with zeros where nothing is real; `real` has the first dimensions of `rows`."""
    rows = rows.float() if rows.dtype is torch.bfloat16 else rows
    return torch.where(real.reshape(*real.shape, *[1] * (rows.ndim - real.ndim)), rows, 0.0)


class Queue(Part):
    """The newest `size` pairs of features of earlier steps, first in, first out (MoCo, arXiv 1911.05722).

    After each step every valid pair of the global batch enters, in its order: its row in the column `image`, its first
    real caption in the column `text`, its label, and which sample it is. Before each step the batch gets "queue/image"
    and "queue/text" [Q, D], "queue/label" [Q] and "queue/filled" bool [Q]. The same on every rank. An entry whose
    sample is in the global batch under another label, as another caption may give it, is not filled in that step: it
    would be a negative of itself.

    Beside `momentum` it stores what that made; without it `image` and `text` name columns that the data bring. None
    leaves a side out.
    """

    size: int = Field(4096, ge=1)
    image: str | None = Field("momentum/image", description="column [B, D] that enters")
    text: str | None = Field("momentum/text", description="column [B, D], or [B, K, D]: the first real caption of each")
    width: int | None = Field(None, ge=1, description="D of the columns; None: the model's joint space")

    def build(self, dual: Dual) -> QueueState:
        return QueueState(self, dual)


class QueueState:
    """A ring of rows."""

    def __init__(self, settings: Queue, dual: Dual) -> None:
        self.settings = settings
        like = dual.logit_scale.detach()
        width = settings.width or dual.dim
        self.rows = {
            side: like.new_zeros(settings.size, width) for side in ("image", "text") if getattr(settings, side)
        }
        if not self.rows:
            raise ValueError("the companion `queue` stores nothing; name a column for `image` or for `text`")
        self.label = torch.full((settings.size,), -1, device=like.device)
        self.sample = torch.full_like(self.label, -1)
        self.entered = 0  # pairs so far; the next one goes to this place, modulo the size

    def before_step(self, batch: Batch, model: nn.Module) -> Batch:
        """The batch with the queue beside it."""
        filled = torch.arange(self.settings.size, device=self.label.device) < self.entered
        filled &= ~self._relabelled(batch)
        sides = {f"queue/{side}": rows for side, rows in self.rows.items()}
        return batch.plus({}, {**sides, "queue/label": self.label, "queue/filled": filled})

    def _relabelled(self, batch: Batch) -> Tensor:
        """Entries whose sample is in the global batch under another label, bool [Q]."""
        sample, label, _ = _marks(batch, batch.valid)
        blocks = row_blocks(self.settings.size, max(1, len(sample)), block=None, device=label.device)
        found = [((self.sample[rows, None] == sample) & (self.label[rows, None] != label)).any(1) for rows in blocks]
        return torch.cat(found)

    @torch.no_grad()
    def after_step(self, model: nn.Module, *, step: int, batch: Batch) -> None:
        """The valid pairs of all ranks enter."""
        columns = {side: self._column(batch, side) for side in self.rows}
        wanted = batch.valid & (batch.caption_mask.any(1) if "text" in self.rows else True)
        sample, label, there = _marks(batch, wanted)
        skipped = max(0, len(label) - self.settings.size)
        place = torch.arange(self.entered + skipped, self.entered + len(label), device=label.device)
        place %= self.settings.size
        for side, rows in self.rows.items():
            rows[place] = dist.gather_const(columns[side])[there][skipped:].to(rows.dtype)
        self.label[place], self.sample[place] = label[skipped:], sample[skipped:]
        self.entered += len(label)

    def _column(self, batch: Batch, side: str) -> Tensor:
        """[B, D]; of captions the first real one."""
        name = getattr(self.settings, side)
        if name not in batch.extra:
            raise ValueError(
                f'the companion `queue` stores the column "{name}", which the batch lacks: add `momentum` '
                f"with outputs that name it, or name another column in its field `{side}`"
            )
        rows = batch.extra[name]
        if rows.ndim == 3:
            first = batch.caption_mask.int().argmax(1)
            rows = rows[torch.arange(len(rows), device=rows.device), first]
        if rows.shape[1] != self.rows[side].shape[1]:
            raise ValueError(f'queue: the column "{name}" has width {rows.shape[1]}; set width: {rows.shape[1]}')
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        marks = {"label": self.label, "sample": self.sample}
        return {**self.rows, **marks, "entered": torch.tensor(self.entered)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        mine = {**self.rows, "label": self.label, "sample": self.sample}
        for name, tensor in mine.items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"queue: {name} is {found} in the checkpoint, {tuple(tensor.shape)} in this run")
            tensor.copy_(state[name])
        self.entered = int(state["entered"])


def _marks(batch: Batch, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample and label of the wanted slots of all ranks, and which these are, [N]; one collective."""
    if "sample" not in batch.extra:
        raise ValueError('queue: no column "sample", to know a sample again by; the batches of a Feed have it')
    marks = dist.gather_const(torch.stack([batch.extra["sample"], batch.label, wanted], 1))
    there = marks[:, 2].bool()
    return marks[there, 0], marks[there, 1], there
