"""The `data:` block of a run."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from vlp.data.augment import Augment
from vlp.data.columns import Column
from vlp.data.decode import Limits
from vlp.data.order import MAX_STREAMS, num_streams
from vlp.data.remote import ShardCache
from vlp.data.sources import Source
from vlp.registry import Named, Part

SourcePart = Annotated[Source, Named("vlp.data:SOURCES")]


class Data(Part):
    """What is read, how it is mixed into global batches of `batch_size` pairs, and how hard the loader works."""

    sources: Annotated[tuple[SourcePart, ...], Field(min_length=1)]
    batch_size: int = Field(256, ge=1, description="N, pairs of one global batch over all processes")
    streams: int | None = Field(None, ge=1, description=f"C; default: the largest divisor of N up to {MAX_STREAMS}")
    window: int = Field(8, ge=1, description="shards whose samples are mixed with each other")
    single_source: bool = Field(False, description="every batch from one source only")
    mixture_block: int = Field(128, ge=1, description="steps after which every source has had exactly its share")
    captions: int = Field(1, ge=1, description="K, caption slots of a picture")
    same_caption_same_label: bool = Field(False, description="pairs with equal captions are positives of each other")
    augment: Augment | None = Augment()
    views: tuple[Augment, ...] = Field(
        (), description="further pictures of each sample, batch.extra views [B, V, 3, H, W]"
    )
    limits: Limits = Limits()
    workers: int = Field(2, ge=0, description="loader processes of each rank; no part of the order")
    prefetch: int = Field(4, ge=1, description="batches each worker makes ahead")
    timeout: float = Field(300.0, gt=0, description="seconds without a batch after which the loader gives up")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="share of unreadable samples that stops the run")
    cache: ShardCache = ShardCache()

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.streams is not None and self.batch_size % self.streams:
            raise ValueError(f"streams: {self.streams} does not divide batch_size: {self.batch_size}")
        counts = [stage.count if (stage := source.caption_stage()) else 1 for source in self.sources]
        if max(counts) > self.captions:
            raise ValueError(f"a source gives {max(counts)} captions a picture, captions: {self.captions} holds fewer")
        if max(counts) < self.captions:
            raise ValueError(f"captions: {self.captions}, but no source gives more than {max(counts)} (captions.count)")
        self._check_columns()
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("give every source a weight, or none (then each has the weight of its number of samples)")
        return self

    @property
    def num_streams(self) -> int:
        """C, the canonical streams of the run."""
        return self.streams or num_streams(self.batch_size)

    @property
    def negatives(self) -> int:
        """M, false captions a picture."""
        return max(stage.negatives if (stage := source.caption_stage()) else 0 for source in self.sources)

    def blank(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """What a slot without a sample has in every column of `batch.extra` that the samples bring: zeros."""
        blank = {name: column.zeros(self.captions) for name, column in self.sources[0].columns.items()}
        if self.views:
            blank["views"] = torch.zeros(len(self.views), 3, *size, dtype=torch.uint8)
        return blank

    def _check_columns(self) -> None:
        """ValueError naming the source whose columns are not those of the others, or whose crop nothing uses."""
        wanted = {name: column for source in self.sources for name, column in source.columns.items()}
        for number, source in enumerate(self.sources):
            where = f"sources.{number} ({source.shown()})"
            if lacking := wanted.keys() - source.columns.keys():
                raise ValueError(
                    f"{where}: lacks columns that others have: {', '.join(sorted(lacking))}; add them there"
                )
            for name, column in source.columns.items():
                if _outcome(column) != _outcome(wanted[name]):
                    raise ValueError(f"{where}: columns.{name} differs from other sources in shape, dtype or captions")
            if source.crop is not None and (self.augment is None or not self.augment.crop):
                raise ValueError(f"{where}: crop replaces the crop of data.augment, which has none")


def _outcome(column: Column) -> tuple[object, ...]:
    return column.shape, column.dtype, column.choose == "captions"
