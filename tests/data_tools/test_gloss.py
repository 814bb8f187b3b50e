"""`gloss`: dictionaries are read as dictfmt writes them, words get the translation that is in use, real texts stay."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools import TOOLS
from data_tools.__main__ import app
from data_tools.dictionaries import read_dictionary, translations_in, turned
from data_tools.glosses import base_forms, choose, gloss, words
from data_tools.shards import find_shards, samples
from tests.shards import make_shards
from vlp.data.captions import Captions
from vlp.data.fields import Fields
from vlp.data.schema import DataError, read_manifest
from vlp.types import Sample

ENTRIES = {
    "00databaseinfo": "00databaseinfo\nA dictionary, of its maker\n",
    "dog": "dog /dog/ <n>\nBock <masc> [techn.], Hund <masc>\n"
    '      "dog tired"  - hundemüde\n   Synonym: {hound}\n\n see: {dogs}\n',
    "run": "run /ran/ <v>\n1. laufen (zu Fuß)\n2. rennen; eilen\n",
    "Stop": "Stop\n [naut.] anhalten, Halt machen und dann wieder weiter gehen\n",
}


def number(value: int) -> str:
    """dictfmt's base 64: most significant digit first, no padding."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return (number(value // 64) if value >= 64 else "") + digits[value % 64]


