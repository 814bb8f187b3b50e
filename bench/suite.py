"""`vlp eval` beside CLIP_benchmark: ten data sets with 80 templates, the same weights and folders, in processes.

CLIP_benchmark runs as its users run it, all sets in one process, in an environment of its own: `make peers-eval` makes
it, or --peer names the python of one that is there. Both get fp32, batches of 64, the same threads and loader processes
and the same pixels (`--resizer pillow`).
After the first run each side runs again: ours finds its features in the cache, theirs keeps none. Parts are those of
peers/theirs.py and peers/ours.py; the rest is starting and loading and, on our side, example pictures and the report.
Metrics must be equal to 1e-4 on every set, else no ratio is given. The clock is the wall's, so the machine has to be
quiet. Data sets and weights are made in --folder the first time.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paired import arguments, conditions, cores, load, print_row
from suite_sets import EvalSet, make_model, make_sets, ten, write_suite

from vlp.text.templates import openai_imagenet

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers" / ".venv-clip_benchmark" / "bin" / "python"
QUICK = ("colors", "shapes-shown", "captions-a")
LIMIT = 1e-4
CLASSES, MULTI, BOTH_WAYS = (
    ("acc1", "acc5", "mean_per_class_recall"),
    ("mean_average_precision",),
    ("image_retrieval_recall@5", "text_retrieval_recall@5"),
)
METRICS = {"zeroshot": CLASSES, "multilabel": MULTI, "retrieval": BOTH_WAYS}
PARTS = ("text", "image", "scores")


@dataclass(frozen=True)
class Took:
    """Seconds of one run: by part, of the wall, and of all cores."""

    parts: dict[str, float]
    wall: float
    cpu: float

    def of(self, part: str) -> float:
        if part in PARTS:
            return self.parts[part]
        return self.wall - sum(self.parts.values()) if part == "rest" else self.wall


class Sides:
    """Both commands on the same folders."""

    def __init__(self, folder: Path, sets: Sequence[EvalSet], options: Namespace) -> None:
        self.folder, self.sets, self.options = folder, sets, options
        self.results = {side: folder / f"out-{side}" for side in ("theirs", "ours")}

    def theirs(self, *, again: bool) -> Took:
        out = self.results["theirs"]
        if not again:
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(exist_ok=True)
        shared = ["--model", f"local-dir:{self.folder / 'model'}", "--pretrained", "none", "--no_amp", "--quiet"]
        shared += ["--dataset_root", f"{self.folder}/wds_{{dataset_cleaned}}", "--output", f"{out}/{{dataset}}.json"]
        words = ["--", *shared, "--num_workers", str(self.options.workers)]
        for task, chosen in (("classification", False), ("retrieval", True)):
            names = [f"wds/{one.name}" for one in self.sets if one.is_retrieval is chosen]
            words += ["--", "--task", f"zeroshot_{task}", "--dataset", *names]
        return self._run("theirs", [str(self.options.peer), str(HERE / "peers" / "theirs.py")], words)

    def ours(self, *, again: bool) -> Took:
        out, cache = self.results["ours"], self.folder / "features"
        if not again:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
            for index in self.folder.glob("wds_*/test/*.index"):
                index.unlink()
        words = [str(self.folder / "model"), str(self.folder / "suite.yaml"), "--out", str(out), "--again"]
        words += ["--cache", str(cache), "--cache-dtype", "fp32", "--resizer", self.options.resizer]
        words += ["--workers", str(self.options.workers)]
        return self._run("ours", [sys.executable, str(HERE / "peers" / "ours.py")], words)

    def _run(self, side: str, command: list[str], words: list[str]) -> Took:
        parts, log = self.folder / f"parts-{side}.json", self.folder / f"{side}.log"
        parts.unlink(missing_ok=True)
        threads = str(self.options.threads)
        own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        own |= {"PYTHONPATH": str(HERE.parent) if side == "ours" else ""}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with log.open("w") as file:
            done = subprocess.run([*command, str(parts), *words], env=os.environ | own, stdout=file, stderr=file)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{side} failed with {done.returncode}; {log} ends\n{log.read_text()[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Took(json.loads(parts.read_text()), wall, cpu)

    def metrics(self) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        """Metrics by set of the last runs, theirs and ours."""
        theirs = {
            one.name: json.loads((self.results["theirs"] / f"{one.name}.json").read_text())["metrics"]
            for one in self.sets
        }
        lines = (self.results["ours"] / "results.jsonl").read_text().splitlines()
        return theirs, {row["dataset"]: row["metrics"] for row in map(json.loads, lines)}


def compare(sides: Sides) -> list[list[str]]:
    """Both sides' metrics, one row each; leaves with 1 and says which if any differ."""
    theirs, ours = sides.metrics()
    rows, differ = [], []
    for one in sides.sets:
        texts = sides.options.pictures * 5 if one.is_retrieval else len(one.classes) * len(openai_imagenet())
        for metric in METRICS[one.benchmark]:
            a, b = theirs[one.name][metric], ours[one.name][metric]
            rows.append([one.name, str(texts), metric, f"{a:.4f}", f"{b:.4f}", f"{abs(a - b):.0e}"])
            if not abs(a - b) <= LIMIT:  # also where one is not a number
                differ.append(f"{one.name} {metric} {a} and {b}")
    if differ:
        sys.exit(f"metrics differ by more than {LIMIT:.0e}, so no ratio is given: {'; '.join(differ)}")
    return rows


