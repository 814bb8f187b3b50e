"""A folder of shards from a plan: which shards there are, in how many processes, and `dataset.json` at the end."""

from __future__ import annotations

import json
import multiprocessing
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data_tools.progress import progress
from data_tools.write import Record, Reject, Row, digest_of, read_row, write_shard
from vlp.data.index import index_path
from vlp.data.schema import MANIFEST, DataError, DatasetManifest, write_atomic, write_manifest

SKIPS = "skips.jsonl"


class Maker(Protocol):
    """What fills shards: picklable, and `items` a pure function of the range, one item per input."""

    def items(self, start: int, stop: int) -> Iterable[Record | Reject]: ...


class Written(NamedTuple):
    """What came of it: inputs = samples + sum(skipped.values())."""

    samples: int
    skipped: dict[str, int]
    shards: int
    kept: int  # shards that were there already
    complete: bool  # False while other shard ranges are missing: no dataset.json yet


class Task(NamedTuple):
    """One shard to write, of inputs start..stop; one on disk with this digest is the one asked for."""

    shard: Path
    start: int
    stop: int
    digest: str


def write_dataset(
    out: Path,
    maker: Maker,
    *,
    name: str,
    count: int,
    shard_size: int,
    made_by: dict[str, Any],
    workers: int = 1,
    shard_range: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> Written:
    """Inputs 0..count of `maker` as shards of `shard_size` inputs each, under `out`.

    `made_by` is the provenance and decides whether shards on disk are those asked for; it holds no path and no number
    of workers. `shard_range=(i, n)` writes every n-th shard from i: n such calls, anywhere, and the last one to finish
    writes `dataset.json`.
    """
    made_by = {**made_by, "versions": versions()}
    digest = digest_of({"made_by": made_by, "count": count, "shard_size": shard_size, "name": name})
    return write_tasks(
        out,
        maker,
        _plan(out, count, shard_size, digest),
        name=name,
        made_by=made_by | {"digest": digest},
        workers=workers,
        shard_range=shard_range,
        overwrite=overwrite,
    )


def write_tasks(
    out: Path,
    maker: Maker,
    tasks: Sequence[Task],
    *,
    name: str,
    made_by: dict[str, Any],
    workers: int = 1,
    shard_range: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> Written:
    """The shards of `tasks`, all of them in `out`; those that are there already stay."""
    if not tasks:
        raise DataError(f"{out}: nothing to write: there are no inputs")
    out.mkdir(parents=True, exist_ok=True)
    _check_folder(out, {task.digest for task in tasks}, overwrite=overwrite)
    mine = [task for number, task in enumerate(tasks) if number % shard_range[1] == shard_range[0]]
    rows = {task.shard: row for task in mine if (row := read_row(task.shard, task.digest))}
    kept = len(rows)
    todo = [task for task in mine if task.shard not in rows]
    for row in progress(_run(maker, todo, workers), total=len(todo), label=f"{name}: shards"):
        rows[out / row.entry.file] = row
    return _finish(out, name, tasks, rows, kept, made_by)


def versions() -> dict[str, str]:
    """Versions of what the bytes depend on."""
    packages = {package: metadata.version(package) for package in ("pillow", "numpy")}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **packages}


def _plan(out: Path, count: int, shard_size: int, digest: str) -> list[Task]:
    starts = range(0, count, shard_size)
    return [Task(out / f"{i:06d}.tar", s, min(s + shard_size, count), digest) for i, s in enumerate(starts)]


def _check_folder(out: Path, digests: set[str], *, overwrite: bool) -> None:
    """Refuses a folder with shards of another making; with `overwrite` removes them first."""
    rows = sorted((out / ".rows").glob("*.json"))
    ours = (out / ".rows").is_dir() and all(_digest_in(row) in digests for row in rows)
    if not ours and (rows or any(out.glob("*.tar"))):
        if not overwrite:
            raise DataError(f"{out}: holds shards made with other settings; choose another folder, or --overwrite them")
        for path in [*out.glob("*.tar"), *out.glob("*.tar.index"), *rows, out / MANIFEST, out / SKIPS]:
            path.unlink(missing_ok=True)
    (out / ".rows").mkdir(exist_ok=True)


def _digest_in(row: Path) -> str | None:
    try:
        return str(json.loads(row.read_bytes().decode("utf-8", "surrogatepass"))["digest"])
    except (ValueError, KeyError, TypeError):
        return None


def _run(maker: Maker, tasks: Sequence[Task], workers: int) -> Iterator[Row]:
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield _work(maker, task)
        return
    # spawn: forking a process with threads is not safe, and every worker starts from the same state
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_work, maker, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _work(maker: Maker, task: Task) -> Row:
    items = maker.items(task.start, task.stop)
    return write_shard(task.shard, items, digest=task.digest, start=task.start, stop=task.stop)


def _finish(
    out: Path, name: str, tasks: Sequence[Task], rows: dict[Path, Row], kept: int, made_by: dict[str, Any]
) -> Written:
    everything = [rows.get(task.shard) or read_row(task.shard, task.digest) for task in tasks]
    done = [row for row in everything if row is not None]
    complete = len(done) == len(tasks)
    if complete:
        _write_skips(out, done)
        fields = sorted({field for row in done for field in row.fields})
        entries = tuple(row.entry for row in done if row.entry.samples)
        for row in done:
            if not row.entry.samples:  # a shard in which every input was rejected is no shard
                (out / row.entry.file).unlink(missing_ok=True)
                index_path(out / row.entry.file).unlink(missing_ok=True)
        write_manifest(out, DatasetManifest(name=name, shards=entries, fields=tuple(fields), made_by=made_by))
    skipped = Counter(skip.reason for row in done for skip in row.skips)
    return Written(sum(row.entry.samples for row in done), dict(skipped), len(done), kept, complete)


def _write_skips(out: Path, rows: Sequence[Row]) -> None:
    lines = [
        json.dumps({"reason": s.reason, "source": "", "shard": row.entry.file, "key": s.key, "detail": s.detail})
        for row in rows
        for s in row.skips
    ]
    if lines or (out / SKIPS).is_file():
        write_atomic(out / SKIPS, "".join(f"{line}\n" for line in lines).encode())
