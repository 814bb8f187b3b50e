"""Several arms of one question under the same budget: each arm of a YAML file as a run, some at a time, resumable.

    python runs/arms.py runs/objectives_openstax.yaml --out runs/out/objectives --seeds 0 --parallel 2

The file has `base` (a run's configuration), `common` (overrides of all arms) and `arms` (name: overrides). An override
may say `{data}` for the folder given with --data, `{out}` and `{seed}`. A finished arm has a file `done`; an
interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="data")
    parser.add_argument("--seeds", default="0", help="comma between them")
    parser.add_argument("--only", default="", help="names of arms, comma between them; default: all")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each run")
    parser.add_argument("--set", action="append", default=[], help="one more override for every arm")
    args = parser.parse_args()
    plan = yaml.safe_load(args.plan.read_text(encoding="utf-8"))
    names = args.only.split(",") if args.only else list(plan["arms"])
    if unknown := set(names) - set(plan["arms"]):
        raise SystemExit(f"{args.plan}: no arm {', '.join(sorted(unknown))}; known: {', '.join(plan['arms'])}")
    jobs = [(name, seed) for seed in args.seeds.split(",") for name in names]
    with ThreadPoolExecutor(args.parallel) as pool:
        codes = list(pool.map(lambda job: run(plan, args, *job), jobs))
    if failed := [f"{name}-seed{seed}" for (name, seed), code in zip(jobs, codes, strict=True) if code]:
        raise SystemExit(f"failed: {', '.join(failed)}; their words are in {args.out}/*.log")


def run(plan: dict[str, Any], args: argparse.Namespace, name: str, seed: str) -> int:
    """The exit code of one arm; 0 at once if it is done."""
    folder = args.out / f"{name}-seed{seed}"
    args.out.mkdir(parents=True, exist_ok=True)
    words = [*plan.get("common", []), *(plan["arms"][name] or []), *args.set]
    filled = {"{data}": args.data, "{out}": str(args.out), "{seed}": seed}
    for mark, value in filled.items():
        words = [word.replace(mark, value) for word in words]
    vlp = os.environ.get("VLP", str(Path(sys.executable).with_name("vlp")))
    command = [
        vlp,
        "train",
        plan["base"],
        f"name={folder.name}",
        f"out={args.out}",
        f"seed={seed}",
        f"threads={args.threads}",
        *words,
    ]
    asked = hashlib.sha256(json.dumps(command[1:]).encode()).hexdigest()
    done = folder / "done"
    if done.exists():
        if done.read_text(encoding="ascii").split()[0] == asked:
            return 0
        print(f"{folder.name}: was done with other settings; move {folder} away to run it again", flush=True)
        return 1
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    began = time.monotonic()
    with (args.out / f"{folder.name}.log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=env).returncode
    seconds = time.monotonic() - began
    print(f"{folder.name}: {'done' if code == 0 else f'exit code {code}'} in {seconds:.0f} s", flush=True)
    if code == 0:
        done.write_text(f"{asked} {seconds:.1f} s\n", encoding="ascii")
    return code


if __name__ == "__main__":
    main()
