"""The price of safety: our loader with all its checks beside a webdataset pipeline that has none.

Both decode with simplejpeg, take the same random crop with the same resize, tokenise with our tokenizer and give
uint8; peers/loader_bare.py says what the bare one leaves out. Ratios above 1 say that ours is faster all the same.
Captions that are none of the shards' would end it, as in loader.py. Both sides run in this environment.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from loader import caption_rows, check_captions
from paired import arguments, conditions, load, parse, print_row
from sides import DATA, by_turns, ours, run, seconds_row
from train_shards import given, rendered

from vlp.data.urls import resolve


def main(options: Namespace) -> None:
    print(conditions(options, kind="wall and CPU seconds"), flush=True)
    print_row(["case", "bare", "ours", "faster"])
    print_row(["---"] * 4)
    cells = [
        (
            "scenes of 160 px to 112",
            rendered(options.folder, count=500 if options.quick else 4000, size=160, form="web"),
            112,
        )
    ]
    cells += [
        (
            "scenes of 500 px to 224",
            rendered(options.folder, count=200 if options.quick else 2000, size=500, form="web"),
            224,
        )
    ]
    if options.shards:
        pattern = given(options.folder, shards=options.shards, form="full", limit=400 if options.quick else 10**9)
        cells += [(f"{Path(options.shards.split('::')[0]).parent.name} to 112", pattern, 112)]
    for name, pattern, size in cells:
        known = caption_rows(pattern)
        for workers in map(int, options.workers.split(",")):
            said = {"shards": resolve(pattern), "batch": options.batch, "size": size, "workers": workers, "uint8": True}
            said |= {"batches": max(2, options.samples // options.batch), "warmup": 2 * workers + 1}
            sides = {"bare": ours("loader_bare.py"), "ours": ours("loader_ours.py")}
            turns = {side: lambda c=command, s=said: run(c, s, threads=1) for side, command in sides.items()}
            found = by_turns(turns, options.rounds)
            check_captions(found, known)
            for clock, title in (("cpu", "CPU"), ("wall", "wall")):
                seconds = {side: [one[clock] / one["samples"] for one in turns] for side, turns in found.items()}
                seconds_row(f"{name}, {workers} worker(s), {title} a sample", seconds["bare"], seconds["ours"])
    print(f"load average afterwards {load()}")


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--folder", type=Path, default=DATA, help="where shards are made")
    parser.add_argument("--shards", default=None, help="shards of one's own, e.g. 'data/openstax_figures/train-*.tar'")
    parser.add_argument("--workers", default="1", help="numbers of loader processes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=None, help="timed in each turn; default: 3000, or 256")
    options = parse(parser)
    options.samples = options.samples or (256 if options.quick else 3000)
    main(options)
