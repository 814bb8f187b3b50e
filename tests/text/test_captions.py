# ruff: noqa: RUF001
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import tokenizer as peer

from vlp.text.captions import CLEANERS, cut_bytes, is_blank, main_script, scripts, sentences


@given(st.text(max_size=60))
def test_cleaning_is_open_clips(text: str) -> None:
    assert CLEANERS["whitespace"](text) == peer.get_clean_fn("whitespace")(text)
    assert CLEANERS["lower"](text) == peer.get_clean_fn("lower")(text)
    assert CLEANERS["canonicalize"](text) == peer.get_clean_fn("canonicalize")(text)
    assert CLEANERS["none"](text) == text


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
def test_plain_text_may_skip_the_repair(text: str) -> None:
    assert CLEANERS["whitespace"](text) == peer.get_clean_fn("whitespace")(text)


USUAL = (
    "abzAZ 09.,'\"<>\n\tÀÁÂÃÄÅÇÈÉÊÌÍÎÏÐÑÒÓÔÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôöøùúûüÿ"
    "ĀāĐđİıĴĿłŠšŸŽžſ–—‘’“”…Ж\u0451é猫犬かなカー、。한글"
)


@given(st.text(alphabet=USUAL, max_size=30))
@settings(max_examples=600, deadline=None)
def test_usual_text_may_skip_the_repair(text: str) -> None:
    assert CLEANERS["whitespace"](text) == peer.get_clean_fn("whitespace")(text)


@given(st.text(max_size=12), st.sampled_from(["cp1252", "latin-1", "cp1251"]))
@settings(max_examples=300, deadline=None)
def test_mojibake_is_still_repaired(text: str, wrong: str) -> None:
    broken = ("“" + text + "é’s").encode("utf-8", "ignore").decode(wrong, "replace")
    assert CLEANERS["whitespace"](broken) == peer.get_clean_fn("whitespace")(broken)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50), st.integers(0, 60))
def test_cut_is_the_longest_prefix_that_fits(text: str, limit: int) -> None:
    cut = cut_bytes(text, limit)
    assert text.startswith(cut)
    assert len(cut.encode()) <= limit
    if cut != text:
        assert len(text[: len(cut) + 1].encode()) > limit


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000", "\u200b\ufeff", "\x00\x07", "\u00a0 \u202e"])
def test_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", ".", "猫", "❤", " x\x00", "\u0301"])
def test_not_blank(text: str) -> None:
    assert not is_blank(text)


def test_scripts() -> None:
    assert scripts("abc 猫犬 д!") == {"Latin": 3, "Han": 2, "Cyrillic": 1}
    assert main_script("他的锄头太短了。") == "Han"
    assert main_script("かれのくわは短すぎた。") == "Japanese"
    assert main_script("아저씨의 괭이는") == "Hangul"
    assert main_script("उसका फावड़ा") == "Devanagari"
    assert main_script("123 !") == "None"
    assert scripts("ᏣᎳᎩ") == {"Other": 3}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One dog. Two cats! Three?", ["One dog.", "Two cats!", "Three?"]),
        ("no full stop", ["no full stop"]),
        ("See Fig. 2 for E. coli. It is 3.5 mm long.", ["See Fig. 2 for E. coli.", "It is 3.5 mm long."]),
        ("Mr. Smith, e.g. Bob, left. (He ran.) Then", ["Mr. Smith, e.g. Bob, left.", "(He ran.)", "Then"]),
        ("He said “Stop.” Then he ran.", ["He said “Stop.”", "Then he ran."]),
        ("猫がいる。犬もいる！鳥は？", ["猫がいる。", "犬もいる！", "鳥は？"]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("a title\n\nand a text.", ["a title", "and a text."]),
        ("  \n ", []),
        ("at 5 p.m. the sun", ["at 5 p.m. the sun"]),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


@given(st.text(max_size=200))
def test_sentences_lose_nothing_but_blanks(text: str) -> None:
    kept = "".join("".join(sentences(text)).split())
    whole = "".join(text.split())
    assert len(kept) <= len(whole)
    assert all(is_blank(char) or char in kept for char in whole)


@pytest.mark.parametrize(
    ("text", "clean"), [("\ud800 cat", "\ufffd cat"), ("\ud83d\ude00!", "\U0001f600!"), (" a\tÜ ", " a\tÜ ")]
)
def test_text_left_as_it_is_can_still_be_encoded(text: str, clean: str) -> None:
    assert CLEANERS["none"](text) == clean
    CLEANERS["none"](text).encode()
