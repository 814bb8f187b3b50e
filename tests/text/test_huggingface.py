from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlp.text import TOKENIZERS
from vlp.text.huggingface import HuggingFace
from vlp.text.tokenizers import from_open_clip

TEXTS = [
    "a red circle",
    "",
    "the blue square is left of a green star, isn't it? unseen zebra",
    "Ünï &amp; cödé",
    "a_b c",
]


def tiny_bert() -> Tokenizer:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    captions = ["a red circle", "the blue square is left of a green star", "many many small shapes"]
    inner.train_from_iterator(captions, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return inner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(
        tokenizer_object=tiny_bert(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize("context", [5, 12, 64])
@pytest.mark.parametrize("strip", [False, True])
def test_ids_of_open_clips_wrapper(folder: Path, clean: str, context: int, strip: bool) -> None:
    peer = HFTokenizer(str(folder), context_length=context, clean=clean, strip_sep_token=strip)
    ours = HuggingFace(path=str(folder), context=context, clean=clean, strip_sep_token=strip).build()
    assert torch.equal(ours(TEXTS), peer(TEXTS))
    assert ours.pad == 0
    assert ours.vocab_size == len(peer.tokenizer)


def test_encode_cuts_and_lengths_do_not(folder: Path) -> None:
    tokenizer = HuggingFace(path=str(folder), context=6).build()
    rows = tokenizer.encode(TEXTS)
    assert max(map(len, rows)) == 6
    assert all(row[0] == 2 and row[-1] == 3 == tokenizer.end for row in rows)
    assert max(tokenizer.lengths(TEXTS)) > 6
    assert tokenizer.encode([]) == []
    assert tokenizer.lengths(TEXTS)[1] == 2


def test_saved_pickled_and_described_alike(folder: Path, tmp_path: Path) -> None:
    tokenizer = HuggingFace(path=str(folder), context=9).build()
    part = TOKENIZERS.build(TOKENIZERS.dump(tokenizer.save(tmp_path)))
    assert part.path == "tokenizer"
    again = part.build(base=tmp_path)
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS) == pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS)
    assert again.fingerprint == tokenizer.fingerprint
    assert HuggingFace(path=str(folder), context=10).build().fingerprint != tokenizer.fingerprint


def test_a_tokenizer_json_needs_its_padding_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    tiny_bert().save(str(file))
    with pytest.raises(ValueError, match=r'set pad_token \(the vocabulary has "\[PAD\]"\)'):
        HuggingFace(path=str(file)).build()
    with pytest.raises(ValueError, match="not in the vocabulary"):
        HuggingFace(path=str(file), pad_token="<nothing>").build()
    assert HuggingFace(path=str(file), pad_token="[PAD]", context=7).build()("a red circle").shape == (1, 7)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot load path .*broken\.json"):
        HuggingFace(path=str(tmp_path / "broken.json")).build()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        HuggingFace(path=str(tmp_path / "empty")).build()


def test_a_language_that_it_does_not_know_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no source language"):
        HuggingFace(path=str(folder), language="eng_Latn").build()


def test_from_open_clip_takes_the_options_of_the_config() -> None:
    cfg = {"hf_tokenizer_name": "org/name", "context_length": 64, "tokenizer_kwargs": {"clean": "canonicalize"}}
    assert from_open_clip(cfg) == HuggingFace(path="org/name", context=64, clean="canonicalize")
    assert TOKENIZERS.dump(from_open_clip({"context_length": 32}))["name"] == "clip_bpe"
    assert from_open_clip({"context_length": 32}).context == 32
    assert from_open_clip({}).context == 77
    with pytest.raises(ValueError, match=r"tokenizer_kwargs\.claen.*clean"):
        from_open_clip({"tokenizer_kwargs": {"claen": "lower"}})
    with pytest.raises(ValueError, match="tokenizer_mode"):
        from_open_clip({"hf_tokenizer_name": "org/name", "tokenizer_mode": "clips"})