def table(runs: dict[str, list[Took]], title: str) -> None:
    """Prints one row a part: median seconds of both sides, and median and range of their ratio."""
    for part in (*PARTS, "rest", "whole"):
        pairs = [(a.of(part), b.of(part)) for a, b in zip(runs["theirs"], runs["ours"], strict=True)]
        ratios = [a / b for a, b in pairs]
        faster = f"{statistics.median(ratios):.2f}x"
        if len(ratios) > 1:
            faster += f" [{min(ratios):.2f}, {max(ratios):.2f}]"
        print_row([f"{title}, {part}", *(f"{statistics.median(side):.1f} s" for side in zip(*pairs)), faster])
    cpu = [statistics.median(one.cpu for one in runs[side]) for side in ("theirs", "ours")]
    print_row([f"{title}, CPU seconds", *(f"{one:.1f} s" for one in cpu), f"{cpu[0] / cpu[1]:.2f}x"])


def prepare(options: Namespace) -> Sides:
    """The data sets, the weights and the suite, made where they are not there yet."""
    sets = [one for one in ten() if not options.quick or one.name in QUICK]
    folder = options.folder.resolve() / ("quick" if options.quick else str(options.pictures))
    folder.mkdir(parents=True, exist_ok=True)
    make_sets(folder, sets, pictures=options.pictures)
    if not (folder / "model" / "vlp.json").is_file():
        make_model(folder / "model", pictures=300 if options.quick else 1000)
    write_suite(folder / "suite.yaml", folder, sets)
    return Sides(folder, sets, options)


def options_of(parser: ArgumentParser) -> Namespace:
    parser.add_argument("--pictures", type=int, default=None, help="of each set; default: 1000, or 40 with --quick")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "out" / "bench-suite")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each side")
    parser.add_argument("--resizer", default="pillow", choices=("pillow", "torch"), help="of ours")
    parser.add_argument("--peer", type=Path, default=PEER, help="python that has clip-benchmark")
    parser.set_defaults(threads=cores())
    options = parser.parse_args()
    options.rounds = options.rounds or 1
    options.pictures = options.pictures or (40 if options.quick else 1000)
    if not options.peer.is_file():
        parser.error(f"{options.peer}: no such python; `make peers-eval` makes it (about 6 GB)")
    return options


def main(options: Namespace) -> None:
    sides, lot = prepare(options), random.Random(0)
    print(conditions(options, kind="wall seconds"), flush=True)
    first, again = ({side: list[Took]() for side in ("theirs", "ours")} for _ in range(2))
    for _ in range(options.rounds):
        for runs in (first, again):
            for side in lot.sample(["theirs", "ours"], 2):
                runs[side].append(getattr(sides, side)(again=runs is again))
            rows = compare(sides)
    for row in (["set", "texts", "metric", "theirs", "ours", "apart"], ["---"] * 6, *rows):
        print_row(row)
    print(f"\n{options.pictures} pictures in each set\n")
    print_row(["run, part", "theirs", "ours", "faster"])
    print_row(["---"] * 4)
    table(first, "first")
    table(again, "again")
    print(f"load average afterwards {load()}")


if __name__ == "__main__":
    main(options_of(arguments(__doc__, rounds=1)))