def dictd(folder: Path, entries: dict[str, str] = ENTRIES, *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text, lines = b"", []
    for headword, entry in entries.items():
        lines.append(f"{headword}\t{number(len(text))}\t{number(len(entry.encode()))}\n")
        text += entry.encode()
    (folder / "eng-deu.index").write_text("".join(sorted(lines)), encoding="utf-8")
    (folder / ("eng-deu.dict.dz" if packed else "eng-deu.dict")).write_bytes(gzip.compress(text) if packed else text)
    return folder / "eng-deu"


def facts(**texts: str) -> dict[str, bytes]:
    return {"json": json.dumps({"texts": texts, "page": 3}).encode()}


@pytest.fixture
def pages(tmp_path: Path) -> str:
    """Six pages, of which two have German, one no English, and one no texts at all."""
    told = {
        0: facts(en="The dogs ran to Amina.", de="Die Hunde liefen zu Amina."),
        1: facts(en="He\N{RIGHT SINGLE QUOTATION MARK}s stopping!", sw="Anasimama!"),
        2: facts(de="Ein Hund."),
        3: facts(),
        4: facts(en="123 ..."),
        5: facts(en="A dog", de=" "),
    }
    return make_shards(tmp_path / "pages", samples=6, shards=2, broken=told)


@pytest.mark.parametrize("packed", [True, False])
def test_reads_what_dictfmt_writes(tmp_path: Path, packed: bool) -> None:
    found = read_dictionary(dictd(tmp_path, packed=packed))
    assert found == {"dog": ["Bock", "Hund"], "run": ["laufen", "rennen", "eilen"], "stop": ["anhalten"]}
    assert turned(found)["hund"] == ["dog"]


def test_numbers_are_base_64_without_padding() -> None:
    assert [number(value) for value in (0, 63, 64)] == ["A", "/", "BA"]
    assert number(123456789) == base64.b64encode((123456789 << 6).to_bytes(6, "big")).decode().lstrip("A")[:-1]


def test_an_entry_seen_from_two_places_counts_once_and_two_entries_twice(tmp_path: Path) -> None:
    name = dictd(tmp_path, {"dog": "dog\nHund\n", "dog ": "dog\nHund\n"})
    index = name.with_suffix(".index")
    index.write_text(index.read_text().replace("dog \t", "dog\t") + "dog\tA\tJ\n")
    assert read_dictionary(name) == {"dog": ["Hund", "Hund"]}


def test_a_table_of_two_columns_is_a_dictionary(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("Dog\t狗\ndog\t犬\n", encoding="utf-8")
    assert read_dictionary(tmp_path / "words.tsv") == {"dog": ["狗", "犬"]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("eng-deu.index", "dog\n", "line 1 is not a headword, an offset and a length"),
        ("eng-deu.index", "dog\tA\tZZZZ\n", "behind the end"),
        ("eng-deu.dict.dz", "plain", "eng-deu: Not a gzipped file"),
        ("eng-deu.index", "", "no headword with a translation"),
    ],
)
def test_faults_of_a_dictionary_say_where(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = dictd(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_dictionary(path)


def test_a_missing_dictionary_and_a_row_of_one_column_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a dictionary is NAME, where NAME.index"):
        read_dictionary(tmp_path / "nothing")
    (tmp_path / "words.tsv").write_text("dog\tHund\ncat\n")
    with pytest.raises(DataError, match="line 2 is not a headword, a tab and a translation"):
        read_dictionary(tmp_path / "words.tsv")


def test_explanations_of_many_words_are_no_translations() -> None:
    assert translations_in("x\na b c, a b c d\n") == ["a b c"]


@pytest.mark.parametrize(
    ("word", "base"),
    [
        *(("Dogs", "dog"), ("stopping", "stop"), ("making", "make"), ("cried", "cry"), ("wolves", "wolf")),
        *(("knives", "knife"), ("bigger", "big"), ("women", "woman"), ("boxes", "box"), ("slowly", "slow")),
        ("mother's", "mother"),
    ],
)
def test_base_forms_of_english_words(word: str, base: str) -> None:
    assert base in list(base_forms(word))
    assert next(base_forms(word)) == word.lower()


def test_the_translation_that_is_in_use_is_chosen() -> None:
    entries = {"dog": ["Bock", "Hund"], "run": ["laufen", "rennen"], "be": ["..."]}
    assert choose(["dog", "cat", "be"], entries, {}) == {"dog": "Bock"}
    said = {"hund": 2, "rennender": 1}  # an inflected form counts for its stem
    assert choose(["dogs", "run"], entries, said) == {"dogs": "Hund", "run": "rennen"}


def test_names_stay_and_other_unknown_words_go() -> None:
    assert gloss("The DOGS saw Amina: “run!”", {"dogs": "Hunde", "run": "lauft"}) == "The Hunde Amina lauft"
    assert words("it\N{RIGHT SINGLE QUOTATION MARK}s 3 o'clock") == ["it's", "o'clock"]


def test_chinese_characters_are_words_without_blanks() -> None:
    assert words("一只狗 runs") == ["一", "只", "狗", "runs"]
    chosen = choose(["dog", "two"], {"dog": ["犬", "狗"], "two": ["二"]}, {"狗": 3})
    assert gloss("Two dog, Amina", chosen) == "二狗 Amina"


def test_writes_glosses_beside_the_real_texts(pages: str, tmp_path: Path) -> None:
    name = dictd(tmp_path / "d")
    part = TOOLS.resolve("gloss")(dictionaries=(("de", name),))
    result = part.run([pages], tmp_path / "out")
    assert (result["inputs"], result["samples"], result["skipped"]) == (6, 5, {"no_caption": 1})
    assert result["de"] == "33.3% of 9 words found; most frequent of the others: the, ran, to, amina, he's, a"
    found = {
        raw.key: json.loads(raw.members["json"])
        for shard in find_shards([str(tmp_path / "out")])
        for raw in samples(shard)
    }
    assert found["000000"]["texts_glossed"] == {
        "en": "The dogs ran to Amina.",
        "de": "Die Hunde liefen zu Amina.",
        "de-x-gloss": "The Hund Amina",
    }
    assert found["000001"]["texts_glossed"]["de-x-gloss"] == "He's anhalten"
    assert "de-x-gloss" not in found["000002"]["texts_glossed"] | found["000004"]["texts_glossed"]
    assert all(found[key]["page"] == 3 for key in found)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert "json.texts_glossed" in manifest.fields


def test_an_evaluation_never_sees_a_gloss(pages: str, tmp_path: Path) -> None:
    TOOLS.resolve("gloss")(dictionaries=(("de", dictd(tmp_path / "d")),)).run([pages], tmp_path / "out")
    shards = find_shards([str(tmp_path / "out")])
    for raw in (raw for shard in shards for raw in samples(shard)):
        sample = Fields(Sample(raw.key, raw.members, "", 0))
        real = Captions(fields=("texts",), pick="all", count=9).texts(sample)
        assert real == list(filter(str.strip, json.loads(raw.members["json"])["texts"].values()))


def test_the_same_shards_again_are_kept_and_other_glosses_are_not(pages: str, tmp_path: Path) -> None:
    name = dictd(tmp_path / "d")
    part = TOOLS.resolve("gloss")(dictionaries=(("de", name),))
    part.run([pages], tmp_path / "out")
    assert part.run([pages], tmp_path / "out")["kept"] == 2
    dictd(tmp_path / "d", {"dog": "dog\nKöter\n"})
    with pytest.raises(DataError, match="made with other settings"):
        part.run([pages], tmp_path / "out")


def test_the_command_says_what_it_found_and_what_is_wrong(pages: str, tmp_path: Path) -> None:
    name, out = dictd(tmp_path / "d"), str(tmp_path / "out")
    run = CliRunner().invoke
    done = run(app, ["gloss", pages, "--out", out, "--dictionary", f"de={name}", "--turned", f"fr={name}"])
    assert done.exit_code == 0, done.output
    assert "de: 33.3% of 9 words found" in done.output
    assert "fr: 0.0% of 9 words found" in done.output
    assert "is not LANGUAGE=NAME" in run(app, ["gloss", pages, "--out", out, "--dictionary", str(name)]).output
    assert "no dictionary is given" in run(app, ["gloss", pages, "--out", out]).output
    nowhere = run(app, ["gloss", pages, "--out", out, "--dictionary", f"de={name}", "--source", "xx"])
    assert nowhere.exit_code == 1
    assert "has a text of json field texts.xx" in nowhere.output
