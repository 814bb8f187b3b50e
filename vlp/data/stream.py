"""A webdataset pipeline as an endless source: for what cannot be indexed (stdin, pipes, feeds without an end).

The guarantees are weaker than those of indexed shards. The order depends on the numbers of ranks and of workers; a
resumed run does not go on where it stopped but starts another pass, with shards in another order; "once an epoch" holds
only while all workers are equally fast. A shard ends in silence at a damaged header, as Python's `tarfile` does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import torch.utils.data
from pydantic import Field

from vlp.data import flow
from vlp.data.http import Web
from vlp.data.order import keyed_rng, permutation
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError
from vlp.data.sources import Records, Source
from vlp.data.urls import braces, checked, is_pipe
from vlp.types import Sample, Skip

_PASS, _SHUFFLE = 5, 6


class WebDataset(Source):
    """Shards read one after the other by webdataset, again and again; weaker guarantees, see the module's words."""

    urls: str | tuple[str, ...]
    samples_per_epoch: int = Field(ge=1, description="what an epoch of it is taken to be; a stream does not know")
    shuffle: int = Field(1000, ge=0, description="samples held to draw the next one from")
    allow_pipe: bool = Field(False, description="let `pipe:` urls run their shell command, and `-` read stdin")
    allow_packed: bool = Field(False, description="read .tar.gz and the like: what they unpack to has no bound")
    max_member_mb: float = Field(256.0, gt=0, description="largest file in a tar; a larger one ends its shard")
    web: Web = Field(Web(), description="of http and https; its seconds run while the samples of a shard are used")

    @property
    def endless(self) -> bool:
        return True

    def open(self, cache: ShardCache) -> Records:
        raise DataError(f"{self.shown()}: a stream has no positions; make shards of it with `vlp data build`")

    def shards(self) -> list[str]:
        """Every url, braces and `::` written out; DataError for pipes that were not allowed."""
        found = []
        for word in [self.urls] if isinstance(self.urls, str) else self.urls:
            whole = self.allow_pipe and is_pipe(word)  # a command may have braces and "::" of its own
            found += [word] if whole else [url for piece in word.split("::") if piece for url in braces(piece)]
        for url in found:
            if not (self.allow_pipe and is_pipe(url)):
                checked(url)
        if not found:
            raise DataError(f"{self.shown()}: no urls")
        return found


class Stream:
    """Samples without end; each process reads its own part. `len` is what an epoch is taken to be."""

    def __init__(self, part: WebDataset, *, seed: int, source: int = 0, rank: int = 0, world: int = 1) -> None:
        self.source, self.seed, self.number = part, seed, source
        self.urls = part.shards()
        self.rank, self.world, self.start = rank, world, 0
        self.notes: dict[str, int] = {}
        self.failures: list[Skip] = []  # not yet taken by `drain`
        self.classes: tuple[str, ...] = ()
        self._pid = os.getpid()
        self._samples: Iterator[Sample] | None = None

    def __len__(self) -> int:
        return self.source.samples_per_epoch

    @property
    def fingerprint(self) -> str:
        return "|".join(self.urls)

    def next(self) -> Sample:
        """The next sample of this process's part; its index is unique over all ranks and workers."""
        if self._samples is None or self._pid != os.getpid():
            self._pid, self._samples, self.failures = os.getpid(), self._endless(), []
        return next(self._samples)

    def drain(self) -> list[Skip]:
        """The urls that failed since the last call, one skip each time."""
        failures, self.failures = self.failures, []
        return failures

    def restart(self, start: int) -> None:
        """Begins another pass, its order keyed by the step that a run starts at."""
        self.start, self._samples = start, None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_samples": None, "failures": []}

    def _endless(self) -> Iterator[Sample]:
        worker = torch.utils.data.get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        part, parts = self.rank * workers + mine, self.world * workers
        for number, raw in enumerate(self._shuffled(part, parts)):
            key = str(raw["__key__"])
            members = {name: value for name, value in raw.items() if not name.startswith("__") and _is_bytes(value)}
            yield Sample(key, members, str(raw.get("__url__", "")), number * parts + part)

    def _shuffled(self, part: int, parts: int) -> Iterator[dict[str, Any]]:
        """Samples drawn from a buffer of `shuffle`."""
        stream = self._passes(part, parts)
        if not self.source.shuffle:
            yield from stream
            return
        rng = keyed_rng(self.seed, _SHUFFLE, self.number, part, self.start)
        held = list(itertools.islice(stream, 1))
        for sample in stream:
            if len(held) < self.source.shuffle:
                held.append(sample)
                continue
            chosen = int(rng.integers(len(held)))
            held[chosen], sample = sample, held[chosen]
            yield sample

    def _passes(self, part: int, parts: int) -> Iterator[dict[str, Any]]:
        """Pass after pass; by shards where every part has one, else every `parts`-th sample. Never loops on nothing."""
        for number in itertools.count():
            order = permutation(len(self.urls), self.seed, _PASS, self.number, self.start, number).tolist()
            urls, got = [self.urls[i] for i in order], 0
            by_shard = len(urls) >= parts
            samples = self._read(urls[part::parts] if by_shard else urls)
            for sample in samples if by_shard else itertools.islice(samples, part, None, parts):
                got += 1
                yield sample
            if not got:
                last = f" (the last: {self.failures[-1].shard}: {self.failures[-1].detail})" if self.failures else ""
                raise DataError(
                    f"{self.source.shown()}: a whole pass over {len(urls)} urls gave part {part} of {parts} no sample; "
                    f"failures so far: {self.notes or 'none'}{last}; are these tars of samples, and enough of them?"
                )

    def _read(self, urls: list[str]) -> Iterator[dict[str, Any]]:
        """Samples of some urls; one that cannot be opened or read on fails. Files are closed, unlike in webdataset."""
        from webdataset.tariterators import group_by_keys

        for url in urls:
            failed = functools.partial(self._failed, url, set())
            try:
                opened = flow.opened(url, self.source.web, allow_pipe=self.source.allow_pipe)
            except (OSError, ValueError) as error:
                failed("unreadable_shard", error)
                continue
            try:
                yield from group_by_keys(
                    self._files(url, opened, failed), handler=functools.partial(failed, "bad_member")
                )
            finally:
                with contextlib.suppress(OSError):  # a pipe that was not read to its end
                    opened.close()

    def _files(self, url: str, opened: flow.Stream, failed: Any) -> Iterator[dict[str, Any]]:
        """Members as webdataset groups them, up to the first damage."""
        limit = int(self.source.max_member_mb * 1e6)
        try:
            for name, data in flow.files(opened, max_bytes=limit, allow_packed=self.source.allow_packed):
                yield {"fname": name, "data": data, "__url__": url}
        except (OSError, ValueError, RecursionError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            failed("unreadable_shard", error)

    def _failed(self, url: str, told: set[str], reason: str, error: Exception) -> bool:
        """Keeps a failure for the next batch and goes on; webdataset tells of one damage up to twice."""
        if reason not in told:
            told.add(reason)
            kind = type(error).__name__
            self.notes[kind] = self.notes.get(kind, 0) + 1
            detail = f"{kind}: {error.args[0] if error.args else error}".partition(" @ <")[0]
            self.failures.append(Skip(reason, self.source.shown(), url, "", detail))
        return True


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)
