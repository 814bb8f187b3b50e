"""Tar shards: local or remote, each with its index; the indexes are read when a sample of theirs is asked for."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from vlp.data import index as shard_index
from vlp.data.content import ends
from vlp.data.grouping import KeySplit
from vlp.data.index import ShardIndex
from vlp.data.reader import MemberReader
from vlp.data.reasons import REMEDIES
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError, ShardEntry, read_manifest
from vlp.data.sources import Fact, Finite, Source
from vlp.data.urls import is_remote, resolve
from vlp.types import BadSampleError, Sample

_MAX_INDEXES = 512  # kept in memory at once; one of 10,000 samples has about half a megabyte
_TOUCH = 60.0  # seconds that a remote shard's local file is taken to be there without looking, and not marked as used
logger = logging.getLogger(__name__)


class Shards(Source):
    """Tar shards: a folder, a path, a glob, braces (`{000..127}`), `a::b`, or a list; local, http(s) or s3."""

    urls: str | tuple[str, ...]
    members: tuple[str, ...] | None = Field(None, description="extensions to read; default: all of a sample")
    key_split: KeySplit = "first-dot"
    damaged: Literal["stop", "keep"] = "stop"

    def shown(self) -> str:
        first = self.urls if isinstance(self.urls, str) else next(iter(self.urls), "")
        path = Path(first.split("::")[0].rstrip("/"))
        return self.title or (path.name if not path.suffix and "*" not in path.name else path.parent.name) or "shards"

    def open(self, cache: ShardCache) -> TarRecords:
        return TarRecords(self, resolve(self.urls, web=cache.web), cache)


class TarRecords(Finite):
    """Samples of tar shards, in the order of the shards and inside them."""

    def __init__(self, source: Shards, urls: Sequence[str], cache: ShardCache) -> None:
        self.source, self.urls, self.cache = source, list(urls), cache
        self.reader = MemberReader()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._files: dict[int, tuple[Path, float]] = {}  # local files of remote shards, and when to look again
        self.entries = self._manifest_entries()
        self.notes: dict[str, int] = {}
        self.facts: Sequence[Fact] = ()  # `index` checks against them once they are there
        self.facts = [self._fact(number) for number in range(len(self.urls))]
        self.sizes = np.array([fact.samples for fact in self.facts], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        number, row = self._locate(i)
        index = self.index(number)
        key = index.key(row)
        places, wanted = index.members(row), only or self.source.members
        path = self._file(number)
        try:
            members = self.reader.read(path, places, wanted)
        except BadSampleError:
            if not is_remote(self.urls[number]) or path.is_file():
                raise
            del self._files[number]  # another process evicted it
            members = self.reader.read(self._file(number), places, wanted)
        return Sample(key, members, self.facts[number].name, i)

    def name(self, i: int) -> tuple[str, str]:
        number, row = self._locate(i)
        return self.facts[number].name, self.index(number).key(row)

    def index(self, number: int) -> ShardIndex:
        """The index of a shard, checked against the manifest."""
        if number in self._indexes:
            self._indexes.move_to_end(number)
            return self._indexes[number]
        url, entry = self.urls[number], self.entries.get(number)
        path = self._local(number)
        built = shard_index.read_or_build(path, key_split=self.source.key_split)
        shard_index.check(url, built, expected=entry.samples if entry else None, on_damage=self.source.damaged)
        if number < len(self.facts) and self._by_index(number) and built.content != self.facts[number].digest:
            raise DataError(f"{url}: it was changed since this process opened it; start again on the data as it is")
        self._indexes[number] = built
        if len(self._indexes) > _MAX_INDEXES:
            self._indexes.popitem(last=False)
        return built

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_indexes": OrderedDict(), "_files": {}}

    def _locate(self, i: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.first, i, side="right")) - 1
        return number, i - int(self.first[number])

    def _local(self, number: int) -> Path:
        entry = self.entries.get(number)
        known = {"size": entry.bytes, "sha256": entry.sha256} if entry else {}
        return self.cache.local(self.urls[number], **known)  # type: ignore[arg-type]

    def _file(self, number: int) -> Path:
        """The file to read a shard from; for a remote one looked up, marked as used and checked once in a while."""
        if not is_remote(self.urls[number]):
            return Path(self.urls[number])
        path, until = self._files.get(number, (None, 0.0))
        if path is None or time.monotonic() > until:
            path = self._local(number)
            with contextlib.suppress(OSError):  # evicted by another process a moment ago: the reader will say so
                if self._by_index(number) and ends(path) != self.index(number).ends:
                    raise DataError(f"{self.urls[number]}: it came anew with other bytes than it was opened with")
            self._files[number] = path, time.monotonic() + _TOUCH
        return path

    def _by_index(self, number: int) -> bool:
        """Whether a shard is known by its index: the manifest says nothing of it, too little, or is not to be kept to.

        A remote shard that the manifest counts but does not hash is not fetched for that.
        """
        entry = self.entries.get(number)
        if entry is None or self.source.damaged == "keep":
            return True
        return entry.sha256 is None and not is_remote(self.urls[number])

    def _fact(self, number: int) -> Fact:
        """What is known of a shard, from its manifest if the size agrees, else from its index."""
        url, entry = self.urls[number], self.entries.get(number)
        name = Path(url).name
        if entry is None or self._by_index(number):
            built = self.index(number)
            self._count(url, built, entry)
            return Fact(name, built.bytes, len(built), built.content)
        if not is_remote(url):
            if (size := Path(url).stat().st_size) != entry.bytes:
                raise self._changed(url, size, entry)
            if shard_index.doubtful(url, samples=entry.samples):
                self.index(number)  # raises where the tar bears the doubt out
        return Fact(name, entry.bytes, entry.samples, entry.sha256)

    def _changed(self, url: str, size: int, entry: ShardEntry) -> DataError:
        """The error of a shard of another size than its manifest says: the damage, if that is what changed it."""
        built = shard_index.build(url, key_split=self.source.key_split)
        try:
            shard_index.check(url, built, expected=entry.samples)
        except DataError as error:
            if built.damage:
                return error
        return DataError(
            f"{url}: has {size} bytes, dataset.json says {entry.bytes}; manifest {entry.samples}, readable "
            f"{len(built)}: it was changed; fetch it again, or run `vlp data index` to describe it as it is"
        )

    def _count(self, url: str, built: ShardIndex, entry: ShardEntry | None) -> None:
        found = [(note.reason, note.count, f", such as {note.example}") for note in built.notes]
        if built.damage:
            lost = entry.samples - len(built) if entry else 0
            found += [("missing_sample", lost, "")] if lost > 0 else []
            why = "" if entry else "; how many are lost is not known without dataset.json"
            found.append(("damaged_shard", 1, f" at byte {built.damage.byte}: {len(built)} samples are used{why}"))
        for reason, count, example in found:
            self.notes[reason] = self.notes.get(reason, 0) + count
            logger.warning("%s: %d %s%s (%s)", url, count, reason, example, REMEDIES[reason])

    def _manifest_entries(self) -> dict[int, ShardEntry]:
        """Shard number -> its entry, for shards whose folder has a dataset.json that lists them."""
        folders: dict[str, dict[str, ShardEntry]] = {}
        found = {}
        for number, url in enumerate(self.urls):
            folder, _, name = url.rpartition("/")
            if folder not in folders:
                manifest = self.cache.manifest(folder) if is_remote(url) else read_manifest(folder or ".")
                folders[folder] = manifest.by_file() if manifest else {}
            if entry := folders[folder].get(name):
                found[number] = entry
        return found
