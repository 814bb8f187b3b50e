"""Classes described by sentences of their own: CuPL (Pratt et al. 2022) and descriptors (Menon & Vondrick 2022).

What adapters that make their own prompts share stands here too: weights from any number of prompts a class, phrases
with named slots, and JSON files keyed by class name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import field_validator, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.adapter import Adapter, Level
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.task import Task, short_hash
from vlp.embed import Encoder
from vlp.registry import nearest
from vlp.text.templates import fill

How = Literal["features", "scores"]
SHOWN = 5  # names that a message lists
_SLOT = re.compile(r"\{(\w*)\}")


class Descriptions(Adapter):
    """w_c = norm(mean over the class's own sentences s of norm(text(s))), as many as it has (CuPL, arXiv 2209.03320).

    `how: scores` averages similarities instead (arXiv 2210.07183, eq. 1): the same mean without the outer norm.
    `file`: JSON {class: [sentences]}, from the working directory unless absolute; `sentences`: the same inline.
    `phrase` wraps each of them, so that files of descriptors serve too: "{name}, which has {text}". `templates` adds
    the task's templates to every class, each with the weight of a sentence. Ours: a class without a sentence is refused
    by name, or stands by its templates alone with `missing: template`; names match exactly, never by resemblance.
    """

    level: ClassVar[Level] = "text"

    file: str | None = None
    sentences: dict[str, tuple[str, ...]] | None = None
    phrase: str = "{text}"
    how: How = "features"
    templates: bool = False
    missing: Literal["error", "template"] = "error"

    @model_validator(mode="after")
    def _one_place(self) -> Descriptions:
        if (self.file is None) == (self.sentences is None):
            raise ValueError("give either `file`, a JSON {class: [sentences]}, or the same inline as `sentences`")
        return self

    @field_validator("phrase")
    @classmethod
    def _slots(cls, phrase: str) -> str:
        return check_phrase(phrase, needs=("text",), may=("name",))

    def fit(self, encoder: Encoder, task: Task) -> LinearClassifier:
        """A classifier with one weight row a class; all sentences of all classes go through the tower in one pass."""
        found, where = self._read()
        without = [name for name in task.names if not found.get(name)]
        if without and self.missing == "error":
            said = said_missing(without, found, of=len(task.names), what="sentence", where=where)
            raise ValueError(f"{said}; add them, or set missing: template")
        prompts = [self._prompts(name, found.get(name, ()), task) for name in task.names]
        return LinearClassifier(
            class_weights(encoder, prompts, self.how),
            names=task.names,
            scale=encoder.scale,
            about={
                "adapter": "descriptions",
                "how": self.how,
                "prompts": sum(map(len, prompts)),
                "prompts_hash": short_hash([prompt for own in prompts for prompt in own]),
                "by_template_alone": without,
                "unused": len(set(found) - set(task.names)),
            },
        )

    def _prompts(self, name: str, sentences: Sequence[str], task: Task) -> list[str]:
        own = [fill_phrase(self.phrase, {"name": name, "text": text}) for text in sentences]
        return [*own, *(fill(t, name) for t in task.templates)] if self.templates or not own else own

    def _read(self) -> tuple[Mapping[str, Sequence[str]], str]:
        if self.file is None:
            return self.sentences or {}, "sentences"
        return read_sentences(self.file), self.file


def class_weights(encoder: Encoder, prompts: Sequence[Sequence[str]], how: How) -> Float[Tensor, "C D"]:
    """One row a class, the mean of the unit features of prompts[c]; of `features` normalised again."""
    features = encoder.texts([prompt for own in prompts for prompt in own])
    rows = torch.stack([own.mean(dim=0) for own in features.split([len(own) for own in prompts])])
    return normalize(rows, dim=-1) if how == "features" else rows


def read_sentences(path: str) -> dict[str, list[str]]:
    """{class: [sentences]} of a JSON file, in which a class may have none; ValueError naming what is no such list."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wanted a JSON object {{class: [sentences]}}, got a {type(found).__name__}")
    for name, texts in found.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f'{path}: "{name}": wanted a list of sentences, none of them empty')
    return found


def read_json(path: str) -> Any:
    """What a JSON file holds; ValueError naming the file if it is missing, no JSON, or has one key twice."""
    file = Path(path)
    if not file.is_file():
        near = nearest(file.name, [p.name for p in file.parent.iterdir()]) if file.parent.is_dir() else ""
        raise ValueError(f"no file {path} (in {Path.cwd()}){near}")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_once)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" stands there twice, and JSON would keep only the last')
    return found


def said_missing(names: Sequence[str], known: Iterable[str], *, of: int, what: str, where: str) -> str:
    """The message about classes that have no `what`, with the nearest known name of each of the first few."""
    words = list(known)
    hints = [hint if (hint := nearest(name, words)).startswith("; did") else "" for name in names[:SHOWN]]
    listed = ", ".join(f'"{name}"{hint}' for name, hint in zip(names, hints))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{where}: no {what} for {len(names)} of {of} classes: {listed}{more}"


def check_phrase(phrase: str, *, needs: Collection[str], may: Collection[str] = ()) -> str:
    """The phrase; ValueError if it lacks a slot that it needs, or has braces other than its slots."""
    slots = _SLOT.findall(phrase)
    known = [*needs, *may]
    absent = [name for name in needs if name not in slots]
    if absent:
        raise ValueError(f'no slot {{{absent[0]}}} in "{phrase}"')
    strange = [name for name in slots if name not in known]
    if strange:
        raise ValueError(f'no slot is called {{{strange[0]}}}, as in "{phrase}"{nearest(strange[0], known)}')
    if set("{}") & set(_SLOT.sub("", phrase)):
        raise ValueError(f'braces other than {", ".join(f"{{{name}}}" for name in known)} in "{phrase}"')
    return phrase


def fill_phrase(phrase: str, values: Mapping[str, str]) -> str:
    """The phrase with its slots replaced literally; braces inside of values stay."""
    return _SLOT.sub(lambda slot: values[slot.group(1)], phrase)
