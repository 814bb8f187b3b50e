# ruff: noqa: RUF001
from __future__ import annotations

import json
import pickle
import random
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from vlp.text import TOKENIZERS
from vlp.text.clip_bpe import ClipBPE, merge

PEER = SimpleTokenizer()
OURS = ClipBPE().build()
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

WEIRD = [
    "",
    "   ",
    "a photo of a cat.",
    "It's the dog's 3rd ball; they'll say we've won, I'd bet",
    "AT&amp;T &lt;b&gt; &amp;amp;amp; &copy",
    "schÃ¶n caf\u00e9 cafe\u0301",  # mojibake, composed and decomposed
    "nul\x00 bell\x07 vt\x0b ff\x0c esc\x1b[31m del\x7f",
    "\ud800 lone surrogate \udfff",
    "bidi \u202eevil\u202c zero\u200bwidth \ufeff bom",
    "z̷̡̛̹a̸l̵g̶o",
    "emoji 👩‍👩‍👧‍👦 🇨🇭 \u2764\ufe0f",
    "红色的圆在蓝色方块左边。",
    "Straße İstanbul ıI ſ's ſt Kelvin K",
    "ΟΔΥΣΣΕΥΣ Σ ΑΣ.",
    "<start_of_text>hello<end_of_text> <START_OF_TEXT> <ſtart_of_text>",
    "tab\tline\nreturn\r\nparagraph\u2029sep\u2028 nbsp\u00a0ideographic\u3000x\x85y\x1cz",
    "½ ² ٣ Ⅷ 3.14 1,000 ①",
    "“curly” ‘quotes’ — dash… ﬁ ligature ﬀ",
    "!!!???...---___***",
    "x" * 500,
    "ab" * 300,
    "a'b'c's't",
]


def expected(text: str) -> list[int]:
    return [PEER.sot_token_id, *PEER.encode(text), PEER.eot_token_id]


@pytest.mark.parametrize("text", WEIRD, ids=range(len(WEIRD)))
def test_weird_text_has_the_ids_of_open_clip(text: str) -> None:
    assert OURS.lengths([text]) == [len(expected(text))]
    assert torch.equal(OURS(text), PEER([text]))


@given(st.lists(st.text(max_size=80), max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_ids_of_open_clip(texts: list[str]) -> None:
    assert [len(expected(text)) for text in texts] == OURS.lengths(texts)
    assert torch.equal(OURS(texts), PEER(texts))


@given(st.text(alphabet="abcdeorst <>_'", max_size=300))
@settings(max_examples=200, deadline=None)
def test_merges_come_out_as_in_the_quadratic_loop(text: str) -> None:
    assert torch.equal(OURS([text]), PEER([text]))


def test_merge_finishes_a_rank_before_a_lower_one_that_it_made() -> None:
    ranks = {("a", "b"): 1, ("ab", "a"): 0, ("a", "a"): 2}
    assert merge(list("abab"), ranks) == ["ab", "ab"]  # all (a, b) first, though (ab, a) would rank lower
    assert merge(list("aaa"), ranks) == ["aa", "a"]
    assert merge(["q"], ranks) == ["q"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real captions beside the repository")
def test_all_real_captions_have_the_ids_of_open_clip() -> None:
    texts: set[str] = set()
    for shard in sorted(DATA.glob("*/*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    texts.update(strings(json.load(tar.extractfile(member))))  # type: ignore[arg-type]
    chosen = random.Random(0).sample(sorted(texts), min(3000, len(texts)))
    for start in range(0, len(chosen), 500):
        part = chosen[start : start + 500]
        assert torch.equal(OURS(part), PEER(part))
    assert len(chosen) > 1000


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in strings(item)]


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("context", [2, 5, 32, 77, 248])
def test_every_context_and_cleaning_as_open_clip(clean: str, context: int) -> None:
    peer = SimpleTokenizer(context_length=context, clean=clean)
    assert torch.equal(ClipBPE(context=context, clean=clean).build()(WEIRD), peer(WEIRD))


def test_a_cut_caption_keeps_its_end_token() -> None:
    ids = ClipBPE(context=8).build().encode(["a b c d e f g h i j", "a b"])
    assert len(ids[0]) == 8
    assert ids[0][-1] == ids[1][-1] == PEER.eot_token_id


def test_a_caption_bomb_is_cut_before_it_is_cleaned() -> None:
    bomb = "&" + "amp;" * 20_000 + "lt;" * 20_000
    assert len(OURS.encode([bomb, "q" * 10**6])) == 2  # seconds to minutes without the limit
    assert OURS.lengths(["a " * 10_000]) == [4096 + 2]


def test_pickled_tokenizer_and_part_are_the_same() -> None:
    again = pickle.loads(pickle.dumps(OURS))
    assert again == OURS
    assert again.encode(WEIRD) == OURS.encode(WEIRD)
    part = TOKENIZERS.build(TOKENIZERS.dump(ClipBPE(context=33)))
    assert part == ClipBPE(context=33)
    assert part.build().fingerprint != OURS.fingerprint


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlp.text.clip_bpe._CACHE_WORDS", 10)
    small = ClipBPE().build()
    for number in range(100):
        small.encode([f"word{number} again"])
        assert len(small._ids) <= 10
    assert torch.equal(small(WEIRD), PEER(WEIRD))


def test_an_own_vocabulary_is_saved_with_the_model(tmp_path: Path) -> None:
    assert OURS.save(tmp_path) == ClipBPE()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    own = ClipBPE(path=str(OURS.file)).build()
    part = own.save(tmp_path / "model")
    assert part.path == "clip_bpe.txt.gz"  # type: ignore[attr-defined]
    assert part.build(tmp_path / "model").encode(WEIRD) == OURS.encode(WEIRD)


def test_missing_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match=r"no vocabulary file nowhere\.gz"):
        ClipBPE(path="nowhere.gz").build()


def test_decode_as_open_clip() -> None:
    ids = OURS.encode(["a red circle, café"])[0]
    assert OURS.decode(ids) == PEER.decode(ids)
