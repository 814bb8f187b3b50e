"""What the words of `vlp tune` mean: a method, stored features or a model with a file of data, and their trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NamedTuple

from eval.data import located
from eval.tuning import TuneSet, Tuning, check_size, load_tuning, open_stock, resized
from vlp.adapters import saved
from vlp.adapters.adapter import Adapter
from vlp.adapters.provenance import Provenance
from vlp.config import parse_yaml
from vlp.embed import Encoder
from vlp.log import console
from vlp.probe.draw import read_draws
from vlp.tune import PROTOCOLS
from vlp.tune.fitting import traits
from vlp.tune.folder import read_folder
from vlp.tune.methods import PAPER, adapter_class
from vlp.tune.protocols import FewShot, Protocol, Trial
from vlp.tune.record import summary
from vlp.tune.stock import Opening, Stock
from vlp.tune.support import find_draw, make_draws, tell_short
from vlp.tune.trial import Plan, Run, code_version, keep, run_trial, say


class Words(NamedTuple):
    """Folders of stored features, or a model and a file; and key=value of the method."""

    features: Sequence[Path]
    model: str | None
    tuning: Tuning | None
    settings: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What results are called."""
        return self.tuning.name if self.tuning is not None else self.features[0].name

    @property
    def datasets(self) -> list[str]:
        """What the data sets are called, no two alike; ValueError for a file that calls two the same."""
        if self.features:
            return folder_names(self.features)
        assert self.tuning is not None
        names = [part.dataset for part in self.tuning.sets]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(
                f'{self.name}: two sets are called "{twice[0]}", so that their results would be taken for one'
            )
        return names


class Asked(NamedTuple):
    """What one method is to be fitted to."""

    shots: int | None
    seeds: list[int]
    draws: Path | None
    out: Path | None
    protocol: Protocol


def sort_words(words: Sequence[str], *, features: Sequence[Path]) -> Words:
    """METHOD [CHECKPOINT FILE] [KEY=VALUE...]; a setting that the file knows is the file's, others are the method's."""
    name, *rest = words
    places, pairs = _parted(rest)
    own = set(adapter_class(name).model_fields)
    if features:
        if places:
            raise ValueError(f"--features are in place of CHECKPOINT and FILE, but there is also {places[0]}")
        return Words(features, None, None, pairs)
    files, models = _places(places, usage=f"vlp tune {name} CHECKPOINT FILE.yaml, or --features DIR")
    if not models:
        raise ValueError(f"{files[0]} is about pictures: vlp tune {name} CHECKPOINT {files[0]}, or --features DIR")
    own -= set(Tuning.model_fields) - {"folder"}  # which nobody writes there
    for pair in pairs:
        _refuse_unknown(_key(pair), method=name, own=own, file=files[0])
    mine = [pair for pair in pairs if _key(pair) in own]
    tuning = load_tuning(files[0], [pair for pair in pairs if pair not in mine])
    return Words(features, models[0], tuning, mine)


def sort_grid_words(words: Sequence[str], *, features: Sequence[Path]) -> Words:
    """FILE [CHECKPOINT] [KEY=VALUE...]."""
    places, pairs = _parted(words)
    files, models = _places(places, usage="vlp tune grid FILE.yaml [CHECKPOINT]")
    if features and models:
        raise ValueError(f"--features are in place of a model, but there is also {models[0]}")
    return Words(features, models[0] if models else None, load_tuning(files[0], pairs))


def plan_of(given: Words, protocol: str | None) -> Plan:
    """What the grid goes through; ValueError for a file without methods."""
    tuning = given.tuning
    if tuning is None or not tuning.methods:
        raise ValueError(f"{given.name}: no `methods` to go through; list some, as in methods: [zeroshot, linear]")
    words = [*tuning.folders(), Path(tuning.folder), Path()]
    methods = [located(method, words) for method in tuning.methods]
    shots = [None if count == "all" else count for count in tuning.shots]
    return Plan(methods, shots, tuning.seeds, find_protocol(protocol, given))


def find_protocol(name: str | None, given: Words) -> Protocol:
    """The one named, or written as {name: ..., setting: value}; else the file's, else few_shot."""
    if name is None or name == PAPER:
        return given.tuning.protocol if given.tuning is not None else FewShot()
    found: Protocol = PROTOCOLS.build(parse_yaml(name, where="--protocol"))
    return found


