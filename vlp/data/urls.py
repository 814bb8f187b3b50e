"""Shard lists as people write them (a folder, a glob, braces, `a::b`, a list) to the full list of shards."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vlp.data.schema import MANIFEST, DataError, read_manifest
from vlp.registry import nearest

_MAX_SHARDS = 1_000_000
_SHOWN = 20


def resolve(urls: str | Sequence[str]) -> list[str]:
    """Every shard that `urls` names, in order; DataError for patterns without match and for all missing ones."""
    words = [word for url in ([urls] if isinstance(urls, str) else urls) for word in url.split("::") if word.strip()]
    if not words:
        raise DataError("no shards given: `urls` is empty")
    shards = [shard for word in words for shard in _expand(word.strip())]
    twice = [shard for shard, count in Counter(shards).items() if count > 1]
    if twice:
        raise DataError(f"listed twice: {_listing(twice)}; to see a source more often give it a larger weight")
    _require_all(shards)
    return shards


def is_remote(url: str) -> bool:
    """True for `scheme://...` other than file."""
    return "://" in url and not url.startswith("file://")


def refuse_pipe(url: str) -> None:
    """DataError for urls that run a command or read standard input."""
    if url.startswith("pipe:") or url == "-":
        raise DataError(
            f"{url!r}: pipes run shell commands and cannot be indexed; use the `webdataset` source, "
            "with `allow_pipe: true` if you trust the command"
        )


def remote_fs(url: str) -> tuple[Any, str]:
    """The fsspec file system of a url, and the path on it; DataError saying what to install if its driver is absent."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}; drivers for http and s3 come with `pip install -e '.[remote]'`") from None
    return fs, path


def braces(pattern: str) -> list[str]:
    """`a{0..3}` and `{x,y}` written out."""
    from braceexpand import braceexpand

    counts = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    counts += [body.count(",") + 1 for body in re.findall(r"\{([^{}]*,[^{}]*)\}", pattern)]
    if math.prod(counts) > _MAX_SHARDS:  # before it is tried: ranges are written out whole
        raise DataError(f"{pattern}: names more than {_MAX_SHARDS} shards")
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from None


def _expand(word: str) -> list[str]:
    refuse_pipe(word)
    if Path(word).expanduser().exists():  # a path with braces or brackets in its name
        return _folder_or_file(word)
    return [shard for url in braces(word) for shard in _match(url, word)]


def _match(url: str, pattern: str) -> list[str]:
    if not any(letter in url for letter in "*?["):
        return _folder_or_file(url)
    if is_remote(url):
        fs, path = remote_fs(url)
        found = [str(fs.unstrip_protocol(name)) for name in sorted(fs.glob(path))]
    else:
        found = sorted(glob.glob(str(_local(url)), recursive=True))
    found = [name for name in found if not name.endswith((".index", ".tmp")) and Path(name).name != MANIFEST]
    if not found:
        raise DataError(f'no shard matches "{pattern}" (in {Path.cwd()}){_near(url)}')
    return found


def _folder_or_file(url: str) -> list[str]:
    path = _local(url)
    if is_remote(url) or not path.is_dir():
        return [url if is_remote(url) else str(path)]
    manifest = read_manifest(path)
    found = [str(path / s.file) for s in manifest.shards] if manifest else sorted(map(str, path.glob("*.tar")))
    if not found:
        raise DataError(f"{path}: a folder without {MANIFEST} and without *.tar; name the shards by a glob")
    return found


def _require_all(shards: Sequence[str]) -> None:
    local = [shard for shard in shards if not is_remote(shard)]
    missing = [shard for shard in local if not Path(shard).is_file()]
    remote = [shard for shard in shards if is_remote(shard)]
    if remote:
        with ThreadPoolExecutor(16) as pool:
            missing += [url for url, there in zip(remote, pool.map(_exists, remote)) if not there]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(shards)} shards are missing (in {Path.cwd()}): "
            f"{_listing(missing)}{_near(missing[0])}"
        )


def _exists(url: str) -> bool:
    fs, path = remote_fs(url)
    try:
        return bool(fs.exists(path))
    except OSError as error:
        raise DataError(f"{url}: not reachable: {error}") from error


def _local(url: str) -> Path:
    return Path(url.removeprefix("file://")).expanduser()


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _near(url: str) -> str:
    """What lies where a missing file was looked for."""
    if is_remote(url):
        return ""
    folder = _local(url).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = [path.name for path in itertools.islice(folder.iterdir(), 500) if not path.name.startswith(".")]
    wanted = _local(url).relative_to(folder).parts[0] if _local(url) != folder else ""
    hint = nearest(wanted, names[:40])
    return f"{hint} (in {folder})" if hint else f"; {folder} is empty"
