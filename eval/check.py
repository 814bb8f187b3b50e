"""What of a suite's data is there: `vlp eval check SUITE|NAME... [data=FOLDER]`. No model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from eval import BENCHMARKS, catalog
from eval.adapted import Adapted
from eval.benchmark import BenchmarkPart
from eval.catalog import KnownSet
from eval.class_folders import by_order, label_reader
from eval.classify import Classification
from eval.counted import Seen, look, of_set
from eval.data import Data, locate
from eval.found import find_set
from eval.health import Health
from eval.labelled import Probe
from eval.layout import CLASSES, read_words
from eval.multilabel import MultiLabel, labels_of
from eval.own import is_pictures, suite_of_folder
from eval.retrieve import Retrieval
from eval.suite import load_suite
from vlp.data.fields import Fields
from vlp.data.labels import Labels
from vlp.data.schema import DataError
from vlp.data.sources import Records
from vlp.log import console
from vlp.text.templates import checked, read_names, read_templates, template_set
from vlp.types import BadSampleError

State = Literal["ready", "fewer", "broken", "missing"]
COLOURS = {"ready": "green", "fewer": "yellow", "broken": "red", "missing": "red"}
DATA = "data"  # where sets are looked for that are asked for by name
FIRST = 10_000  # samples whose labels are read


class Row(NamedTuple):
    """What was found of one benchmark's data. `notes` are what is wrong, or worth knowing, and the remedy."""

    dataset: str
    benchmark: str
    state: State
    where: str = ""
    shards: int | None = None
    pictures: int | None = None
    expected: int | None = None
    classes: str = ""  # how many, and from where
    labels: str = ""  # the least and the greatest of the first samples
    templates: str = ""
    notes: tuple[str, ...] = ()


def check(words: Sequence[str]) -> list[Row]:
    """A row for every benchmark of the suites and folders of pictures, one for what each learns from or chooses on
    besides, and one for every set that is named itself or by its group.

    ValueError for a name that is neither, and for overrides without a suite, except `data=FOLDER`.
    """
    suites = [word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word]
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if word not in (*suites, *overrides)]
    if not suites and not names:
        raise ValueError("nothing to check: name a suite (configs/eval/vtab.yaml), a set (mnist) or a group (vtab)")
    data = [word.removeprefix("data=") for word in overrides if word.startswith("data=")]
    others = [word for word in overrides if not word.startswith("data=")]
    if others and not suites:
        raise ValueError(f"{', '.join(others)}: changes a suite, and none was named; for sets only data=FOLDER counts")
    rows = []
    pictures = [Path(name) for name in names if is_pictures(Path(name))]
    for suite in (*(load_suite(path, overrides) for path in suites), *map(suite_of_folder, pictures)):
        folders = [*suite.data_folders(), Path(suite.folder), Path()]
        rows += [row for part in suite.benchmarks for row in check_part(part, suite.data_folders(), folders)]
    for name in (name for name in names if Path(name) not in pictures):
        group = name in catalog.groups() and name not in catalog.catalog()
        known = catalog.of(name) if group else (catalog.find(name),)
        rows += [check_set(one, [Path(folder) for folder in data or [DATA]]) for one in known]
    return rows


def check_part(part: BenchmarkPart, folders: Sequence[Path], files: Sequence[Path]) -> list[Row]:
    """What is there for one benchmark, of its own data first; `files`: the folders where its files are looked for."""
    rows = []
    for role in type(part).model_fields:
        data = getattr(part, role)
        if not isinstance(data, Data):
            continue
        own = role == "data"
        title = (part.dataset if own else f"{part.dataset}, {role}", BENCHMARKS.name_of(type(part)))
        try:
            seen = look(data, folders)
        except ValueError as error:
            row = Row(*title, "missing", notes=_lines(error, data.made_by))
        else:
            row = _judged(title, seen, part if own or isinstance(part, Probe) else None, files, data)
        if isinstance(part, Probe) and not own and data == part.data:
            said = f"`{role}` is what is measured: the result would be of pictures that were learned"
            row = row._replace(state="broken", notes=(*row.notes, said))
        rows.append(row)
    return rows


