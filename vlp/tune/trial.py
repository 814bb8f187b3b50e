"""A trial as a record, with the hits beside it; several of them, gone on with where they were left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlp import __version__
from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import Adapter
from vlp.adapters.provenance import UNKNOWN, Provenance
from vlp.adapters.task import short_hash
from vlp.log import console, host_facts
from vlp.tune import PROTOCOLS
from vlp.tune.content import content_hashes
from vlp.tune.fitting import provenance, traits
from vlp.tune.overlap import shared_rows
from vlp.tune.protocols import Outcome, Protocol, Trial, Unsupervised
from vlp.tune.record import (
    REFUSED,
    RESULTS,
    VALIDATION,
    TuneRecord,
    append,
    at_chance,
    labels_in_words,
    read,
    settings_hash,
    write_hits,
)
from vlp.tune.stock import Opening, Stock
from vlp.tune.support import make_draws, tell_short

WORST = 3  # classes named in a line


class Run(NamedTuple):
    """A record, and what came of the trial."""

    record: TuneRecord
    outcome: Outcome


class Plan(NamedTuple):
    """What a grid goes through for each data set: every method at every number of shots with every seed.

    Where a method takes no labelled pictures, the number of shots would only say which pictures it does not see.
    """

    methods: Sequence[Adapter]
    shots: Sequence[int | None]
    seeds: Sequence[int]
    protocol: Protocol

    def cells(self) -> Iterator[tuple[Adapter, int | None, int]]:
        """Method, shots and seed.

        One that takes no labels at 0 shots; one that learns from no pictures at all only once, unless it draws.
        """
        for method in self.methods:
            known = traits(method)
            if known.setting == "zero-shot":
                for seed in self.seeds if known.by_seed else self.seeds[:1]:
                    yield method, 0, seed
                continue
            for shots in self.shots if "support" in known.takes else (0,):
                for seed in self.seeds:
                    yield method, shots, seed


def run_trial(trial: Trial, protocol: Protocol, *, code: str) -> Run:
    """Fits and measures."""
    began, reads = time.perf_counter(), _label_reads(trial)
    outcome = protocol.measure(trial)
    about = getattr(outcome.classifier, "about", {})
    selection = dict(about.get("selection", {"split": "none"}))
    ci95 = {name: (low, high) for name, (low, high) in outcome.ci95.items()}
    asked = _asked(trial, protocol, code, provenance(trial.adapter))
    record = asked.model_copy(
        update={
            "n": outcome.n,
            "metrics": outcome.metrics,
            "ci95": ci95,
            "chance": outcome.chance,
            "contains_chance": at_chance(ci95, outcome.chance),
            "selection": selection,
            "leaky": asked.leaky or selection.get("split") == "test",
            "counts": outcome.counts,
            "skips": outcome.skips,
            "pseudolabels": outcome.pseudolabels,
            "test_label_reads": _label_reads(trial) - reads,
            "seconds": round(time.perf_counter() - began, 3),
        }
    )
    return Run(record, outcome)


class Found(NamedTuple):
    """What a grid found: records, and why each data set without any was refused."""

    records: list[TuneRecord]
    refused: dict[str, str]

    def failures(self) -> list[str]:
        """Sentences, none where all went well."""
        failed = sum(record.error is not None for record in self.records)
        said = [f"{failed} of {len(self.records)} trials failed: the records say why"] if failed else []
        return [*said, *(f"{name} was not measured: {why}" for name, why in self.refused.items())]


def run_grid(openings: Iterable[Opening], plan: Plan, *, out: Path, targets: Sequence[Stock] = ()) -> Found:
    """One record for each cell of the plan, appended to OUT/results.jsonl; what stands there is not measured again.

    A trial that fails leaves a record with its error, a data set that cannot be read or drawn from a line in
    OUT/refused.json, and the rest goes on; what failed is tried again next time.
    """
    done = {row.settings_hash: row for row in read(out / RESULTS) if row.error is None}
    there, code, found = {*done}, code_version(), Found([], {})
    for dataset, opened in openings:
        try:
            with opened() as stock:
                drawn = _draws(stock, plan, out)
                for method, shots, seed in plan.cells():
                    trial = Trial(method, stock, shots, seed, drawn.get((shots, seed)), targets)
                    asked = _asked(trial, plan.protocol, code)
                    if asked.settings_hash not in done:
                        done[asked.settings_hash] = _attempt(trial, plan.protocol, asked, code, out)
                    found.records.append(done[asked.settings_hash])
        except Exception as error:  # a grid of many hours is not lost for one data set
            found.refused[dataset] = f"{type(error).__name__}: {error}"
            console.print(f"{dataset}: {found.refused[dataset]}", highlight=False, soft_wrap=True, markup=False)
    _write_refused(found.refused, out)
    before = sum(row.settings_hash in there for row in found.records)
    console.print(f"{len(found.records) - before} trials measured, {before} were there already", highlight=False)
    return found


def _write_refused(refused: Mapping[str, str], out: Path) -> None:
    """OUT/refused.json, or none where no data set was refused."""
    file = out / REFUSED
    if refused:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(refused, indent=1) + "\n", encoding="utf-8")
    else:
        file.unlink(missing_ok=True)


def keep(run: Run, out: Path) -> TuneRecord:
    """The record, written with its hits into the folder."""
    file = write_hits(run.outcome.hits, out, run.record.settings_hash)
    record = run.record.model_copy(update={"hits": file})
    append(record, out)
    return record


def say(record: TuneRecord) -> None:
    """One line for people, on stderr."""
    how = record.error or ", ".join(
        f"{name} {100 * value:.1f}"
        for name, value in record.metrics.items()
        if name.startswith(("acc1", "h")) or name == "open_auroc"
    )
    seed = f" seed {record.seed}" if record.seed is not None else ""
    line = f"{record.dataset} {record.brief} {labels_in_words(record.labelled)}{seed}: {how} ({record.seconds:.1f} s)"
    console.print(line, highlight=False, soft_wrap=True, markup=False)
    if record.pseudolabels is not None and record.pseudolabels["pairs"]:
        console.print(_believed(record.pseudolabels), highlight=False, soft_wrap=True, markup=False)


def _believed(found: Mapping[str, Any]) -> str:
    """How right the pseudolabels were, and of which classes least."""
    classes = [one for one in found["by_class"] if one["given"]]
    worst = sorted(classes, key=lambda one: one["right"] / one["given"])[:WORST]
    said = ", ".join(f"{one['name']} {one['right']}/{one['given']}" for one in worst)
    without = len(found["by_class"]) - len(classes)
    rest = f"; {without} classes got none" if without else ""
    return f"  pseudolabels: {100 * found['accuracy']:.1f} % of {found['pairs']} right; least {said}{rest}"


def code_version() -> str:
    """Version and commit."""
    return f"{__version__}+{host_facts()['commit'][:12]}"


def _attempt(trial: Trial, protocol: Protocol, asked: TuneRecord, code: str, out: Path) -> TuneRecord:
    began = time.perf_counter()
    try:
        record = keep(run_trial(trial, protocol, code=code), out)
    except Exception as error:  # a grid of many hours is not lost for one method
        said = {"error": f"{type(error).__name__}: {error}", "seconds": round(time.perf_counter() - began, 3)}
        record = asked.model_copy(update=said)
        append(record, out)
    say(record)
    return record


def _draws(stock: Stock, plan: Plan, out: Path) -> dict[tuple[int | None, int], Any]:
    """Draws by shots and seed, written to OUT/draws; empty where nothing is drawn."""
    shots = sorted({count for _, count, _ in plan.cells() if count})
    if not shots:
        return {}
    draws = make_draws(stock, shots=shots, seeds=plan.seeds)
    tell_short(stock.dataset, draws.draws)
    file = out / "draws" / f"{stock.dataset}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(draws.model_dump_json(by_alias=True), encoding="utf-8")
    return {(one.shots, one.seed): one for one in draws.draws}


def _asked(trial: Trial, protocol: Protocol, code: str, fitted: Sequence[Provenance] = ()) -> TuneRecord:
    """The record as far as it is known before anything is measured; `fitted`: what it starts from, once it was read."""
    stock, adapter = trial.stock, trial.adapter
    known = traits(adapter)
    labelled, shots = _labelled(trial, protocol, fitted)
    settings, chosen = ADAPTERS.dump(adapter), PROTOCOLS.dump(protocol)
    hashes = {**stock.hashes}
    for target in trial.targets:
        hashes |= {f"{target.dataset}/{name}": value for name, value in target.hashes.items()}
    drawn = trial.drawn.model_dump(mode="json") if trial.drawn else None
    weights = stock.encoder.weights_hash
    data = [one.identity for one in (stock, *trial.targets)]
    asked = settings_hash(settings, content_hashes(settings), chosen, trial.shots, trial.seed, drawn, data)
    return TuneRecord(
        method=settings.pop("name"),
        dataset=stock.dataset,
        model=stock.model,
        protocol=chosen.pop("name"),
        n=len(stock.test.pictures),
        shots=shots,
        labelled=labelled,
        seed=trial.seed,
        metrics={},
        settings=settings,
        changed=adapter.model_dump(mode="json", exclude_defaults=True),
        protocol_settings=chosen,
        leaky=known.leaky or any(one.leaky for one in fitted),
        transductive=known.transductive or any(one.transductive for one in fitted) or _saw(trial),
        level=known.level,
        seconds=0.0,
        weights_hash=weights,
        data_hashes=hashes,
        classes_hash=short_hash(stock.names),
        templates_hash=short_hash(stock.templates) if stock.text is None else None,
        settings_hash=asked,
        code_version=code,
    )


def _label_reads(trial: Trial) -> int:
    """How often labels of measured pictures were read so far."""
    return sum(one.test.reads.total() for one in (trial.stock, *trial.targets))


def _saw(trial: Trial) -> bool:
    """Whether any picture that it learned from without a label is measured."""
    stock = trial.stock
    if "unlabelled" not in traits(trial.adapter).wants or stock.unlabelled is None:
        return False
    others = (shared_rows(stock.unlabelled, target.test.pictures) for target in trial.targets)
    return bool(stock.measured_unlabelled) or any(others)


def _labelled(trial: Trial, protocol: Protocol, fitted: Sequence[Provenance]) -> tuple[str, int | None]:
    """Pictures of each class with their label, in words and as a number; of a saved classifier, those of its fit."""
    stock, takes = trial.stock, traits(trial.adapter).takes
    learned = {(one.labelled, one.shots) for one in fitted}
    if isinstance(protocol, Unsupervised):
        pass
    elif "support" in takes and trial.shots != 0 and stock.train is not None:
        learned.add(("all", None) if trial.shots is None else (str(trial.shots), trial.shots))
    elif "validation" in takes and stock.validation is not None:
        learned.add((VALIDATION, None))
    return learned.pop() if len(learned) == 1 else (UNKNOWN, None) if learned else ("none", None)
