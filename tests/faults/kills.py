"""Training killed at random moments, also during a save, started again until it is done, beside the straight run.

    python -m tests.faults.kills --world 1 2 4 --kills 20 --seed 0 --out FOLDER
    python -m tests.faults.kills --elastic --kills 6 --out FOLDER

Each row is one run of exactly one epoch on rendered scenes, by torchrun for W > 1; SIGKILL goes to all its processes.
What it must show: loss, gradient norm and scale of every step equal to the straight run's to the last bit, those of
repeated steps too; equal weights, averages and optimizer; every key of the epoch exactly once; no failed restart; at
most one save interval repeated. With --elastic the number of processes changes between starts (2, 1, 4, 2, ...), and
the loss may differ by 1e-5. The exit code is 1 if anything differs or fewer than a third of the kills met a save.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from tests.faults.trial import INTERVAL, Trial, Verdict, make_data

ELASTIC = (2, 1, 4)  # processes of one start after the other, over and over
SHOWN = 20  # faults that are printed
COLUMNS = (
    "W", "kills", "in a save", "told to leave", "records equal", "most repeated", "largest loss difference",
    "weights equal", "global batches equal", "keys once", "failed restarts",
)  # fmt: skip


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def compare(out: Path, shards: Path, *, world: int, kills: int, seed: int) -> Verdict:
    """A run on `world` processes killed `kills` times, beside the straight one."""
    straight = Trial(out / f"straight-{world}", shards, worlds=[world])
    paces = straight.straight()
    last = straight.step()
    say(f"W={world}: straight run of {last} steps: {paces}")
    torn = Trial(out / f"torn-{world}", shards, worlds=[world])
    torn.tear(kills, last=last, lot=random.Random(f"{seed} {world}"), paces=paces, say=say)
    return torn.beside(straight)


def compare_elastic(out: Path, shards: Path, *, kills: int, seed: int) -> Verdict:
    """A run whose number of processes changes at every start, beside the straight one on the first of them."""
    straight = Trial(out / "straight-elastic", shards, worlds=ELASTIC[:1], exact=False)
    paces = straight.straight()
    torn = Trial(out / "torn-elastic", shards, worlds=ELASTIC, exact=False)
    torn.tear(kills, last=straight.step(), lot=random.Random(f"{seed} elastic"), paces=paces, say=say)
    return torn.beside(straight)


def row(verdict: Verdict) -> list[str]:
    worlds = [start.world for start in verdict.past]
    total = len(verdict.books.missing) + len(verdict.books.repeated)
    unequal = len({text.partition(":")[0] for text in verdict.unequal})
    return [
        str(worlds[0]) if verdict.exact else "→".join(map(str, worlds)),
        str(verdict.kills),
        str(verdict.saving),
        str(verdict.ends - verdict.kills),
        f"{verdict.records - unequal} of {verdict.records}" if verdict.exact else "-",
        f"{verdict.repeated} steps",
        f"{verdict.apart:.1e}",
        "-" if not verdict.exact else "no" if verdict.files else "yes",
        f"{verdict.books.batches - len(verdict.books.wrong)} of {verdict.books.batches}",
        f"{total} are not" if total else f"all {verdict.books.keys}",
        str(len(verdict.failed)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, nargs="*", default=[1, 2, 4], help="processes, one row each")
    parser.add_argument("--kills", type=int, default=20, help="of each run; elastic: ends of any kind")
    parser.add_argument("--steps", type=int, default=None, help=f"of a run; default: {INTERVAL} a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--elastic", action="store_true", help="one run at changing numbers of processes instead")
    parser.add_argument("--out", type=Path, required=True, help="new folder for runs, books and logs of all starts")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} is there already: remove it or name another folder")
    shards = make_data(options.out, steps=options.steps or INTERVAL * max(4, options.kills))
    seeds = {"kills": options.kills, "seed": options.seed}
    wrong: list[str] = []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for world in [0] if options.elastic else options.world:
        verdict = (
            compare(options.out, shards, world=world, **seeds)
            if world
            else compare_elastic(options.out, shards, **seeds)
        )
        print(f"| {' | '.join(row(verdict))} |", flush=True)
        faults = verdict.faults
        if verdict.ends < options.kills or 3 * verdict.saving < verdict.kills:
            faults.append(f"only {verdict.ends} of {options.kills} starts ended, {verdict.saving} in a save; --steps")
        wrong += [f"W={world or 'elastic'}: {fault}" for fault in faults]
        (options.out / f"verdict-{world or 'elastic'}.json").write_text(json.dumps(verdict._asdict(), indent=1))
    for line in wrong[:SHOWN]:
        print(line)
    if len(wrong) > SHOWN:
        print(f"and {len(wrong) - SHOWN} more; see {options.out}/verdict-*.json")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
