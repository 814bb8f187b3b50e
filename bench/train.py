"""Whole trainings: `vlp train` beside `open_clip_train.main`, each in its own process and environment.

Same architecture (open_clip reads our configuration file), shards, batch, augmentation, AdamW, schedule, clipping,
fp32, threads, loader processes and context 77. Captions are as on the web (the first sentence, at most 25 words) and
whole. Seconds a step are those that each side logs, data wait included, after a warm-up; "start to end" is the whole
command with imports, first batch and checkpoint. Memory is the peak of main process and workers together.

Weights at the start and the order of the data differ, so losses are alike and not equal: the means of all steps
must be within a tenth, else no ratio is given; `same_batches.py` is about equality. `--shares` also switches parts
of ours off, one at a time. `make peers-train` makes open_clip's environment.
"""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paired import UnequalError, arguments, conditions, load, parse, print_row
from sides import HERE, Found, by_turns, need_peer, ours, peer_options, ratio, run, seconds_row, theirs
from train_shards import Form, given, rendered

from vlp.data.urls import resolve

APART = 0.1
PARTS = ("groups", "last block", "optimizer", "loss", "loader")
WHAT = {
    "groups": "captions padded to 77, in one call",
    "last block": "last blocks for all tokens",
    "optimizer": "torch's default AdamW",
    "loss": "ClipLoss",
    "loader": "pictures and ids made as open_clip makes them",
}


def cells(options: Namespace) -> Iterator[tuple[str, str]]:
    """Name and pattern of shards of each kind of captions."""
    forms: dict[Form, str] = {"web": "web-like captions", "full": "whole captions"}
    for form, title in forms.items():
        if form not in options.captions.split(","):
            continue
        if options.shards:
            name = Path(options.shards.split("::")[0]).parent.name
            yield f"{name}, {title}", given(options.folder, shards=options.shards, form=form, limit=10**9)
        else:
            count = options.batch * (options.steps + 2)
            yield f"scenes of 160 px, {title}", rendered(options.folder, count=count, size=160, form=form)


def sides(options: Namespace, pattern: str) -> dict[str, Callable[[], Found]]:
    """The commands by name: theirs, ours, and ours without some of its parts."""
    settings: dict[str, Any] = {
        "arch": options.arch,
        "config": str(HERE.parent / "vlp" / "models" / "configs" / f"{options.arch}.json"),
        "shards": resolve(pattern),
        "folder": str(options.folder / "runs"),
        "batch": options.batch,
        "steps": options.steps,
        "workers": options.workers,
        "threads": options.threads,
        "lr": 1e-4,
        "warmup": max(1, options.steps // 10),
        "off": [],
    }
    kept: dict[str, list[str]] = {"ours": []}
    if options.shares:
        kept |= {part: [part] for part in PARTS} | {"all of them": list(PARTS)}
    commands = {"theirs": (theirs(options.peer, "train_theirs.py"), settings)}
    commands |= {name: (ours("train_ours.py"), settings | {"off": off}) for name, off in kept.items()}
    return {
        name: lambda c=command, s=said: run(c, s, threads=options.threads) for name, (command, said) in commands.items()
    }


def pace(one: Found, options: Namespace) -> float:
    """Seconds a step after the warm-up."""
    return statistics.fmean(one["seconds"][options.leave :])


def check(found: dict[str, list[Found]]) -> str:
    """The mean losses; UnequalError if they are not alike."""
    means = {name: statistics.fmean(loss for one in turns for loss in one["losses"]) for name, turns in found.items()}
    apart = max(abs(mean / means["theirs"] - 1) for mean in means.values())
    if not apart < APART:
        raise UnequalError(f"mean losses are {means}")
    return f"losses {means['theirs']:.3f} and {means['ours']:.3f}"


def table(name: str, found: dict[str, list[Found]], options: Namespace) -> None:
    """The rows of one data set."""
    a, b = found["theirs"], found["ours"]
    seconds_row(f"{name}, a step", [pace(one, options) for one in a], [pace(one, options) for one in b], check(found))
    for field, title in (("run_wall", "start to end"), ("run_cpu", "start to end, CPU")):
        seconds_row(f"{name}, {title}", [one[field] for one in a], [one[field] for one in b], "")
    memory = [[one["memory"] / 2**20 for one in side] for side in (a, b)]
    print_row([f"{name}, memory", *(f"{statistics.median(side):.0f} MB" for side in memory), ratio(*memory), ""])


def shares(name: str, found: dict[str, list[Found]], options: Namespace) -> None:
    """What each part is worth: the time of a step without it."""
    print(f"\n{name}: ours with one part at a time replaced by open_clip's way\n")
    print_row(["instead", "samples/s", "a step takes"])
    print_row(["---"] * 3)
    whole = [pace(one, options) for one in found["ours"]]
    for side, turns in found.items():
        seconds = [pace(one, options) for one in turns]
        title = {"theirs": "open_clip_train", "ours": "nothing", **WHAT}.get(side, side)
        print_row([title, f"{options.batch / statistics.median(seconds):.1f}", ratio(seconds, whole)])


def main(options: Namespace) -> None:
    print(conditions(options, kind="wall seconds"), flush=True)
    print(
        f"{options.arch}, batches of {options.batch}, {options.workers} loader process(es), {options.steps} steps, ",
        end="",
    )
    print(f"the first {options.leave} of them not counted\n")
    done = []
    print_row(["case", "theirs", "ours", "faster", "results"])
    print_row(["---"] * 5)
    for name, pattern in cells(options):
        found = by_turns(sides(options, pattern), options.rounds)
        (options.folder / "train.jsonl").open("a").write(json.dumps({"case": name, "found": found}) + "\n")
        table(name, found, options)
        done.append((name, found))
    for name, found in done if options.shares else ():
        shares(name, found, options)
    print(f"load average afterwards {load()}")


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    peer_options(parser)
    parser.add_argument("--arch", default="vlp-tiny-112", help="one of vlp/models/configs")
    parser.add_argument("--batch", type=int, default=None, help="default: 64, or 16 with --quick")
    parser.add_argument("--steps", type=int, default=None, help="default: 24, or 4 with --quick")
    parser.add_argument("--leave", type=int, default=None, help="steps that are not counted; default: 4, or 1")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each side")
    parser.add_argument("--captions", default="web,full", help="kinds of captions")
    parser.add_argument("--shares", action="store_true", help="also what each part of ours is worth")
    options = parse(parser)
    options.batch = options.batch or (16 if options.quick else 64)
    options.steps = options.steps or (4 if options.quick else 24)
    options.leave = options.leave or (1 if options.quick else 4)
    need_peer(parser, options.peer)
    main(options)