def numbers(text: str) -> list[int]:
    """The seeds in 1,2,3."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ValueError(f'--seeds "{text}": numbers with commas between, none twice, as in 1,2,3')
    return [int(word) for word in words]


def folder_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as tell them all apart, else a number.

    ValueError for a folder that is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    if twice := [folder for folder, count in Counter(whole).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice: name each folder of features once")
    deepest = max((len(folder.parts) for folder in whole), default=1)
    for depth in range(1, deepest + 1):
        names = ["-".join(part.strip("/") for part in folder.parts[-depth:]) for folder in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{folder.name}-{number}" for number, folder in enumerate(whole, start=1)]


def openings(given: Words, encoder: Encoder | None) -> list[Opening]:
    """The data sets, none of them read yet."""
    names = given.datasets
    if given.features:
        pairs = zip(given.features, names, strict=True)
        return [Opening(name, partial(_stored, path, name)) for path, name in pairs]
    assert given.tuning is not None
    opened = [partial(_pictures, part, given, encoder) for part in given.tuning.sets]
    return [Opening(name, one) for name, one in zip(names, opened, strict=True)]


@contextmanager
def _stored(folder: Path, name: str) -> Iterator[Stock]:
    yield replace(read_folder(folder), dataset=name)


@contextmanager
def _pictures(part: TuneSet, given: Words, encoder: Encoder | None) -> Iterator[Stock]:
    assert given.tuning is not None
    stock = open_stock(part, given.tuning, encoder, model=Path(given.model).name if given.model else "features")
    with resized(encoder, part) if encoder is not None else nullcontext():
        yield stock


def targets(given: Words, test: Sequence[str], encoder: Encoder | None) -> Iterator[Stock]:
    """Data sets that are only measured: the file's, and FILE.yaml or folders of features."""
    if given.tuning is not None:
        yield from (open_stock(part, given.tuning, encoder) for part in given.tuning.targets)
    folders = [Path(word) for word in test if not _is_file(word)]
    called = dict(zip(folders, folder_names(folders), strict=True))
    for word in test:
        if _is_file(word):
            other = load_tuning(word)
            check_size([*(given.tuning.sets if given.tuning else ()), *other.sets], where=word)
            yield from (open_stock(part, other, encoder) for part in other.sets)
        else:
            yield replace(read_folder(Path(word)), dataset=called[Path(word)])


def run_all(
    adapter: Adapter,
    given: Words,
    encoder: Encoder | None,
    test: Sequence[str],
    asked: Asked,
    emit: Callable[[str], None],
) -> None:
    """Fits and measures on every data set; of several each has a folder of its own in OUT."""
    others = list(targets(given, test, encoder))
    several = len(given.datasets) > 1
    for name, opened in openings(given, encoder):
        out = asked.out / name if asked.out is not None and several else asked.out
        with opened() as stock:
            run(adapter, stock, others, asked._replace(out=out), emit=emit)


def run(adapter: Adapter, stock: Stock, targets: Sequence[Stock], asked: Asked, *, emit: Callable[[str], None]) -> None:
    """Emits a line of JSON for each seed, and for their mean where there are several; then saves what was fitted.

    A classifier that cannot be saved is said on stderr: the records, draws and hits are in OUT all the same.
    """
    runs = [_measure(trial, asked, emit) for trial in _trials(adapter, stock, targets, asked)]
    if len(runs) > 1:
        emit(summary([one.record for one in runs], [one.outcome.hits for one in runs]).model_dump_json())
    if asked.out is None:
        return
    try:
        saved.kind_of(runs[0].outcome.classifier)
    except ValueError as error:
        console.print(
            f"{asked.out} holds records, and no classifier: {error}", highlight=False, soft_wrap=True, markup=False
        )
        return
    for one in runs:
        folder = asked.out / f"seed-{one.record.seed}" if len(runs) > 1 else asked.out
        made, row = one.outcome.classifier, one.record
        fitted = Provenance(row.transductive, row.leaky, row.labelled, row.shots, tuple(made.names))
        saved.save(made, folder, adapter=adapter, encoder=stock.encoder, provenance=fitted)


def _measure(trial: Trial, asked: Asked, emit: Callable[[str], None]) -> Run:
    """Fits, measures and says."""
    run = run_trial(trial, asked.protocol, code=code_version())
    if asked.out is not None:
        run = run._replace(record=keep(run, asked.out))
    say(run.record)
    emit(run.record.model_dump_json())
    return run


def _trials(adapter: Adapter, stock: Stock, targets: Sequence[Stock], asked: Asked) -> list[Trial]:
    """A trial a seed; the draws are written to OUT/draws.json."""
    if not asked.shots:
        if asked.draws is not None:
            raise ValueError("--draws holds draws by number of shots: say which with --shots")
        return [Trial(adapter, stock, asked.shots, seed, None, targets) for seed in asked.seeds]
    if asked.draws is None:
        draws = make_draws(stock, shots=[asked.shots], seeds=asked.seeds)
    else:
        draws = read_draws(asked.draws)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "draws.json").write_text(draws.model_dump_json(by_alias=True) + "\n", encoding="utf-8")
    where = asked.draws or "draws"
    drawn = [find_draw(draws, shots=asked.shots, seed=seed, where=where) for seed in asked.seeds]
    if "support" in traits(adapter).takes:
        tell_short(stock.dataset, drawn)
    return [Trial(adapter, stock, asked.shots, one.seed, one, targets) for one in drawn]


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Places, and key=value."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def _key(pair: str) -> str:
    """The field that key=value sets, or sets something below."""
    return pair.partition("=")[0].partition(".")[0]


def _refuse_unknown(key: str, *, method: str, own: Collection[str], file: str) -> None:
    """ValueError for a key that neither the method nor the file has, naming the nearest of both."""
    owners = dict.fromkeys(Tuning.model_fields, file) | dict.fromkeys(own, method)
    if key in owners:
        return
    if near := get_close_matches(key, owners, n=1):
        raise ValueError(f'{key}: unknown field; did you mean "{near[0]}" of {owners[near[0]]}?')
    fields = [f"{who} has {', '.join(k for k, one in owners.items() if one == who)}" for who in (method, file)]
    raise ValueError(f"{key}: unknown field; {'; '.join(fields)}")


def _places(places: Sequence[str], *, usage: str) -> tuple[list[str], list[str]]:
    """The file and the model among the words."""
    files = [word for word in places if _is_file(word)]
    models = [word for word in places if not _is_file(word)]
    if len(files) != 1 or len(models) > 1:
        raise ValueError(f"wanted {usage}; got {' '.join(places) or 'neither'}")
    return files, models


def _is_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))
