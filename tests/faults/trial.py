"""One training run, killed and started again until it is done, and how it compares with the straight run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.scenes.tool import Scenes
from tests.faults.ledger import Books, audit
from tests.faults.strike import KEEP, Aim, Start, metrics_of, size_of
from vlp import checkpoint, config
from vlp.data.sources import open_records
from vlp.data.texts import captions_of
from vlp.text.train import train_sentencepiece

BATCH = 8  # N, and C: 1, 2, 4 and 8 processes serve it
INTERVAL = 3  # steps between saves
TOLERANCE = 1e-5  # of the loss, where the number of processes changes
NUMBERS = ("loss", "grad_norm", "scale", "lr")


class Paces(NamedTuple):
    """Of a straight run: seconds until its first record, of a step, of a save, and the bytes of a checkpoint."""

    start: float
    step: float
    save: float
    size: int


class Past(NamedTuple):
    """One start: where it took the run up, the last step it recorded, how it ended; `saving`: what the save was at."""

    world: int
    resumed: int
    reached: int
    how: str
    saving: str = ""
    failed: str = ""


class Verdict(NamedTuple):
    """A run beside the straight one."""

    past: list[Past]
    records: int
    unequal: list[str]  # records whose numbers differ in any bit
    apart: float  # largest difference of a loss
    files: list[str]  # of the last checkpoint, that differ
    books: Books
    loose: list[str]  # what is wrong with the folder
    exact: bool

    @property
    def kills(self) -> int:
        return sum(start.how == "killed" for start in self.past)

    @property
    def ends(self) -> int:
        """Starts that were killed or told to leave."""
        return sum(start.how != "done" for start in self.past)

    @property
    def saving(self) -> int:
        """Kills in the midst of a save."""
        return sum(bool(start.saving) for start in self.past)

    @property
    def repeated(self) -> int:
        """Most steps that a start had to do again."""
        return max((max(0, past.reached - then.resumed) for past, then in itertools.pairwise(self.past)), default=0)

    @property
    def failed(self) -> list[str]:
        return [f"start {number}: {start.failed}" for number, start in enumerate(self.past) if start.failed]

    @property
    def faults(self) -> list[str]:
        """All that is not as it must be."""
        found = self.failed + self.loose
        found += [f"batch differs: {place}" for place in self.books.wrong]
        found += [f"key missing: {key}" for key in self.books.missing]
        found += [f"key repeated: {key}" for key in self.books.repeated]
        if self.repeated > INTERVAL:
            found.append(f"{self.repeated} steps repeated, but a save comes every {INTERVAL}")
        if self.exact:
            return [*found, *self.unequal, *(f"last checkpoint: {name} differs" for name in self.files)]
        return found if self.apart <= TOLERANCE else [*found, f"a loss differs by {self.apart:.1e}"]


def make_data(out: Path, *, steps: int) -> Path:
    """Rendered scenes for one epoch of `steps` steps, its last batch not full, and a vocabulary of 340 pieces."""
    scenes = Scenes(count=steps * BATCH - 3, size=32, shard_size=max(BATCH, steps))
    shards = Path(scenes.run([], out / "scenes")["folder"])
    train_sentencepiece(
        captions_of(str(shards), fields=("caption",)), out / "words.model", vocab_size=340, kind="bpe", context=32
    )
    return shards


def settings(out: Path, shards: Path, *, exact: bool) -> dict[str, Any]:
    """A run of which everything depends on what came before; dropout, which is drawn by rank, only if `exact`."""
    words = str(shards.parents[1] / "words.model")
    return {
        "name": "run",
        "out": str(out),
        "model": {
            "arch": "vlp-nano",
            "patch_dropout": 0.25 if exact else 0.0,
            "tokenizer": {"name": "sentencepiece", "path": words, "context": 32},
        },
        "data": {
            "batch_size": BATCH,
            "workers": 1,
            "window": 2,
            "sources": [{"name": "shards", "urls": str(shards)}],
            "augment": {"scale": [0.5, 1.0]},
        },
        "losses": ["infonce"],
        "companions": [{"name": "ema", "decay": 0.9}],
        "duration": "1epochs",
        "optim": {"lr": 1e-3},
        "save": {"every": f"{INTERVAL}steps", "keep": KEEP},
        "log": {"every": "1steps"},
        "device": "cpu",
        "threads": 1,
    }


class Trial:
    """A run in a folder of its own, started on `worlds` processes, one after the other and over again."""

    def __init__(self, out: Path, shards: Path, *, worlds: Sequence[int], exact: bool = True) -> None:
        self.out, self.folder, self.shards, self.exact = out, out / "run", shards, exact
        self.worlds = itertools.cycle(worlds)
        self.past: list[Past] = []
        self.config = out / "run.yaml"
        out.mkdir(parents=True)
        self.config.write_text(config.to_yaml(settings(out, shards, exact=exact)), encoding="utf-8")

    def straight(self) -> Paces:
        """To its end without a kill, and how long things took; RuntimeError if that fails."""
        start = self.go()
        if self.past[-1].failed:
            raise RuntimeError(f"the straight run in {self.out} failed: {self.past[-1].failed}")
        records = metrics_of(self.folder)
        seconds = [float(record["seconds"]) for record in records]
        return Paces(
            start=(self.folder / "host.json").stat().st_mtime - start.at + seconds[0],
            step=(seconds[-1] - seconds[0]) / len(seconds),
            save=records[-1]["stages"]["save"] / -(-records[-1]["step"] // INTERVAL),
            size=size_of(checkpoint.listed(self.folder / "checkpoints")[-1]),
        )

    def go(self, aim: Aim | None = None) -> Start:
        """One start, ended as `aim` says, or by itself; it is written down in `past`."""
        world, resumed = next(self.worlds), self.step()
        start = Start(self.config, self.folder, world=world, number=len(self.past))
        end = start.strike(aim) if aim else start.finish()
        steps = start.recorded()
        how, failed = "stopped" if aim and aim.where == "stop" else "killed", ""
        if end.code is not None:
            how = "done"
            failed = f"ended with code {end.code}:\n{start.tail()}" if end.code else ""
        if steps and list(dict.fromkeys(steps)) != list(range(resumed + 1, resumed + 1 + len(set(steps)))):
            failed = failed or f"resumed at {resumed}, but its records are of steps {steps}"
        if rejected := checkpoint.newest(self.folder / "checkpoints").rejected:
            failed = failed or f"left a checkpoint that is not whole: {rejected[0]}"
        reached = max(steps, default=resumed)
        if how == "stopped" and self.step() != reached:
            failed = failed or f"told to leave at step {reached}, but saved {self.step()}"
        self.past.append(Past(world, resumed, reached, how, end.saving if how == "killed" else "", failed))
        return start

    def tear(self, kills: int, *, last: int, lot: random.Random, paces: Paces, say: Callable[[str], None]) -> None:
        """Kill it `kills` times and leave it to finish; every second time it is in a save, or elastic, told to leave.

        At the first start that fails it ends: what comes after would say nothing.
        """
        for number in range(kills + 1):
            resumed, saves = self.step(), sum(bool(start.saving) for start in self.past)
            aim = None
            if number < kills and resumed < last:
                aim = draw_aim(
                    lot, resumed=resumed, last=last, left=kills - number, save=2 * saves <= number, paces=paces
                )
                if not self.exact and number % 2:
                    aim = Aim("stop", min(resumed + lot.randint(1, INTERVAL), last - 1))
            self.go(aim)
            say(f"{number + 1} of {kills + 1}: {_told(self.past[-1], aim)}")
            if self.past[-1].failed or self.past[-1].how == "done":
                return

    def step(self) -> int:
        """The step that a start would go on from."""
        found = checkpoint.newest(self.folder / "checkpoints").path
        return checkpoint.step_of(found) if found else 0

    def tensors(self) -> dict[str, str]:
        """Hash of every file of tensors of the last checkpoint: weights, averages, optimizer."""
        found = checkpoint.newest(self.folder / "checkpoints").path
        files = checkpoint.read_json(found / checkpoint.MANIFEST)["files"] if found else {}
        return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}

    def beside(self, straight: Trial) -> Verdict:
        """What became of it, compared with the run that nothing happened to."""
        expected = {record["step"]: record for record in metrics_of(straight.folder)}
        records = metrics_of(self.folder)
        pairs = [(record, expected[record["step"]]) for record in records]
        unequal = [
            f"step {ours['step']}, record {number}: {what}"
            for number, (ours, theirs) in enumerate(pairs)
            for what in _differing(ours, theirs)
        ]
        loose = [f"left behind: {path.name}" for path in (self.folder / "checkpoints").glob(".*")]
        loose += [f"left behind: {path.name}" for path in self.folder.glob("lock.json")]
        if expected.keys() - {record["step"] for record in records}:
            loose.append("it did not come to its end")
        return Verdict(
            self.past,
            len(records),
            unequal,
            max((abs(float(ours["loss"]) - float(theirs["loss"])) for ours, theirs in pairs), default=0.0),
            sorted(dict(self.tensors().items() ^ straight.tensors().items())),
            audit(self.out, straight.out, keys=keys_of(self.shards)),
            loose,
            self.exact,
        )


def draw_aim(lot: random.Random, *, resumed: int, last: int, left: int, save: bool, paces: Paces) -> Aim:
    """A moment of the start that goes on at `resumed`, such that enough steps remain for the `left` kills to come."""
    reach = max(1, min(2 * (last - resumed) // (left + 1), last - resumed - 1))
    if save:
        step = min(last, (resumed // INTERVAL + lot.randint(1, max(1, reach // INTERVAL))) * INTERVAL)
        if lot.random() < 0.5:
            return Aim("bytes", step, lot.random(), float(paces.size))
        return Aim("moment", step, lot.random(), paces.save)
    if lot.random() < 0.15:
        return Aim("start", share=lot.random(), scale=paces.start)
    return Aim("step", resumed + lot.randint(1, reach), lot.random(), paces.step)


def keys_of(shards: Path) -> set[str]:
    """ "shard:key" of every sample."""
    records = open_records({"name": "shards", "urls": str(shards)})
    return {":".join(records.name(number)) for number in range(len(records))}


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Numbers of two records of a step that are not the same bits."""
    return [
        f"{name} {float(ours[name]).hex()}, not {float(theirs[name]).hex()}"
        for name in NUMBERS
        if float(ours[name]).hex() != float(theirs[name]).hex()
    ]


def _told(start: Past, aim: Aim | None) -> str:
    meant = f" (aimed at {aim.where} {aim.step})" if aim else ""
    saving = f" in a save: {start.saving}" if start.saving else ""
    failed = f"; FAILED: {start.failed}" if start.failed else ""
    return (
        f"W={start.world}, from step {start.resumed}, {start.how} after the record of {start.reached}"
        f"{saving}{meant}{failed}"
    )
