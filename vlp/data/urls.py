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

from vlp.data import http
from vlp.data.http import Web
from vlp.data.schema import MANIFEST, DataError, read_manifest
from vlp.paths import holding, is_picture, kind_of, listed
from vlp.registry import nearest

_MAX_SHARDS = 1_000_000
_SHOWN = 20
STORES = ("s3", "gs", "memory")  # read through fsspec, which has the credentials
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def resolve(urls: str | Sequence[str], *, web: Web | None = None) -> list[str]:
    """Every shard that `urls` names, in order; DataError for patterns without match and for all missing ones."""
    words = [word for url in ([urls] if isinstance(urls, str) else urls) for word in url.split("::") if word.strip()]
    if not words:
        raise DataError("no shards given: `urls` is empty")
    shards = list(itertools.islice((shard for word in words for shard in _expand(word.strip())), _MAX_SHARDS + 1))
    if len(shards) > _MAX_SHARDS:
        raise DataError(f"more than {_MAX_SHARDS} shards")
    twice = [shard for shard, count in Counter(shards).items() if count > 1]
    if twice:
        raise DataError(f"listed twice: {_listing(twice)}; to see a source more often give it a larger weight")
    _require_all(shards, web or Web())
    return shards


def scheme(url: str) -> str:
    """Scheme of a url in lower case; "file" for a path."""
    found = _SCHEME.match(url)
    return found[1].lower() if found else "file"


def is_remote(url: str) -> bool:
    """True for `scheme://...` other than file."""
    return scheme(url) != "file"


def is_pipe(url: str) -> bool:
    """Whether a url is a command to run, or standard input."""
    return url.strip().lower().startswith("pipe:") or url.strip() == "-"


def checked(url: str) -> str:
    """The url; DataError if it is of a scheme that is not read, or would run a command or read standard input."""
    refuse_pipe(url)
    if "\0" in url:
        raise DataError(f"{url!r}: a NUL in a path")
    kind = scheme(url)
    if kind in ("http", "https"):
        http.checked(url)
    elif kind not in ("file", *STORES):
        known = ", ".join(["a path", "file", "http", "https", *STORES])
        raise DataError(f"{http.shown(url)}: shards are not read over {kind}; known: {known}")
    return url


def refuse_pipe(url: str) -> None:
    """DataError for urls that run a command or read standard input."""
    if is_pipe(url):
        raise DataError(
            f"{url!r}: pipes run shell commands and cannot be indexed; use the `webdataset` source, "
            "with `allow_pipe: true` if you trust the command"
        )


def remote_fs(url: str) -> tuple[Any, str]:
    """The fsspec file system of a url, and the path on it; DataError saying what to install if its driver is absent."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(checked(url))
    except (ImportError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{url}: {error}; the driver for s3 comes with `pip install -e '.[remote]'`") from None
    return fs, path


def braces(pattern: str) -> list[str]:
    """`a{0..3}` and `{x,y}` written out."""
    from braceexpand import braceexpand

    counts = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    counts += [abs(ord(last) - ord(first)) + 1 for first, last in re.findall(r"\{([^\W\d_])\.\.([^\W\d_])", pattern)]
    counts += [body.count(",") + 1 for body in re.findall(r"\{([^{}]*,[^{}]*)\}", pattern)]
    if math.prod(counts) > _MAX_SHARDS:  # before it is tried: ranges are written out whole
        raise DataError(f"{pattern}: names more than {_MAX_SHARDS} shards")
    try:
        found = list(itertools.islice(braceexpand(pattern), _MAX_SHARDS + 1))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{pattern[:200]}: {error}") from None
    if len(found) > _MAX_SHARDS:
        raise DataError(f"{pattern}: names more than {_MAX_SHARDS} shards")
    return found


def _expand(word: str) -> list[str]:
    checked(word)
    if _there(word):  # a path with braces or brackets in its name
        return _folder_or_file(word)
    return [shard for url in braces(word) for shard in _match(checked(url), word)]


def _there(word: str) -> bool:
    try:
        return _local(word).exists()
    except OSError as error:  # too long a name, for one
        raise DataError(f"{word[:200]!r}: no path: {error}") from None


def _match(url: str, pattern: str) -> list[str]:
    web = scheme(url) in ("http", "https")
    if web and "*" in url:
        raise DataError(f"{http.shown(url)}: a web server lists no files; write them out with braces, {{000..127}}")
    if web or not any(letter in url for letter in "*?["):
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
    if is_remote(url):
        return [url]
    if not path.is_dir():
        refuse_picture(path)
        return [str(path)]
    manifest = read_manifest(path)
    found = [str(path / s.file) for s in manifest.shards] if manifest else sorted(map(str, path.glob("*.tar")))
    if not found:
        raise DataError(no_shards(path))
    return found


def refuse_picture(path: Path) -> None:
    """DataError for a picture where a shard was wanted, which would be called a damaged one."""
    if path.is_file() and is_picture(path):
        raise DataError(f"{path} is a picture, no shard; make shards of its folder: vlp data build {path.parent} OUT")


def no_shards(folder: Path) -> str:
    """What is said of a folder in which no shards lie: what lies there instead."""
    if inner := holding(folder, "*.tar"):
        return f"{folder} holds folders of shards: {listed(inner)}; give one, such as {folder / inner[0]}"
    kind = kind_of(folder)
    if kind == "a folder of pictures":
        return f"{folder}: {kind}, not shards: vlp data build {folder} OUT"
    return f"{folder}: {kind} without {MANIFEST} and without *.tar; name the shards by a glob"


def _require_all(shards: Sequence[str], web: Web) -> None:
    local = [shard for shard in shards if not is_remote(shard)]
    missing = [shard for shard in local if not Path(shard).is_file()]
    remote = [shard for shard in shards if is_remote(shard)]
    if remote:
        with ThreadPoolExecutor(16) as pool:
            missing += [url for url, there in zip(remote, pool.map(lambda url: _exists(url, web), remote)) if not there]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(shards)} shards are missing (in {Path.cwd()}): "
            f"{_listing([http.shown(url) if is_remote(url) else url for url in missing])}{_near(missing[0])}"
        )


def _exists(url: str, web: Web) -> bool:
    if scheme(url) in ("http", "https"):
        return http.exists(url, web)
    fs, path = remote_fs(url)
    try:
        return bool(fs.exists(path))
    except OSError as error:
        raise DataError(f"{url}: not reachable: {error}") from error


def _local(url: str) -> Path:
    path = Path(_SCHEME.sub("", url, count=1))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DataError(f"{url}: {error}") from None


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
