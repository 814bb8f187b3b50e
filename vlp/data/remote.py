"""Remote shards as local files: a cache of whole shards with a cap on its size, shared by processes of a machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vlp.data import http
from vlp.data.http import Web
from vlp.data.index import cache_folder
from vlp.data.schema import MANIFEST, DataError, DatasetManifest, parse_manifest, write_atomic
from vlp.data.urls import is_remote, remote_fs, scheme
from vlp.registry import Part

_CHUNK = 1 << 22
_MAX_MANIFEST = 64 << 20  # bytes: some 300,000 shards
_MAX_NAME = 100  # letters of a shard's name that its place in the cache has


class ShardCache(Part):
    """Where whole remote shards are kept, and how much of them: the ones not used for longest go first."""

    folder: str = ""  # default: `shards` in the cache folder
    max_gb: float = 200.0
    web: Web = Web()

    def local(self, url: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """The shard as a local file, fetched if it is not there; DataError if it has not the size or hash it should."""
        if not is_remote(url):
            return Path(url)
        target = self._place(url)
        if not target.is_file():
            with _locked(target):
                if not target.is_file():
                    self._fetch(url, target, size, sha256)
                    self._evict(target)
        with contextlib.suppress(OSError):  # evicted by another process a moment ago: the reader will say so
            os.utime(target, (time.time(), target.stat().st_mtime))
        return target

    def manifest(self, folder: str) -> DatasetManifest | None:
        """`dataset.json` of a remote folder, or None."""
        url = f"{folder.rstrip('/')}/{MANIFEST}"
        try:
            content = b"".join(self._content(url, max_bytes=_MAX_MANIFEST))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{http.shown(url)}: could not be read: {error}") from error
        return parse_manifest(content, where=http.shown(url))

    def _content(self, url: str, *, max_bytes: int | None = None) -> Iterator[bytes]:
        """The bytes of a remote file in pieces; DataError where they are more than `max_bytes`."""
        if scheme(url) in ("http", "https"):
            yield from http.content(url, self.web, max_bytes=max_bytes)
            return
        fs, path = remote_fs(url)
        got = 0
        with fs.open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                got += len(chunk)
                if max_bytes is not None and got > max_bytes:
                    raise DataError(f"{url}: more than {max_bytes} bytes")
                yield chunk

    def _root(self) -> Path:
        return Path(self.folder).expanduser() if self.folder else cache_folder() / "shards"

    def _place(self, url: str) -> Path:
        name = url.rstrip("/").rsplit("/", 1)[-1].split("?")[0]
        return self._root() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name[-_MAX_NAME:]}"

    def _fetch(self, url: str, target: Path, size: int | None, sha256: str | None) -> None:
        digest, got = hashlib.sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal got
            for chunk in self._content(url):
                digest.update(chunk)
                got += len(chunk)
                if size is not None and got > size:
                    break
                yield chunk
            if size is not None and got != size:
                more = " or more" * (got > size)
                raise DataError(
                    f"{http.shown(url)}: {got} bytes{more} came, {MANIFEST} says {size}; was the shard rewritten?"
                )
            if sha256 is not None and digest.hexdigest() != sha256:
                raise DataError(f"{http.shown(url)}: its sha256 is {digest.hexdigest()}, {MANIFEST} says {sha256}")

        try:
            write_atomic(target, chunks())
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{http.shown(url)}: could not be fetched to {target}: {error}") from error

    def _evict(self, newest: Path) -> None:
        """Removes the least recently used shards while the cache is over its cap; indexes stay, they are small."""
        files = [path for path in self._root().glob("*") if path.suffix not in (".index", ".lock", ".tmp")]
        facts = sorted((path.stat().st_atime, path.stat().st_size, path) for path in files if path != newest)
        total = sum(size for _, size, _ in facts) + newest.stat().st_size
        for _, size, path in facts:
            if total <= self.max_gb * 1e9:
                return
            path.unlink(missing_ok=True)
            total -= size


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Only one process of this machine fetches a shard at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
