"""Leaks of evaluation sets into one training shard: the unit of work of `contamination`, the same in any process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.matches import Gallery, Match, Rule, matches
from data_tools.sketches import Reading, Sketches, joined, sketches_of


class Plan(NamedTuple):
    """What training shards are compared with, and how."""

    tests: tuple[Path, ...]  # shards of all evaluation sets
    names: tuple[str, ...]  # the set that each belongs to
    cache: Path  # of sketches
    reading: Reading
    rule: Rule


class Place(NamedTuple):
    """A sample: its set ("train" for all training shards), the shard it lies in, and its key."""

    side: str
    shard: Path
    key: str


class Leak(NamedTuple):
    """A picture of an evaluation set and the training picture that is the same."""

    test: Place
    train: Place
    match: Match
    same_file: bool  # equal bytes
    same_caption: bool  # a caption of the one is one of the other


class Skip(NamedTuple):
    """A picture that could not be looked at."""

    place: Place
    reason: str
    detail: str


class Tests(NamedTuple):
    """The pictures of all evaluation sets."""

    sketches: Sketches
    places: list[Place]
    gallery: Gallery


class Looked(NamedTuple):
    """One training shard, looked at."""

    shard: Path
    keys: list[str]
    leaks: list[Leak]
    misses: list[Leak]  # pairs that nearly are the same
    left_out: int  # near pairs that were not compared, because their training picture has nearer ones
    skips: list[Skip]
    flat: int  # pictures without a perceptual hash
    captions: set[int]  # rows of `Tests` with a caption that some sample has


@lru_cache(maxsize=1)
def tests_of(plan: Plan) -> Tests:
    """The evaluation sets, opened once in each process."""
    parts = [sketches_of(shard, cache=plan.cache, reading=plan.reading) for shard in plan.tests]
    sketches = joined(parts)
    homes = zip(plan.names, plan.tests, parts)
    return Tests(
        sketches, [Place(name, shard, key) for name, shard, part in homes for key in part.keys], Gallery.of(sketches)
    )


def look_at(shard: Path, plan: Plan) -> Looked:
    """What of the evaluation sets is in a training shard."""
    tests = tests_of(plan)
    train = sketches_of(shard, cache=plan.cache, reading=plan.reading)
    found = matches(train, tests.gallery, plan.rule)
    shared = np.isin(tests.sketches.caption, train.caption)
    places = [Place("train", shard, key) for key in train.keys]
    return Looked(
        shard=shard,
        keys=train.keys,
        leaks=leaks_of(shard, train, found.found, tests),
        misses=leaks_of(shard, train, found.misses, tests),
        left_out=found.left_out,
        skips=skips_of(train, places),
        flat=int((train.readable() & ~train.hashed()).sum()),
        captions=set(tests.sketches.caption_row[shared].tolist()),
    )


def skips_of(sketches: Sketches, places: list[Place]) -> list[Skip]:
    """The pictures that could not be read."""
    rows = zip(places, sketches.reasons, sketches.details)
    return [Skip(place, reason, detail) for place, reason, detail in rows if reason]


def leaks_of(shard: Path, train: Sketches, found: Iterable[Match], tests: Tests) -> list[Leak]:
    """Matches of rows as leaks of samples."""
    found = list(found)
    ours = _captions(train, {match.train for match in found})
    theirs = _captions(tests.sketches, {match.other for match in found})
    return [
        Leak(
            test=tests.places[match.other],
            train=Place("train", shard, train.keys[match.train]),
            match=match,
            same_file=train.bytes_sha256[match.train] == tests.sketches.bytes_sha256[match.other],
            same_caption=not ours[match.train].isdisjoint(theirs[match.other]),
        )
        for match in found
    ]


def _captions(sketches: Sketches, rows: set[int]) -> dict[int, set[int]]:
    """Row -> fingerprints of its captions, of some rows."""
    found: dict[int, set[int]] = {row: set() for row in rows}
    for place in np.flatnonzero(np.isin(sketches.caption_row, list(rows))).tolist():
        found[int(sketches.caption_row[place])].add(int(sketches.caption[place]))
    return found
