"""Random words in place of descriptions (WaffleCLIP, Roth et al. 2023): what descriptions have to beat."""

from __future__ import annotations

import string
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from vlp.adapters.adapter import Adapter, Level
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.descriptions import (
    How,
    check_phrase,
    class_weights,
    fill_phrase,
    read_sentences,
    said_missing,
)
from vlp.adapters.task import Task, short_hash
from vlp.embed import Encoder
from vlp.text.templates import read_names

Kind = Literal["words", "characters"]
VERBS = ("has", "is")
# Everyday words with nothing to say about any class; a list of one's own goes into the field `words`.
_EVERYDAY = """
ability absence account action address advice agenda almost amount answer anyway argue arrive aspect assume
attempt average balance basic become before belong beyond borrow bother bottom broad budget cancel career
careful centre certain chance change chapter choice claim clever closer comfort common compare concern contain
correct couple course create current custom damage danger debate decade decide degree depend design detail
differ direct distant divide double doubt during eager early effort either employ enough entire equal escape
event exact example except expect extend factor fairly famous figure final follow forget formal former forward
freely friend future gather general gentle global gradual handle happen hardly height helpful hidden honest
however ideal ignore impact improve include indeed inform inside instead intend invite itself junior justice
keen kindly label language lately launch leader lesson likely listen little lively loosely manage manner matter
measure member memory method middle minute modern moment mostly motion narrow nature nearly neither normal
notice number object obtain occur office often option origin other output owner partly patient pattern perhaps
period phrase plenty polite prefer present pretty process promise proper public purpose question quickly quiet
random rather reason recent reduce refer regular relate remain repeat report result return reveal reward rhythm
rough rule safely sample scale season second select senior sense series settle several shape share similar
simple single slowly social sooner source speak special spirit spread stable station steady still story strange
stretch subject success sudden suggest supply support surely system talent target theory though thought through
title together toward travel trust twice typical union unless useful usual value various version visible volume
weekly welcome whether whole winner within without wonder worth yearly yesterday younger
"""
WORDS = tuple(_EVERYDAY.split())


class Waffle(Adapter):
    """Each class's name with random descriptors, the same for all: "a photo of a dog, which has agenda." (2306.07282).

    `draws` descriptors of each kind, words and characters in turn, 15 and 15 as in the paper; `like` names a file of
    descriptions instead, and every class gets as many prompts as it has sentences there, so that the two differ in
    nothing but what is said. As in the paper a descriptor has as many words as a class name has on average, cut to the
    average length of these. What is drawn follows from the task's seed and from `seed`; average over several seeds.
    `how` as in `descriptions` (the paper's code averages scores). Ours: characters are the letters a to z and the verb
    is drawn, where theirs takes both from descriptions.
    """

    level: ClassVar[Level] = "text"
    by_seed: ClassVar[bool] = True

    draws: int = Field(15, ge=1)
    like: str | None = None
    kinds: tuple[Kind, ...] = Field(("words", "characters"), min_length=1)
    words: str | None = None
    phrase: str = "a photo of a {name}, which {verb} {text}."
    how: How = "features"
    seed: int = Field(0, ge=0)

    @field_validator("phrase")
    @classmethod
    def _slots(cls, phrase: str) -> str:
        return check_phrase(phrase, needs=("name", "text"), may=("verb",))

    def fit(self, encoder: Encoder, task: Task) -> LinearClassifier:
        """A classifier with one weight row a class; all prompts go through the tower in one pass."""
        counts = self._counts(task)
        drawn = self.descriptors(task, max(counts))
        prompts = [
            [fill_phrase(self.phrase, {"name": name, "verb": verb, "text": text}) for verb, text in drawn[:count]]
            for name, count in zip(task.names, counts)
        ]
        return LinearClassifier(
            class_weights(encoder, prompts, self.how),
            names=task.names,
            scale=encoder.scale,
            about={
                "adapter": "waffle",
                "settings": self.model_dump(mode="json"),
                "seed": task.seed,
                "prompts": sum(counts),
                "prompts_hash": short_hash([prompt for own in prompts for prompt in own]),
            },
        )

    def descriptors(self, task: Task, count: int) -> list[tuple[str, str]]:
        """`count` pairs of verb and random text, of the kinds in turn; fewer are the first of more."""
        known = read_names(self.words) if self.words else WORDS
        names = [name.replace("_", " ").split() for name in task.names]
        parts = max(1, round(float(np.mean([len(own) for own in names]))))
        length = max(1, round(float(np.mean([np.mean([len(word) for word in own]) for own in names if own]))))
        rng = np.random.default_rng([self.seed, task.seed])
        drawn = []
        for number in range(count):
            verb = VERBS[rng.integers(len(VERBS))]
            if self.kinds[number % len(self.kinds)] == "words":
                text = " ".join(known[place][:length] for place in rng.integers(len(known), size=parts))
            else:
                letters = rng.choice(list(string.ascii_lowercase), size=(parts, length))
                text = ", ".join("".join(word) for word in letters)
            drawn.append((verb, text))
        return drawn

    def _counts(self, task: Task) -> list[int]:
        """Prompts of each class."""
        if self.like is None:
            return [self.draws * len(self.kinds)] * len(task.names)
        found = read_sentences(self.like)
        without = [name for name in task.names if not found.get(name)]
        if without:
            said = said_missing(without, found, of=len(task.names), what="sentence", where=self.like)
            raise ValueError(f"{said}; add them, or leave `like` out and set `draws`")
        return [len(found[name]) for name in task.names]
