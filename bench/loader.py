"""From shards to training batches: our loader beside open_clip_train's, each in its own process and environment.

Both read the same shards into batches of the same size with the same number of workers: open_clip by `get_wds_dataset`
and the `image_transform` of training, ours by `Feed` with the default `Augment`, which is the same random crop. Rows
"to floats" end with normalised floats on both sides; in "as it comes" ours are uint8, which a training normalises on
its device. CPU is that of main process and workers a sample, wall the time between batches; both after a warm-up.

Before a ratio is given every caption that either side served must be one of the shards', with equal ids, and the means
of the pixels must be alike. `make peers-train` makes open_clip's environment.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from open_clip import get_tokenizer
from paired import UnequalError, arguments, conditions, load, parse, print_row
from sides import Found, by_turns, need_peer, ours, peer_options, run, seconds_row, theirs
from train_shards import captions_of, given, rendered

from vlp.data.sources import open_records
from vlp.data.urls import resolve

APART = 0.5  # of normalised pixels: first batches, of other pictures, differ by some 0.2, unnormalised ones by 100


def cells(options: Namespace) -> Iterator[tuple[str, str, int]]:
    """Name, pattern of shards and target size of each data set."""
    small = options.quick
    count = 200 if small else 2000
    yield (
        f"scenes of 500 px to {options.size}",
        rendered(options.folder, count=count, size=500, form="web"),
        options.size,
    )
    if options.shards:
        pattern = given(options.folder, shards=options.shards, form="full", limit=400 if small else 10**9)
        name = Path(options.shards.split("::")[0]).parent.name
        yield f"{name} to {options.small_size}", pattern, options.small_size


def measure(options: Namespace, name: str, pattern: str, size: int) -> None:
    """Prints the rows of one data set."""
    known = caption_rows(pattern)
    for workers in map(int, options.workers.split(",")):
        settings = {"shards": resolve(pattern), "batch": options.batch, "size": size, "workers": workers}
        settings |= {"batches": max(2, options.samples // options.batch), "warmup": 2 * workers + 1}
        found = by_turns(
            {
                "theirs": lambda s=settings: run(theirs(options.peer, "loader_theirs.py"), s, threads=1),
                "floats": lambda s=settings: run(ours("loader_ours.py"), {**s, "uint8": False}, threads=1),
                "uint8": lambda s=settings: run(ours("loader_ours.py"), {**s, "uint8": True}, threads=1),
            },
            options.rounds,
        )
        check_captions(found, known)
        check_pixels(found)
        where = f"{name}, {workers} worker{'s' * (workers > 1)}"
        for clock, title in (("cpu", "CPU a sample"), ("wall", "wall a sample")):
            seconds = {side: [one[clock] / one["samples"] for one in turns] for side, turns in found.items()}
            seconds_row(f"{where}, to floats, {title}", seconds["theirs"], seconds["floats"])
            seconds_row(f"{where}, as it comes, {title}", seconds["theirs"], seconds["uint8"])
        first = {side: [one["first"] for one in turns] for side, turns in found.items()}
        seconds_row(f"{where}, first batch", first["theirs"], first["floats"])


def caption_rows(pattern: str) -> set[str]:
    """Hashes of the ids, without padding, that open_clip's tokenizer makes of every caption."""
    ids = get_tokenizer("ViT-B-32")(captions_of(pattern)).tolist()
    return {hashlib.sha256(repr([i for i in row if i]).encode()).hexdigest()[:16] for row in ids}


def check_captions(found: dict[str, list[Found]], known: set[str]) -> None:
    """UnequalError if a side served a caption that is none of the data's."""
    for side, turns in found.items():
        for one in turns:
            if strange := set(one["rows"]) - known:
                raise UnequalError(f"{side} served {len(strange)} captions whose ids are none of the data's")


def check_pixels(found: dict[str, list[Found]]) -> None:
    """UnequalError if the pixels of the sides are not alike."""
    for a, b in zip(found["theirs"], found["floats"], strict=True):
        apart = max(abs(x - y) for kind in ("mean", "std") for x, y in zip(a[kind], b[kind], strict=True))
        if not apart < APART:
            raise UnequalError(f"means or deviations of the pixels are {apart:.2f} apart")


def main(options: Any) -> None:
    print(conditions(options, kind="wall and CPU seconds"), flush=True)
    print(f"batches of {options.batch}, context 77\n")
    print_row(["case", "theirs", "ours", "faster"])
    print_row(["---"] * 4)
    for name, pattern, size in cells(options):
        measure(options, f"{name} ({len(open_records(pattern))} pictures)", pattern, size)
    print(f"load average afterwards {load()}")


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    peer_options(parser)
    parser.add_argument("--workers", default="1,2", help="numbers of loader processes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=None, help="timed in each turn; default: 2000, or 256")
    parser.add_argument("--size", type=int, default=224, help="of the rendered pictures in the batch")
    parser.add_argument("--small-size", type=int, default=112, help="of the pictures of --shards in the batch")
    options = parse(parser)
    options.samples = options.samples or (256 if options.quick else 2000)
    need_peer(parser, options.peer)
    main(options)
