"""One row of results: CLIP_benchmark's keys, and what is needed to judge the number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vlp.report.variant import variant

SCHEMA_VERSION = 1


class Record(BaseModel):
    """One line of results.jsonl; the first six keys are CLIP_benchmark's, shares lie in 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    dataset: str
    model: str
    pretrained: str
    task: str  # zeroshot_classification | linear_probe ...; CLIP_benchmark's words where it has some
    metrics: dict[str, float]
    language: str = "en"
    schema_version: int = SCHEMA_VERSION
    n: int  # pictures measured
    counts: dict[str, int] = {}  # images, texts, classes
    ci95: dict[str, tuple[float, float]] = {}  # per metric: 95 % bootstrap interval
    chance: dict[str, float] = {}  # per metric: what guessing reaches in expectation
    contains_chance: dict[str, bool] = {}  # per metric: the interval does not lie on the better side of chance
    prefix: str | None = None  # kind of source whose prefix the texts had; null: the model has none
    head: str | None = None  # what scored: "global" (pooled features), "tokens", or a mixture
    adapter: str | None = None  # what made the classifier, by its name in vlp.adapters; null: there is none
    adapter_hash: str | None = None  # of its settings; null: its defaults
    templates_hash: str | None = None
    classes_hash: str | None = None
    settings_hash: str | None = None  # of the benchmark's own settings: what `vlp eval` goes on by
    data_hash: str
    weights_hash: str
    selection: dict[str, str | int] = {"split": "none"}  # where choices were made and which; "none": there were none
    test_label_reads: int  # how often labels of this set were read; 1 is scoring itself
    skips: dict[str, int] = {}  # pictures left out, by reason
    seconds: float
    step: int | None = None
    code_version: str
    artefacts: str | None = None  # folder with features and examples, relative to the results file
    warnings: tuple[str, ...] = ()  # what in the model does not fit its weights, and how a saved adapter was fitted

    @property
    def apart(self) -> tuple[str, ...]:
        """What sets it apart from other records of its task on the data set: language, adapter, head, prefix."""
        head, adapter = self.head not in (None, "global"), variant(self.adapter, self.adapter_hash)
        found = {
            self.language: self.language != "en",
            f"with {adapter}": adapter,
            f"by {self.head}": head,
            "label prefix": self.prefix == "label",
        }
        return tuple(said for said, there in found.items() if there)


def append(record: Record, path: Path) -> None:
    """One line more in the results file, written in one piece so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (record.model_dump_json() + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> Iterator[Record]:
    """Every record of a results file in order; ValueError naming file and line for a line that is none."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield Record.model_validate_json(line)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{path}:{number}: not a result record: {where}: {fault['msg']}") from None
