from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vlp.text.subcaptions import Replace, draw, mixed, runs

TEXTS = [["A.", "B.", "C."], ["D."], ["E.", "F."], ["D."]]


def test_runs_stay_inside_a_text_and_are_distinct() -> None:
    assert runs(TEXTS, 1) == ["A.", "B.", "C.", "D.", "E.", "F."]
    assert runs(TEXTS, 2) == ["A. B.", "B. C.", "D.", "E. F."]
    assert runs(TEXTS, 3) == ["A. B. C.", "D.", "E. F."]
    assert runs([["a", "b"], []], 2, joint=". ") == ["a. b"]


@pytest.mark.parametrize(
    ("replace", "count", "drawn", "distinct"),
    [("never", 3, 3, True), ("never", 9, 5, True), ("if_short", 5, 5, True), ("if_short", 9, 9, False)],
)
def test_replacement(replace: Replace, count: int, drawn: int, distinct: bool) -> None:
    for seed in range(20):
        found = draw("abcde", count, np.random.default_rng(seed), replace=replace)
        assert len(found) == drawn
        assert (len(set(found)) == drawn) == distinct
    assert draw("abcde", count, None, replace=replace) == list("abcde")[:count]


def test_draws_are_uniform_in_every_place_and_always_may_repeat() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(
        (place, piece) for _ in range(3000) for place, piece in enumerate(draw("abcd", 2, rng, replace="never"))
    )
    assert all(650 < counts[place, piece] < 850 for place in range(2) for piece in "abcd")  # 750, 4.2 deviations
    assert any(a == b for a, b in (draw("abcd", 2, rng, replace="always") for _ in range(100)))


def test_mixed_has_the_distribution_of_flair() -> None:
    """Each caption by itself: m uniform in 1..3; of m above 1, half are consecutive in one text."""
    texts = [[chr(ord("a") + i) for i in range(20)]]
    rng = np.random.default_rng(1)
    found = [caption.split() for _ in range(800) for caption in mixed(texts, 5, rng, longest=3)]
    lengths = Counter(len(words) for words in found)
    assert all(1220 < lengths[m] < 1450 for m in (1, 2, 3))  # 1333, 3.8 deviations
    assert all(len(set(words)) == len(words) for words in found)
    triples = [words for words in found if len(words) == 3]
    consecutive = sum(ord(w[1]) - ord(w[0]) == ord(w[2]) - ord(w[1]) == 1 for w in triples) / len(triples)
    assert abs(consecutive - 0.5) < 0.06  # any 3 of 20 are consecutive in order with chance 0.003
    assert mixed(texts, 3, None, longest=3) == ["a", "b", "c"]
    short = [mixed([["x"]], 4, np.random.default_rng(seed), longest=3) for seed in range(20)]
    assert {caption for captions in short for caption in captions} == {"x"}
