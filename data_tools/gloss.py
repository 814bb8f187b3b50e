"""The tool `gloss`: shards again, each sample with glosses of its English text beside its real texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from data_tools.dataset import versions, write_tasks
from data_tools.dictionaries import Entries, read_dictionary, turned
from data_tools.glosses import choose, gloss, words
from data_tools.rewrite import plan_rewrite, refuse_mixing
from data_tools.shards import find_shards, samples
from data_tools.texts import parse_json
from data_tools.write import Record, Reject, digest_of, key_fault
from vlp.data.schema import DataError
from vlp.registry import Part

VERSION = 1  # raise it when the same settings give other texts
MARK = "-x-gloss"  # a private-use subtag of BCP 47 (RFC 5646, 2.2.7): no evaluation asks for such a language
Named = tuple[tuple[str, Path], ...]


class Gloss(Part):
    """Shard in, shard out: beside `field` {language: text} comes `out_field` with the same texts and with glosses.

    A gloss is the text of `source` word by word in another language, under that language's name with "-x-gloss".
    Replacing words by a dictionary's is the augmentation of CoSDA-ML (arXiv 2006.06402) and others before it. Ours:
    every word that the dictionary has is replaced, always by the same translation, the one that the real texts of that
    language in these shards use most; words that it lacks are left out, but for names.
    """

    dictionaries: Named = ()  # language and file: from the source language
    turned: Named = ()  # and dictionaries of the other direction
    field: str = Field("texts", min_length=1)
    out_field: str = Field("texts_glossed", min_length=1)
    source: str = "en"
    overwrite: bool = False

    @model_validator(mode="after")
    def _something_to_do(self) -> Gloss:
        if not self.dictionaries and not self.turned:
            raise ValueError("no dictionary is given; glosses need one for each language")
        if self.field == self.out_field:
            raise ValueError(f"{self.out_field}: the real texts are there; give another field to write")
        return self

    def run(self, inputs: Iterable[Path | str], out: Path) -> dict[str, Any]:
        """Writes shards of the same names and `dataset.json`; returns counts, and by language how many words it had."""
        shards = find_shards(str(item) for item in inputs)
        refuse_mixing(shards, out)
        said = self._said(shards)
        if not said[self.source]:
            raise DataError(f"none of {len(shards)} shards has a text of json field {self.field}.{self.source}")
        tables = {
            language: choose(said[self.source], entries, said[language])
            for language, entries in self._entries().items()
        }
        about = {
            "tool": "data_tools gloss",
            "version": VERSION,
            "versions": versions(),
            "settings": self.model_dump(mode="json", include={"field", "out_field", "source"}),
            "glosses": {language: digest_of(table) for language, table in sorted(tables.items())},
        }
        tasks, source = plan_rewrite(shards, out, about)
        maker = GlossMaker(self, {task.start: shard for task, shard in tasks}, tables)
        written = write_tasks(
            out,
            maker,
            [task for task, _ in tasks],
            name=out.name,
            made_by=about | {"source": source},
            overwrite=self.overwrite,
        )
        return {"inputs": source["samples"], **written._asdict()} | _found(said[self.source], tables)

    def _said(self, shards: Iterable[Path]) -> dict[str, Counter[str]]:
        """How often each word comes in lower case, by language, and of the source language."""
        counts = {language: Counter[str]() for language, _ in (*self.dictionaries, *self.turned)}
        counts[self.source] = Counter()
        for shard in shards:
            for raw in samples(shard, only=("json",)):
                for language, text in _texts(raw.members, self.field).items():
                    if language in counts:
                        counts[language].update(word.lower() for word in words(text))
        return counts

    def _entries(self) -> dict[str, Entries]:
        """All translations by language, those of turned dictionaries last."""
        merged: dict[str, Entries] = {}
        given = [(language, read_dictionary(path)) for language, path in self.dictionaries]
        given += [(language, turned(read_dictionary(path))) for language, path in self.turned]
        for language, entries in given:
            for headword, translations in entries.items():
                merged.setdefault(language, {}).setdefault(headword, []).extend(translations)
        return merged


@dataclass(frozen=True)
class GlossMaker:
    """Fills shards from shards, `paths` by the number of their first sample; `tables`: by language, word by word."""

    settings: Gloss
    paths: Mapping[int, Path]
    tables: Mapping[str, Mapping[str, str]]

    def items(self, start: int, stop: int) -> Iterator[Record | Reject]:
        """One record or reject for every sample of the shard; a sample without a source text keeps its real ones."""
        for raw in samples(self.paths[start]):
            if fault := key_fault(raw.key):
                yield Reject("bad_key", raw.key, f"{raw.key[:100]!r} {fault}")
                continue
            texts = _texts(raw.members, self.settings.field)
            if not texts:
                yield Reject("no_caption", raw.key, f"no texts by language in json field {self.settings.field}")
                continue
            glosses = {
                language + MARK: gloss(texts.get(self.settings.source, ""), table)
                for language, table in self.tables.items()
            }
            told = texts | {language: text for language, text in glosses.items() if text}
            values = parse_json(raw.members) | {self.settings.out_field: told}
            yield Record(raw.key, {**raw.members, "json": json.dumps(values, ensure_ascii=False).encode()})


def _texts(members: Mapping[str, bytes], field: str) -> dict[str, str]:
    value = parse_json(members).get(field)
    texts = value if isinstance(value, dict) else {}
    return {language: text for language, text in texts.items() if isinstance(text, str) and text.strip()}


def _found(spoken: Counter[str], tables: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """By language: how many of the source's words, as often as they come, have a translation, and the first without."""
    told: dict[str, Any] = {}
    for language, table in sorted(tables.items()):
        missing = [word for word, _ in spoken.most_common() if word not in table]
        share = 1 - sum(spoken[word] for word in missing) / spoken.total()
        told[language] = f"{share:.1%} of {spoken.total()} words found; most frequent of the others: "
        told[language] += ", ".join(missing[:8]) or "none"
    return told
