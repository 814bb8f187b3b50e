"""The whole vocabulary: the values that cross borders, and the protocols that parts fulfil.

Letters for shapes, here and everywhere: B pairs, K captions an image, T text tokens, P patches,
D joint width, N = world * B global batch, C classes, H and W picture height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

UNLABELLED = 1 << 40  # labels from here on are unique to one sample: 2^40 + source offset + sample index


class BadSampleError(ValueError):
    """A sample that cannot be used: `reason` is counted (snake_case, few distinct values), `detail` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:  # survives the way back from a loader worker
        return type(self), (self.reason, self.detail)


class Skip(NamedTuple):
    """One sample that was left out, and why: one line of skips.jsonl."""

    reason: str
    source: str
    shard: str
    key: str
    detail: str = ""
    epoch: int = -1  # the source's
    position: int = -1  # index of the sample in its source; with `epoch` the slot left empty; -1: there are no slots


@dataclass(slots=True)
class Sample:
    """One record as it lies in its source: raw bytes and where they came from."""

    key: str
    members: dict[str, bytes]  # "jpg" -> bytes, "json" -> bytes, "txt", "cls", ... by file extension
    shard: str  # file, folder or data set name, for messages
    index: int  # position of the sample in its source, 0-based, the same in every epoch


@dataclass(frozen=True, slots=True)
class Batch:
    """What came off the shards: B pairs with K caption slots each."""

    image: Tensor  # uint8 [B, 3, H, W] until the device; the model turns it into floats and normalises once
    text: Tensor  # long [B, K, T]; T is the longest caption here, rounded up to 8
    token_mask: Tensor  # bool [B, K, T]; positions up to and including the end token
    caption_mask: Tensor  # bool [B, K]; real captions
    valid: Tensor  # bool [B]; False: a slot without a readable sample; its row and column leave every loss
    label: Tensor  # long [B]; equal labels are positives
    source: Tensor  # long [B]; index of the mixture's source
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # columns a part asked for, batch dimension first
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # what companions hold without a batch dimension: queues
    keys: tuple[str, ...] = ()  # "shard:key" of every slot, for messages; empty string for an empty slot
    skips: tuple[Skip, ...] = ()  # samples found bad while this batch was made
    notes: tuple[str, ...] = ()  # what was done to samples that stayed, one word each time: "caption_cut"

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The same batch with every tensor on `device`."""
        memory = {name: t.to(device, non_blocking=non_blocking) for name, t in self.memory.items()}
        return replace(self._map(lambda t: t.to(device, non_blocking=non_blocking)), memory=memory)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by DataLoader's pin thread)."""
        return self._map(lambda t: t.pin_memory())

    def __getstate__(self) -> dict[str, Any]:
        """What a loader worker sends: a tensor is a handshake of two processes, so small ones go as plain bytes."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: {key: _sent(one) for key, one in value.items()} if isinstance(value, Mapping) else _sent(value)
            for name, value in state.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            came = {key: _came(one) for key, one in value.items()} if isinstance(value, Mapping) else _came(value)
            object.__setattr__(self, name, came)

    def __len__(self) -> int:
        return int(self.image.shape[0])

    def rows(self, start: int, stop: int) -> Batch:
        """Slots start..stop of the batch, views of the same memory; skips and notes stay with the first rows."""
        part = self._map(lambda t: t[start:stop])
        skips, notes = (self.skips, self.notes) if start == 0 else ((), ())
        return replace(part, keys=self.keys[start:stop], skips=skips, notes=notes)

    def _map(self, fn: Any) -> Batch:
        tensors = {name: fn(getattr(self, name)) for name in _BATCH_TENSORS}
        return replace(self, **tensors, extra={name: fn(value) for name, value in self.extra.items()})

    def plus(self, extra: Mapping[str, Tensor], memory: Mapping[str, Tensor] | None = None) -> Batch:
        """The same batch with more columns, and more of what has no batch dimension."""
        return replace(self, extra={**self.extra, **extra}, memory={**self.memory, **(memory or {})})


def _sent(value: Any) -> Any:
    """An array in place of a tensor that is small, on the CPU and of a type that numpy knows."""
    small = isinstance(value, Tensor) and value.device.type == "cpu" and value.nbytes <= _SMALL
    return value.numpy() if small and value.dtype != torch.bfloat16 and not value.requires_grad else value


def _came(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


_SMALL = 1 << 16  # bytes: what a pipe takes at once
_BATCH_TENSORS = ("image", "text", "token_mask", "caption_mask", "valid", "label", "source")


class Features(NamedTuple):
    """What the model made of a batch; all feature rows have unit norm."""

    image: Tensor  # [B, D]
    text: Tensor  # [B, K, D]; rows of absent captions are zero
    scale: Tensor  # [1], already exponentiated
    bias: Tensor | None = None  # [1], sigmoid losses
    image_tokens: Tensor | None = None  # [B, P, D], only when a loss needs "image_tokens"
    text_tokens: Tensor | None = None  # [B, K, T, D], only when a loss needs "text_tokens"
    extra: Mapping[str, Tensor] = {}  # by name: what heads made, and a loss's own scale


class DualEncoder(Protocol):
    """Two towers with one `forward`, and the hooks that every prompt method needs."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def transform(self) -> ImageTransform: ...
    @property
    def image_blocks(self) -> Sequence[nn.Module]: ...
    @property
    def text_blocks(self) -> Sequence[nn.Module]: ...
    def __call__(self, batch: Batch) -> Features: ...
    def encode_image(self, image: Tensor) -> Tensor: ...
    def encode_text(self, ids: Tensor, mask: Tensor | None = None, prefix: Tensor | None = None) -> Tensor: ...
    def embed(self, ids: Tensor) -> Tensor: ...
    def encode_embeds(self, embeds: Tensor, mask: Tensor, end: Tensor) -> Tensor: ...