def check_set(known: KnownSet, folders: Sequence[Path]) -> Row:
    """What is there of a known set, whatever benchmark will read it."""
    title = (known.name, "")
    try:
        seen = of_set(find_set(known.name, folders=folders), "test")
    except ValueError as error:
        return Row(*title, "missing", notes=_lines(error, None))
    part = None
    if known.task == "zeroshot_classification":
        part = Classification(dataset="set", data=Data(path=str(seen.where)))
    return _judged(title, seen, part, [*folders, Path()], Data(set=known.name))


def _judged(title: tuple[str, str], seen: Seen, part: BenchmarkPart | None, files: Sequence[Path], data: Data) -> Row:
    """The row of data that are there."""
    faults, notes = list(seen.faults), []
    classes = labels = templates = ""
    if isinstance(part, Adapted | Probe):
        classes, templates, names = _words(part, seen, files, faults)
        if (names or isinstance(part, Probe)) and seen.sample is not None:
            labels = _labels(part, names, seen, faults)
            note = by_order(_stage(part, names), seen.folders)
            notes += [note] if note and not faults else []
    if isinstance(part, Retrieval | Health) and seen.sample is not None:
        _captions(part, seen.sample, faults, notes)
    expected, limit = seen.known.test if seen.known and data.split == "test" else None, data.limit
    if expected and limit:
        expected = min(expected, limit)
    pictures = min(seen.pictures, limit) if limit else seen.pictures
    if expected and pictures < expected:
        notes.append(f"{expected - pictures} of {expected} pictures are missing: {pictures} were found")
    if expected and pictures > expected and seen.known and seen.known.layout != "pictures":  # those are of more sets
        notes.append(f"{pictures - expected} pictures more than the {expected} that are published")
    state: State = "broken" if faults else "fewer" if expected and pictures < expected else "ready"
    if state != "ready" and seen.known and seen.known.note:
        notes.append(f"of this set: {seen.known.note}")
    where = str(seen.where or "")
    return Row(*title, state, where, seen.shards, pictures, expected, classes, labels, templates, (*faults, *notes))


def _words(
    part: Adapted | Probe, seen: Seen, files: Sequence[Path], faults: list[str]
) -> tuple[str, str, tuple[str, ...]]:
    """How many classes and templates there are and where they come from, and the names; adds to `faults`.

    A probe needs no names where labels are numbers, and no templates.
    """
    names, found, said = seen.names or (), None, _origin(seen)
    try:
        blank = seen.known.blank if seen.known else ()
        found = read_words(seen.where, blank=blank) if seen.where and seen.where.is_dir() else None
        if isinstance(part.names, str):
            names, said = read_names(locate(part.names, folders=files)), part.names
        elif part.names:
            names, said = part.names, "suite"
        elif found and found.names:
            names, said = found.names, "folder"
    except ValueError as error:
        faults.append(str(error))
    wanted = seen.known.classes if seen.known else None
    if not names and not faults and isinstance(part, Adapted):
        faults.append(f"no class names: neither `names` in the suite nor {CLASSES} in the folder")
    if names and wanted and len(names) != wanted and not part.names:
        faults.append(f"{len(names)} class names, where the published set has {wanted}")
    templates = _templates(part, seen, files, found, faults) if isinstance(part, Adapted) else ""
    return f"{len(names)} {said}" if names else "", templates, names


def _origin(seen: Seen) -> str:
    """Where the names come from that the records themselves brought."""
    return "" if not seen.names else "split file" if seen.known else "folder"


def _templates(part: Adapted, seen: Seen, files: Sequence[Path], found: Any, faults: list[str]) -> str:
    """Number and origin of the templates that measuring would take."""
    given = part.templates
    try:
        if isinstance(given, tuple):
            return f"{len(checked(given, where=f'{part.dataset}: templates'))} suite"
        if given is not None and given.endswith((".txt", ".json")):
            return f"{len(read_templates(locate(given, folders=files)))} {given}"
        if given is not None:
            return f"{len(template_set(given))} {given}"
    except ValueError as error:
        faults.append(str(error))
        return ""
    if found and found.templates:
        return f"{len(found.templates)} folder"
    default = seen.templates or "photo"
    return f"{len(template_set(default))} {default}, by default"


