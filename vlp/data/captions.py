"""Which texts of a sample are its captions: one, some, sentences, sub-captions, and false ones beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from vlp.data.fields import Fields
from vlp.registry import Part
from vlp.text import subcaptions
from vlp.text.captions import is_blank, sentences
from vlp.text.negatives import swaps
from vlp.text.subcaptions import Replace
from vlp.types import BadSampleError

MAX_TEXT = 1 << 16  # characters of one text that are looked at: what comes of them is cut shorter still
# columns of a table that usually hold captions, best first; `vlp data build` guesses by the same names
CAPTION_COLUMNS = ("caption", "captions", "txt", "text", "texts", "title", "alt_text")
_NESTED = re.compile(r"&(?:amp;){9,}")
_SUBCAPTIONS = ("pool", "first", "replace", "merge", "merge_how")  # settings of pick: subcaptions


class Drawn(NamedTuple):
    """The captions of one visit, and where each one stands in its field (which has `of` items) where that is known."""

    texts: list[str]
    rows: list[int] = []
    of: int = 0
    notes: tuple[str, ...] = ()


class Read(NamedTuple):
    """What one field holds: its texts with their places, the number of items, and whether any of them is a text."""

    texts: list[tuple[int, str]]
    items: int = 0
    others: int = 0  # items that are no texts
    any_text: bool = False  # blank ones count
    cut: bool = False  # one was longer than MAX_TEXT


class Captions(Part):
    """Which texts of a sample are its captions: the first of `fields` that holds text.

    A field is a member ("txt"), a JSON path ("caption", "es.caption", "json:caption"), holding a string, a list, or an
    object of languages. `pick` says which of its texts are taken, `count` how many at most. Random choices are drawn
    from the sample's generator; without one (evaluation) the first are taken.

    pick: `first`, `random` or `all` texts; `sentences`: any of all their sentences, in their order; `subcaptions`
    (DreamLIP, FLAIR): the first caption is the first text whole (`first: raw`) or no different from the others
    (`first: piece`), the others are pieces, which are the sentences of *all* texts of *all* fields of `pool` (default:
    `fields`), `merge` consecutive ones of one text joined by `joint` (`merge_how: run`), or, each caption by itself,
    1 to `merge` pieces, consecutive or any (`merge_how: mixed`, FLAIR). Equal pieces count once. `replace` says whether
    a piece may come twice: "if_short" draws with replacement where there are fewer pieces than wanted.

    `lead` are fields whose texts stand before every caption ("title"); one that is the caption itself is left out.

    `negatives` are false captions of the sample (NegCLIP): from all fields of `negative_fields`, led as captions are,
    and, where these give fewer, from the first caption by `negative_rule` (`swap`: two of its words change places).
    What a field of `fields` or `pool` says, or a sentence of it, is never one.
    """

    fields: tuple[str, ...] = ("caption", "captions", "txt")
    pick: Literal["first", "random", "all", "sentences", "subcaptions"] = "first"
    count: int = Field(1, ge=1)
    language: str | None = None  # of objects {language: text}; None: all of them, in order
    encoding_errors: Literal["strict", "replace"] = "strict"
    lead: tuple[str, ...] = ()
    joint: str = " "  # between texts that are joined; pieces keep their full stop
    pool: tuple[str, ...] = ()
    first: Literal["raw", "piece"] = "raw"
    replace: Replace = "if_short"
    merge: int = Field(1, ge=1)
    merge_how: Literal["run", "mixed"] = "run"
    negatives: int = Field(0, ge=0)
    negative_fields: tuple[str, ...] = ()
    negative_rule: Literal["swap"] | None = None

    @model_validator(mode="after")
    def _settings_that_do_something(self) -> Captions:
        changed = [name for name in _SUBCAPTIONS if getattr(self, name) != type(self).model_fields[name].default]
        if self.count > 1 and self.pick == "first":
            raise ValueError(
                f"count: {self.count}, but pick: first takes one text; pick random, all, sentences or subcaptions"
            )
        if changed and self.pick != "subcaptions":
            raise ValueError(f"{', '.join(changed)}: only with pick: subcaptions, not pick: {self.pick}")
        if self.merge_how == "mixed" and self.replace == "never":
            raise ValueError("merge_how: mixed draws each caption by itself, so pieces come again; leave out replace")
        named = bool(self.negative_fields) or self.negative_rule is not None
        if self.negatives and not named:
            raise ValueError("negatives: where from? set negative_fields, negative_rule, or both")
        if named and not self.negatives:
            raise ValueError("negatives: 0, so negative_fields and negative_rule do nothing; set negatives")
        return self

    def texts(self, fields: Fields) -> list[str]:
        """All texts of the first field that has any, led; BadSampleError no_caption or empty_caption."""
        return self._led([text for _, text in self._found(fields).texts], fields)

    def choose(self, texts: Sequence[str], rng: np.random.Generator | None) -> list[str]:
        """At most `count` of the texts or of their sentences, in their order."""
        if self.pick == "sentences":
            texts = [part for text in texts for part in sentences(text)]
        return [texts[i] for i in self._rows(len(texts), rng)]

    def draw(self, fields: Fields, rng: np.random.Generator | None) -> Drawn:
        """At most `count` captions of one visit; BadSampleError no_caption or empty_caption."""
        found = self._found(fields)
        texts = [text for _, text in found.texts]
        notes = ("caption_not_text",) * bool(found.others) + ("caption_cut",) * found.cut
        if self.pick == "sentences":
            return Drawn(self._led(self.choose(texts, rng), fields), notes=notes)
        if self.pick == "subcaptions":
            return Drawn(self._led(self._subcaptions(texts[0], fields, rng), fields), notes=notes)
        rows = self._rows(len(texts), rng)
        places = [found.texts[i][0] for i in rows]
        return Drawn(self._led([texts[i] for i in rows], fields), places, found.items, notes)

    def false_texts(self, fields: Fields, captions: Sequence[str], rng: np.random.Generator | None) -> list[str]:
        """At most `negatives` texts that are false of the sample, led as its captions are: none that any field says."""
        told = [text for name in (*self.fields, *self.pool) for _, text in self._read(fields, name).texts]
        told += [part for text in told for part in sentences(text)]
        stored = [text for name in self.negative_fields for _, text in self._read(fields, name).texts]
        stored = [text for text in dict.fromkeys(stored) if text not in told and text not in captions]
        found = subcaptions.draw(stored, self.negatives, rng, replace="never") if stored else []
        found = self._led(found, fields)
        if self.negative_rule == "swap" and len(found) < self.negatives:
            taken = {*found, *captions, *self._led(told, fields)}
            found += [text for text in swaps(captions[0], self.negatives + len(taken), rng) if text not in taken]
        return found[: self.negatives]

    def _rows(self, n: int, rng: np.random.Generator | None) -> list[int]:
        """Numbers of the texts that are taken, of n."""
        if self.pick == "first":
            return [0][:n]
        if self.pick == "all" or rng is None or n <= self.count:
            return list(range(min(n, self.count)))
        return sorted(rng.choice(n, self.count, replace=False).tolist())

    def _subcaptions(self, raw: str, fields: Fields, rng: np.random.Generator | None) -> list[str]:
        """The raw caption (with `first: raw`) and sub-captions, `count` together."""
        texts = [text for name in self.pool or self.fields for _, text in self._read(fields, name).texts]
        pieces = [sentences(text) for text in dict.fromkeys(texts)]
        start = [raw] if self.first == "raw" else []
        count = self.count - len(start)
        if count == 0 or not any(pieces):
            return start or [raw]
        if self.merge_how == "mixed":
            return start + subcaptions.mixed(pieces, count, rng, longest=self.merge, joint=self.joint)
        pool = subcaptions.runs(pieces, self.merge, joint=self.joint)
        return start + subcaptions.draw(pool, count, rng, replace=self.replace)

    def _led(self, texts: list[str], fields: Fields) -> list[str]:
        """Each text behind the texts of the fields of `lead`."""
        if not self.lead:
            return texts
        leads = [text for name in self.lead for _, text in self._read(fields, name).texts]
        return [self.joint.join([*(lead for lead in leads if lead != text), text]) for text in texts]

    def _found(self, fields: Fields) -> Read:
        """What the first field with any text holds; items of fields before it that are no texts are counted along."""
        seen, others = False, 0
        for name in self.fields:
            read = self._read(fields, name)
            seen, others = seen or read.any_text, others + read.others
            if read.texts:
                return read._replace(others=others)
        where = ", ".join(self.fields)
        raise BadSampleError(*(("empty_caption", f"only blanks in {where}") if seen else ("no_caption", f"no {where}")))

    def _read(self, fields: Fields, name: str) -> Read:
        value = fields.find(name, errors=self.encoding_errors)
        if isinstance(value, Mapping):
            value = list(value.values()) if self.language is None else value.get(self.language)
        items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        texts = [(place, text) for place, text in enumerate(items) if isinstance(text, str)]
        kept = [(place, tame(text).strip()) for place, text in texts if not is_blank(text)]
        cut = any(len(text) > MAX_TEXT for _, text in texts)
        return Read(kept, len(items), len(items) - len(texts), bool(texts), cut)


def tame(text: str) -> str:
    """The text without what no writer means and cleaners choke on.

    It is cut at MAX_TEXT, halves of surrogate pairs become U+FFFD, and nine or more `amp;` in a row become one:
    cleaning takes away one a round, over the whole text, to the same end.
    """
    text = text[:MAX_TEXT]
    if "&amp;amp;amp;" in text:
        text = _NESTED.sub("&amp;", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