class Tokenizer(Protocol):
    """Text to token ids. `pad` fills a row after its end token."""

    context: int
    vocab_size: int
    pad: int
    fingerprint: str  # changes when any id could change

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, start and end tokens included, cut to `context`, not padded."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of ids each text has before it is cut: the share above `context` is the share of cut captions."""

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Padded ids, long [n, context], as open_clip's tokenizers return them."""


class ImageTransform(Protocol):
    """Picture bytes (or a PIL image) to uint8 [3, H, W], and the constants that normalise it later."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...
    def __call__(self, picture: Any) -> Tensor: ...


class Head(Protocol):
    """A module that a loss asked for: Dual owns it and runs it inside its one forward."""

    def __call__(self, batch: Batch, towers: Any) -> dict[str, Tensor]: ...


class Companion(Protocol):
    """Memory of a run beside the model: momentum copy, queue, teacher, moving average.

    `before_step` only reads its memory and fills `batch.extra` (rows) and `batch.memory` (queues and the like);
    `after_step`, which gets the batch that `before_step` filled, is where memory changes: some batches are passed
    through and thrown away. One that averages weights has `applied(model)`, a `with` block that swaps them in.
    """

    def before_step(self, batch: Batch, model: nn.Module) -> Batch: ...
    def after_step(self, model: nn.Module, *, step: int, batch: Batch) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Classifier(Protocol):
    """Logits [B, C] from what it needs: "image", "features" or "regions"."""

    needs: str
    names: Sequence[str]

    def __call__(self, inputs: Tensor) -> Tensor: ...


class Metric(Protocol):
    """A state of sums: updated batch by batch, merged over ranks, computed once."""

    def update(self, *args: Any, **kwargs: Any) -> None: ...
    def merge(self, other: Any) -> None: ...
    def compute(self) -> dict[str, float]: ...


@runtime_checkable
class Benchmark(Protocol):
    """One row of results: `run(model)` returns metric name to value."""

    def run(self, model: Any) -> dict[str, float]: ...


class Tool(Protocol):
    """A data tool: table or shards in, table, keep-list or shards out."""

    def run(self, inputs: Iterable[Path], out: Path) -> dict[str, Any]: ...
