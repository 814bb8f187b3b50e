from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import sentencepiece
import torch

from vlp.text import TOKENIZERS
from vlp.text.sentence_pieces import SentencePiece
from vlp.text.train import train_sentencepiece

COLOURS = ["red", "green", "blue", "yellow", "purple"]
SHAPES = ["circle", "square", "triangle", "star", "hexagon"]
CAPTIONS = [f"a {a} {s} beside the {b} {t}" for a in COLOURS for b in COLOURS for s in SHAPES for t in SHAPES]
TEXTS = ["a red circle", "", "unseen: zebra & 红色 \ud800", "A  Red\tCircle", "a red circle beside the blue star " * 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pieces") / "deep" / "words.model"
    part = train_sentencepiece([*CAPTIONS, "", "\x00"], out, vocab_size=288)
    assert part == SentencePiece(path=str(out))
    assert list(out.parent.iterdir()) == [out]
    return out


def test_ids_of_sentencepiece_with_the_end_token(model: Path) -> None:
    peer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = SentencePiece(path=str(model), context=12).build()
    rows = tokenizer.encode(TEXTS[:2])
    assert rows == [[*peer.encode("a red circle"), 1], [1]]
    assert tokenizer.vocab_size == peer.vocab_size() == 288
    assert tokenizer.pad == 0
    assert tokenizer("a red circle")[0].tolist() == rows[0] + [0] * (12 - len(rows[0]))
    assert tokenizer.decode(rows[0]) == "a red circle"
    assert tokenizer.encode([]) == []


def test_every_text_has_ids_and_long_ones_keep_their_end(model: Path) -> None:
    tokenizer = SentencePiece(path=str(model), context=10).build()
    rows = tokenizer.encode(TEXTS)
    assert all(row[-1] == 1 and len(row) <= 10 for row in rows)
    assert all(2 not in row for row in rows)  # bytes stand in for what is unknown
    assert tokenizer.lengths(TEXTS)[4] > 10
    assert rows[3] == tokenizer.encode(["A Red Circle"])[0]


def test_start_and_end_tokens_as_asked(model: Path, tmp_path: Path) -> None:
    bare = SentencePiece(path=str(model), add_eos=False, context=3).build()
    assert bare.encode(["a red circle beside"])[0] == bare._whole(["a red circle beside"])[0][:3]
    with pytest.raises(ValueError, match=r"no bos token .* set add_bos: false"):
        SentencePiece(path=str(model), add_bos=True).build()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_prefix=str(tmp_path / "t"), vocab_size=32, minloglevel=2
    )
    with pytest.raises(ValueError, match=r"no pad token .* set pad_id"):
        SentencePiece(path=str(tmp_path / "t.model")).build()
    both = SentencePiece(path=str(tmp_path / "t.model"), add_bos=True, pad_id=2, context=6).build()
    assert both(["a red circle", ""])[:, 0].tolist() == [1, 1]
    assert both([""])[0].tolist() == [1, 2, 2, 2, 2, 2]


def test_siglip_options_equal_the_t5_tokenizer(model: Path) -> None:
    from open_clip.tokenizer import basic_clean, canonicalize_text

    peer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = SentencePiece(path=str(model), clean="canonicalize", pad_id=1, context=16).build()
    texts = ["A Red, circle!", "the_star isn't &amp; red"]
    rows = [[*peer.encode(canonicalize_text(basic_clean(text))), 1] for text in texts]
    expected = torch.tensor([row[:16] + [1] * (16 - len(row)) for row in rows])
    assert torch.equal(tokenizer(texts), expected)


def test_saved_pickled_and_described_alike(model: Path, tmp_path: Path) -> None:
    tokenizer = SentencePiece(path=str(model)).build()
    part = TOKENIZERS.build(TOKENIZERS.dump(tokenizer.save(tmp_path)))
    again = part.build(base=tmp_path)
    assert part.path == "tokenizer.model"
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS) == pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS)
    assert again.fingerprint == tokenizer.fingerprint


def test_training_twice_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    train_sentencepiece(iter(CAPTIONS), tmp_path / "b.model", vocab_size=288)
    assert (tmp_path / "b.model").read_bytes() == model.read_bytes()


def test_too_few_captions_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="smaller vocab_size"):
        train_sentencepiece(["a red circle"] * 3, tmp_path / "c.model", vocab_size=5000)
    with pytest.raises(ValueError, match="caption"):
        train_sentencepiece(["", "  "], tmp_path / "c.model", vocab_size=300)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'did you mean "words\.model"'):
        SentencePiece(path=str(model.with_name("word.model"))).build()
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="no SentencePiece model"):
        SentencePiece(path=str(tmp_path / "x.model")).build()