def _labels(part: Adapted | Probe, names: tuple[str, ...], data: Seen, faults: list[str]) -> str:
    """What labels the first samples have; adds to `faults` where they are not labels of these classes."""
    field, stage = part.label, _stage(part, names)
    places = {name: place for place, name in enumerate(stage.names)}
    sample, seen, bad = data.sample, set[int](), dict[str, tuple[int, str]]()
    assert sample is not None
    try:
        read = label_reader(stage, data.folders, where="classes")
    except DataError as error:
        faults.append(str(error))
        return ""
    count = min(len(sample), FIRST)
    for i in range(count):
        try:
            fields = Fields(sample.read(i, {"json", field.partition(":")[0]}))
            if isinstance(part, MultiLabel):
                seen.update(labels_of(fields, field, places=places, classes=len(names)).nonzero().flatten().tolist())
                continue
            label = read(fields)
            if names and label >= len(names):
                raise BadSampleError("bad_label", f"{field} is {label}, there are {len(names)} classes")
            seen.add(label)
        except BadSampleError as error:
            before, first = bad.get(error.reason, (0, error.detail))
            bad[error.reason] = before + 1, first
    faults += [f"{times} of the first {count} samples: {why}, {text}" for why, (times, text) in bad.items()]
    return f"{min(seen)}-{max(seen)}" if seen else ""


def _stage(part: Adapted | Probe, names: tuple[str, ...]) -> Labels:
    """As measuring reads labels: by name where each is another one."""
    unique = len(set(names)) == len(names) and all(names)
    return Labels(field=part.label, classes=names if unique else ())


def _captions(part: Retrieval | Health, sample: Records, faults: list[str], notes: list[str]) -> None:
    """Adds to `faults` if none of the first samples has a caption where they are read, to `notes` if some have."""
    without, said = 0, ""
    count = min(len(sample), FIRST)
    for i in range(count):
        try:
            part.captions.texts(Fields(sample.read(i, {"json", *part.captions.fields})))
        except BadSampleError as error:
            without, said = without + 1, said or f"{error.reason}, {error.detail}"
    if without:
        (faults if without == count else notes).append(f"{without} of the first {count} samples: {said}")


def _lines(error: Exception, made_by: str | None) -> tuple[str, ...]:
    remedy = [f"make it with: {made_by}"] if made_by and made_by not in str(error) else []
    return (*str(error).splitlines(), *remedy)


def as_table(rows: Sequence[Row]) -> Table:
    """The rows as they are printed, without places and notes."""
    table = Table(box=SIMPLE)
    for heading in ("data set", "", "pictures", "shards", "classes", "templates"):
        table.add_column(heading, justify="right" if heading in ("pictures", "shards") else "left", overflow="fold")
    for row in rows:
        of = f" of {row.expected}" if row.expected and row.expected != row.pictures else ""
        table.add_row(
            escape(row.dataset),
            f"[{COLOURS[row.state]}]{row.state}[/]",
            f"{row.pictures}{of}" if row.pictures is not None else "",
            str(row.shards or ""),
            *map(escape, (row.classes, row.templates)),
        )
    return table


def run_check(words: Sequence[str]) -> int:
    """Prints the table and what is wrong; 1 if data are missing or broken, else 0."""
    rows = check(words)
    console.print(as_table(rows))
    for row in rows:
        where = f" in {escape(row.where)}" if row.where else ""
        labels = f", labels {row.labels} in the first samples" if row.labels else ""
        head = f"[bold]{escape(row.dataset)}[/] {row.state}{where}{labels}"
        console.print(head, *map(escape, row.notes), sep="\n  ", soft_wrap=True, highlight=False)
    states = [row.state for row in rows]
    console.print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return int(any(state in ("missing", "broken") for state in states))
