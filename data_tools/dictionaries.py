"""Bilingual dictionaries: headwords and their translations, from dictd's files (as FreeDict has them) or tables."""

from __future__ import annotations

import gzip
import re
import string
from collections.abc import Iterator
from pathlib import Path

from vlp.data.schema import DataError

Entries = dict[str, list[str]]  # headword in lower case: its translations in the dictionary's order, with repeats

_DIGITS = {
    digit: value for value, digit in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")
}
_REMARK = re.compile(r"<[^>]*>|\[[^]]*]|\([^)]*\)|\{[^}]*}|/[^/]*/")
_REFERENCE = re.compile(r'see:|Note:|Synonyms?:|Antonyms?:|Plural of|"')
_NUMBER = re.compile(r"^\d+\.\s*")
_LONGEST = 3  # words: what is longer explains and does not translate


def read_dictionary(path: str | Path) -> Entries:
    """Translations by headword; `path` is a dictd pair without its endings (NAME.index, NAME.dict.dz) or a .tsv file.

    Of an entry the lines of translations are taken, cut at commas and semicolons, without remarks in brackets,
    pronunciation, examples and references; a table has a headword and a translation on each line.
    DataError where a file is missing, damaged, or has no translation.
    """
    path = Path(path)
    entries: Entries = {}
    try:
        for headword, translation in _table(path) if path.suffix == ".tsv" else _dictd(path):
            entries.setdefault(headword.lower(), []).append(translation)
    except (OSError, EOFError, UnicodeDecodeError) as error:  # gzip's faults are the first two
        raise DataError(
            f"{path}: {error}; a dictionary is NAME, where NAME.index and NAME.dict.dz lie, or a .tsv in UTF-8"
        ) from error
    if not entries:
        raise DataError(f"{path}: no headword with a translation is in it; is it a dictionary of two languages?")
    return entries


def turned(entries: Entries) -> Entries:
    """The dictionary of the other direction: translations in lower case as headwords, articles and "to" left out."""
    found: Entries = {}
    for headword, translations in entries.items():
        for translation in translations:
            found.setdefault(re.sub(r"^(to|an?|the) ", "", translation.lower()), []).append(headword)
    return found


def translations_in(entry: str) -> list[str]:
    """Translations in the text of one dictd entry, whose first line is the headword."""
    found = []
    for line in entry.splitlines()[1:]:
        line = _NUMBER.sub("", line[1:] if line[:1] == " " else line)  # one blank: a sense with a remark in front
        if line[:1].isspace() or _REFERENCE.match(line):
            continue
        found += [part.strip() for part in re.split("[,;]", _REMARK.sub("", line))]
    return [part for part in found if 0 < len(part.split()) <= _LONGEST]


def _table(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 2 or not columns[0].strip() or not columns[1].strip():
            raise DataError(f"{path}: line {number} is not a headword, a tab and a translation: {line[:60]!r}")
        yield columns[0].strip(), columns[1].strip()


def _dictd(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of a dictd database: lines of headword, offset and length in base 64 (dictfmt(1)), and the text."""
    index, packed = Path(f"{path}.index"), Path(f"{path}.dict.dz")
    text = gzip.decompress(packed.read_bytes()) if packed.is_file() else Path(f"{path}.dict").read_bytes()
    seen = set()
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 3 or not columns[1] or set(columns[1] + columns[2]) - _DIGITS.keys():
            raise DataError(f"{index}: line {number} is not a headword, an offset and a length: {line[:60]!r}")
        start, length = _value(columns[1]), _value(columns[2])
        if start + length > len(text):
            raise DataError(f"{index}: line {number} points behind the end of the dictionary; are they of one version?")
        if columns[0].startswith("00database") or (columns[0], start) in seen:
            continue
        seen.add((columns[0], start))
        for translation in translations_in(text[start : start + length].decode("utf-8")):
            yield columns[0], translation


def _value(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS[digit]
    return value
