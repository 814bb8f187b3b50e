"""The tool `contamination`: which evaluation pictures are in the training shards, and which samples to drop for it."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from data_tools.leaks import Leak, Looked, Place, Plan, Skip, Tests, leaks_of, look_at, skips_of, tests_of
from data_tools.matches import Rule, compare, guessed
from data_tools.neighbours import propose
from data_tools.progress import progress
from data_tools.shards import find_shards
from data_tools.sketches import Reading, sketches_of
from data_tools.texts import CAPTION_FIELDS
from vlp.data.decode import Limits
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.registry import Part
from vlp.report.bars import wilson

KINDS = ("exact", "re-encoded", "crop", "embedding")  # the strongest first
EMBEDDING = "embedding"
MISSES = 48  # near misses kept in all


class Contamination(Part):
    """Evaluation pictures that training shards hold: the same pixels, coded again, cut out, or (`model`) near features.

    Digests find equal pixels; perceptual hashes of whole pictures and of windows find candidates, both ways; these are
    aligned and their pixels compared, so a near hash alone is never a leak. A model's neighbours are compared likewise.
    """

    against: tuple[str, ...] = Field(min_length=1)  # evaluation sets: shards as of training, or NAME=SHARDS
    captions: tuple[str, ...] = CAPTION_FIELDS
    limits: Limits = Limits()
    detail: float = Field(default=Rule().detail, gt=0, le=1)
    worst: float = Field(default=Rule().worst, gt=0)
    colour: float = Field(default=Rule().colour, gt=0)
    model: str | None = None
    neighbours: int = Field(default=5, ge=1)  # training pictures of each evaluation picture that `model` proposes
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache: Path | None = None  # of sketches; default: a folder in `out`
    workers: int = Field(default=1, ge=1)
    shown: int = Field(default=60, ge=0)  # pairs of each evaluation set on the page

    def run(self, inputs: Iterable[Path | str], out: Path) -> dict[str, Any]:
        """The summary; writes leaks.csv, keep-lists, skips.jsonl, summary.json and contamination.html under `out`."""
        from data_tools.contamination_page import write_page
        from data_tools.contamination_tables import summary, write_summary, write_tables

        report = find_leaks(inputs, self, cache=self.cache or out / "sketches")
        out.mkdir(parents=True, exist_ok=True)
        lists = write_tables(report, out)
        result = summary(report, self, lists)
        write_page(report, result, out / "contamination.html", shown=self.shown, limits=self.limits)
        write_summary(result, out)
        return result

    @property
    def rule(self) -> Rule:
        return Rule(self.detail, self.worst, self.colour)


@dataclass(frozen=True)
class Evaluation:
    """What was found of one evaluation set."""

    name: str
    pictures: int  # that could be read
    skipped: dict[str, int]
    flat: int  # so nearly of one colour that only equal pixels can be found
    leaked: dict[str, int]  # kind -> pictures, each by the strongest of its leaks
    same_caption: int  # pictures with a caption that some training sample has, leaked or not

    @property
    def share(self) -> float:
        return sum(self.leaked.values()) / self.pictures if self.pictures else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(sum(self.leaked.values()), self.pictures)


@dataclass
class Report:
    """Everything that was found."""

    evaluations: list[Evaluation] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    misses: list[Leak] = field(default_factory=list)  # pairs that nearly are the same, the nearest first
    skips: list[Skip] = field(default_factory=list)
    samples: dict[Path, list[str]] = field(default_factory=dict)  # training shard -> keys
    flat: int = 0  # training pictures without a perceptual hash
    not_compared: int = 0  # near pairs left out because their training picture has nearer ones
    threshold: float | None = None  # cosine from which neighbours of `model` were compared
    not_encoded: dict[str, int] = field(default_factory=dict)  # pictures that `model` could not read, by reason

    def add(self, looked: Looked) -> None:
        """Takes in one training shard."""
        self.samples[looked.shard] = looked.keys
        self.leaks += looked.leaks
        self.misses += looked.misses
        self.skips += looked.skips
        self.flat += looked.flat
        self.not_compared += looked.left_out


def find_leaks(train: Iterable[Path | str], settings: Contamination, *, cache: Path) -> Report:
    """Leaks of all evaluation sets into the shards of `train`, one shard at a time; sketches are kept in `cache`."""
    shards = find_shards(str(item) for item in train)
    sets = _named(settings.against)
    plan = Plan(
        tests=tuple(shard for found in sets.values() for shard in found),
        names=tuple(name for name, found in sets.items() for _ in found),
        cache=cache,
        reading=Reading(settings.limits, settings.captions),
        rule=settings.rule,
    )
    if missing := [str(shard) for shard in (*shards, *plan.tests) if not shard.is_file()]:
        raise DataError(f"{len(missing)} shards are missing: {', '.join(missing[:5])}; see `vlp data verify`")
    tests_of.cache_clear()  # the shards may be others than those of an earlier call
    tests, report, captions = tests_of(plan), Report(), set[int]()
    if empty := [name for name in sets if all(place.side != name for place in tests.places)]:
        raise DataError(f'evaluation set "{empty[0]}": no sample in its shards; see `vlp data verify`')
    for looked in progress(_looked(shards, plan, settings.workers), total=len(shards), label="contamination"):
        report.add(looked)
        captions |= looked.captions
    if not any(report.samples.values()):
        raise DataError(f"{len(shards)} training shards, but no sample in them; see `vlp data verify`")
    if settings.model is not None:
        _add_neighbours(report, shards, plan, settings)
    report.misses = nlargest(MISSES, report.misses, key=lambda miss: miss.match.score)
    report.skips += skips_of(tests.sketches, tests.places)
    report.evaluations = _evaluated(sets, tests, report.leaks, captions)
    return report


def _named(against: Iterable[str]) -> dict[str, list[Path]]:
    """Evaluation set -> its shards; the name is what stands before "=", else the last two parts of the path."""
    sets: dict[str, list[Path]] = {}
    for item in against:
        left, equals, right = item.partition("=")
        named = bool(equals) and "/" not in left
        name = left if named else "/".join(Path(item).with_suffix("").parts[-2:])
        if name in sets or name == "train":
            raise DataError(f'--against: two sets are called "{name}" (or one "train"); write NAME={item}')
        sets[name] = find_shards([right if named else item])
    return sets


def _looked(shards: Sequence[Path], plan: Plan, workers: int) -> Iterator[Looked]:
    """Every shard looked at, in order, `workers` of them at a time."""
    if workers <= 1 or len(shards) <= 1:
        yield from (look_at(shard, plan) for shard in shards)
        return
    # spawn: forking a process with threads is not safe
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(look_at, shards, [plan] * len(shards))


def _add_neighbours(report: Report, shards: Sequence[Path], plan: Plan, settings: Contamination) -> None:
    """Leaks among the neighbours that the model proposes and the hashes did not find."""
    tests = tests_of(plan)
    proposed = propose(shards, plan.tests, _encoder(settings), count=settings.neighbours)
    known = {(leak.test, leak.train) for leak in report.leaks}
    for shard, pairs in proposed.pairs.items():
        train = sketches_of(shard, cache=plan.cache, reading=plan.reading)
        found, misses = compare(train, tests.gallery, guessed(train, tests.gallery, pairs), plan.rule)
        found = [match._replace(kind=EMBEDDING) for match in found]
        for kept, new in ((report.leaks, found), (report.misses, misses)):
            leaks = leaks_of(shard, train, new, tests)
            kept += [leak for leak in leaks if (leak.test, leak.train) not in known]
    report.threshold, report.not_encoded = proposed.threshold, proposed.skips


def _encoder(settings: Contamination) -> Encoder:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Encoder(pretrained.load(str(settings.model)), device=device, quiet=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"--model {settings.model}: {error}") from error


def _evaluated(sets: Iterable[str], tests: Tests, leaks: Iterable[Leak], captions: set[int]) -> list[Evaluation]:
    """What was found of every set, a picture once, by the strongest of its leaks."""
    strongest: dict[Place, str] = {}
    for leak in sorted(leaks, key=lambda leak: -KINDS.index(leak.match.kind)):
        strongest[leak.test] = leak.match.kind
    readable, hashed = tests.sketches.readable(), tests.sketches.hashed()
    found = []
    for name in sets:
        mine = np.array([place.side == name for place in tests.places], dtype=bool)
        reasons = (reason for reason, own in zip(tests.sketches.reasons, mine.tolist()) if own and reason)
        kinds = Counter(kind for place, kind in strongest.items() if place.side == name)
        found.append(
            Evaluation(
                name=name,
                pictures=int((mine & readable).sum()),
                skipped=dict(Counter(reasons)),
                flat=int((mine & readable & ~hashed).sum()),
                leaked={kind: kinds[kind] for kind in KINDS},
                same_caption=sum(bool(mine[row]) for row in captions),
            )
        )
    return found
