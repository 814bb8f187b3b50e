# ruff: noqa: RUF001
from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data_tools.test_captions import draws, parse, true
from vlp.text.negatives import swaps


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "a small red star left of a blue ring",
            ["a small blue star left of a red ring", "a small red ring left of a blue star"],
        ),
        ("A man riding a horse.", ["A horse riding a man."]),
        ("Two dogs chase a cat and three birds", ["Three dogs chase a cat and two birds"]),
        ("an apple on a table", ["a table on an apple"]),
        ("a red apple over an orange plum", ["an orange apple over a red plum"]),
        ("men walking, women running", ["men running, women walking"]),
        ("a man walking and a woman running", ["a woman walking and a man running"]),
        ("a red dog next to a blue cat", ["a blue dog next to a red cat", "a red cat next to a blue dog"]),
        ("a dog on a mat and a cat", ["a cat on a mat and a dog"]),
    ],
)
def test_two_words_of_one_kind_change_places(caption: str, expected: list[str]) -> None:
    assert set(expected) <= set(swaps(caption, 99))


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a photo",
        "a dog",
        "a dog and a cat",
        "dogs, cats or birds",
        "a black and white cat",
        "a small red star",
        "a big dog",
        "a dog beside a dog",
        "a large room behind a big room",
        "a black dog and a white dog",
        "a dog next to a cat",
        "a man with a woman",
        "a red ball, a blue ball and a green ball",
        "A boy near his father.",
        "two black dogs beside three black dogs",
        "猫がいる。犬もいる！",
        "на 12 and 13",
    ],
)
def test_nothing_where_a_swap_would_stay_true_or_say_the_same(caption: str) -> None:
    assert swaps(caption, 5) == []


def test_draws_are_the_generators_and_without_one_the_first() -> None:
    caption = "a red dog on a green table near a yellow lamp and a brown box"
    assert swaps(caption, 2) == swaps(caption, 99)[:2]
    same = [swaps(caption, 3, np.random.default_rng(4)) for _ in range(2)]
    assert same[0] == same[1]
    assert len(set(same[0])) == 3
    counts = Counter(swaps(caption, 1, np.random.default_rng(seed))[0] for seed in range(300))
    assert set(counts) == set(swaps(caption, 99))


@given(st.text(alphabet="ab cAB,.'é猫1-", max_size=40), st.integers(1, 4))
def test_any_text(text: str, count: int) -> None:
    found = swaps(text, count, np.random.default_rng(0))
    assert len(found) == len(set(found)) <= count
    words = Counter(re.findall(r"\w+", text.casefold().replace("an", "a")))
    for swapped in found:
        assert swapped.casefold() != text.casefold()
        assert Counter(re.findall(r"\w+", swapped.casefold().replace("an", "a"))) == words


def test_swapped_relations_of_rendered_scenes_are_mostly_false() -> None:
    """Judged by the reader of scenes: where the swap still reads as things in a relation, few are true by chance."""
    judged = still_true = 0
    for number, (scene, texts) in enumerate(draws(300, seed=3)):
        for swapped in swaps(texts.captions[0], 1, np.random.default_rng(number)):
            if len(parse(swapped).things) == 2:
                judged += 1
                still_true += true(swapped, scene)
    assert judged > 100
    assert still_true < 0.1 * judged
