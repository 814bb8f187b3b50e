"""Seconds until the first batch of a run that goes on at step 10, 1,000 and 1,000,000: a Feed opened anew each time.

    python bench/resume.py --shards 1000 --samples 10000 --pairs 256

Two sources of together --shards shards, mixed 7 to 3, once with a dataset.json that tells of all, once without. The
shards are one tar under many names, so storage is warm: a cold disk adds a read of about 200 kB for each index that is
needed. CPU seconds are this process's, so without those of workers. The exit code is 1 if a median is above --limit.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from paired import arguments, conditions, load, parse, print_row
from PIL import Image

from data_tools.write import Record, ShardWriter
from vlp.data import Data, Feed
from vlp.data.index import index_path
from vlp.data.schema import DatasetManifest, ShardEntry, write_manifest
from vlp.data.transforms import Preprocess
from vlp.text.clip_bpe import ClipBPE

STEPS = (10, 1_000, 1_000_000)
SHARE = 0.7  # of the mixture and of the shards: the first source's


class First(NamedTuple):
    """Seconds to open the Feed, from there to its first batch, and of the CPU for both."""

    opened: float
    batch: float
    cpu: float


def write_shard(path: Path, *, samples: int, sizes: Sequence[int]) -> ShardEntry:
    """One shard with its index: pictures of these sides in pixels, over and over, with a caption each."""
    rng, pictures = np.random.default_rng(0), []
    for size in sizes:
        data = io.BytesIO()
        squares = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        squares.resize((size, size), Image.Resampling.NEAREST).save(data, "JPEG")
        pictures.append(data.getvalue())
    writer = ShardWriter(path)
    for i in range(samples):
        about = json.dumps({"caption": f"picture number {i} of sixteen squares"}).encode()
        writer.write(Record(f"{i:07d}", {"jpg": pictures[i % len(pictures)], "json": about}))
    return writer.close()


def make_folders(out: Path, *, shards: int, samples: int, size: int) -> list[str]:
    """Two folders of shards with their indexes, and a dataset.json in each."""
    entry = write_shard(out / "one.tar", samples=samples, sizes=[size] * 32)
    folders, first = [], round(SHARE * shards)
    for name, count in (("first", first), ("second", shards - first)):
        folder = out / name
        folder.mkdir()
        entries = []
        for number in range(count):
            target = folder / f"{number:06d}.tar"
            os.link(out / "one.tar", target)
            os.link(index_path(out / "one.tar"), index_path(target))
            entries.append(entry.model_copy(update={"file": target.name, "index": index_path(target).name}))
        write_manifest(folder, DatasetManifest(name=name, shards=tuple(entries)))
        folders.append(str(folder))
    return folders


def first_batch(folders: list[str], *, pairs: int, size: int, step: int, workers: int) -> First:
    """A Feed as a run opens it, and its batch of `step`."""
    sources = [{"name": "shards", "urls": url, "weight": weight} for url, weight in zip(folders, (SHARE, 1 - SHARE))]
    start, cpu = time.perf_counter(), time.process_time()
    data = Data.model_validate({"sources": sources, "batch_size": pairs, "workers": workers})
    feed = Feed(data, tokenizer=ClipBPE().build(), preprocess=Preprocess(size=size), seed=0)
    opened = time.perf_counter()
    with closing(feed.batches(step, step + 1000)) as batches:
        batch = next(batches)
        end = time.perf_counter()
    assert bool(batch.valid.all()), batch.skips[:1]
    return First(opened - start, end - opened, time.process_time() - cpu)


def rows(folders: list[str], options: object) -> Iterator[bool]:
    """Prints a row for each place and number of workers; whether it was quick enough."""
    for known in ("dataset.json", "indexes"):
        if known == "indexes":
            for folder in folders:
                (Path(folder) / "dataset.json").unlink()
        for workers in (0, 2):
            for step in STEPS:
                found = [
                    first_batch(folders, pairs=options.pairs, size=options.size, step=step, workers=workers)
                    for _ in range(options.rounds)
                ]
                total = [first.opened + first.batch for first in found]
                median = statistics.median(total)
                print_row(
                    [
                        known, f"{step:,}", str(workers),
                        f"{statistics.median(first.opened for first in found):.2f}",
                        f"{statistics.median(first.batch for first in found):.2f}",
                        f"{median:.2f} [{min(total):.2f}, {max(total):.2f}]",
                        f"{statistics.median(first.cpu for first in found):.2f}" if not workers else "-",
                    ]
                )  # fmt: skip
                yield median <= options.limit


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--shards", type=int, default=None, help="default: 1000, or 40 with --quick")
    parser.add_argument("--samples", type=int, default=None, help="of each shard; default: 10000, or 500 with --quick")
    parser.add_argument("--pairs", type=int, default=256, help="N")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds to the first batch")
    options = parse(parser)
    shards = options.shards or (40 if options.quick else 1000)
    samples = options.samples or (500 if options.quick else 10_000)
    print(conditions(options, "wall seconds"), flush=True)
    with tempfile.TemporaryDirectory() as out:
        folders = make_folders(Path(out), shards=shards, samples=samples, size=options.size)
        print(f"{shards} shards of {samples} samples, N={options.pairs}\n", flush=True)
        print_row(["shards known by", "step", "workers", "open", "batch", "first batch after", "CPU"])
        print_row(["---"] * 7)
        quick = list(rows(folders, options))
    print(f"load average afterwards {load()}")
    sys.exit(0 if all(quick) else f"{quick.count(False)} of {len(quick)} took more than {options.limit:g} s")
