"""Which tokenizer a model has, where it cuts, and that a tower finds the end and the padding of its texts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.models.arch import OURS_FILE
from vlp.models.model import Model
from vlp.text.clip_bpe import ClipBPE
from vlp.text.huggingface import HuggingFace
from vlp.text.train import train_sentencepiece

from .test_text_hf import SIZES
from .tiny import NANO

TEXTS = ["a cat", "a dog beside a cat", "dog"]


def word_tokenizer(folder: Path, *words: str, end: bool = True) -> Path:
    """A folder of transformers with ids [UNK] 0, [PAD] 1, [SEP] 2, then the words; a text ends with [SEP] if asked."""
    names = ["[UNK]", "[PAD]", "[SEP]", *words]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        inner.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]" if end else None
    )
    fast.save_pretrained(folder)
    return folder


def arch(folder: Path, **text: Any) -> str:
    config = copy.deepcopy(NANO)
    config["text_cfg"] |= text
    (folder / "arch.json").write_text(json.dumps(config))
    return str(folder / "arch.json")


def encoded(dual: Any, texts: list[str] = TEXTS) -> torch.Tensor:
    return Encoder(dual, quiet=True).texts(texts)


def test_a_tokenizer_that_cut_shorter_than_the_tower_goes_on_doing_so(tmp_path: Path) -> None:
    dual = Model(arch="vlp-nano", tokenizer=ClipBPE(context=9)).build()
    pretrained.save(dual, tmp_path)
    again = pretrained.load(tmp_path)
    assert (again.tokenizer.context, again.context) == (9, 32)
    assert again.tokenizer.fingerprint == dual.tokenizer.fingerprint
    assert Model(pretrained=str(tmp_path)).build().tokenizer.context == 9
    assert Model(pretrained=str(tmp_path), context=20).build().tokenizer.context == 20, "asked for anew"


def test_room_that_a_prefix_took_comes_back_without_it(tmp_path: Path) -> None:
    pretrained.save(Model(arch="vlp-nano", prefix=3).build(), tmp_path)
    assert [Model(pretrained=str(tmp_path), prefix=p).build().tokenizer.context for p in (None, 0, 5)] == [29, 32, 27]


def test_a_prefix_without_room_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="40 of the 32 positions of the text tower leave none"):
        Model(arch="vlp-nano", prefix=40).build()


def test_texts_are_cut_to_the_positions_of_the_encoder() -> None:
    hf = {"model_type": "bert", **SIZES, "max_position_embeddings": 16, "vocab_size": 49408}
    dual = Model(arch="vlp-nano", text={"hf": hf}).build()  # type: ignore[arg-type]
    assert dual.tokenizer.context == dual.context == 16
    assert encoded(dual, ["a cat " * 60]).isfinite().all()


def test_a_path_that_is_asked_for_is_not_looked_up_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = HuggingFace(path=str(word_tokenizer(tmp_path / "a", "cat")))
    pretrained.save(Model(arch=arch(tmp_path), tokenizer=here).build(), tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer").is_dir()
    word_tokenizer(tmp_path / "tokenizer", "cat", "dog")
    monkeypatch.chdir(tmp_path)
    dual = Model(pretrained=str(tmp_path / "model"), tokenizer=HuggingFace(path="tokenizer")).build()
    text: Any = dual.text
    assert dual.tokenizer.vocab_size == text.token_embedding.num_embeddings == 5


def test_a_folder_of_open_clip_brings_its_tokenizer_along(tmp_path: Path) -> None:
    pretrained.save(Model(arch=arch(tmp_path)).build(), tmp_path / "model")
    word_tokenizer(tmp_path / "model", "a", "cat", "dog", "beside")
    (tmp_path / "model" / OURS_FILE).unlink()
    file = tmp_path / "model" / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "some-org/some-model"
    file.write_text(json.dumps(content))
    peer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    assert torch.equal(pretrained.load(tmp_path / "model").tokenizer(TEXTS), peer(TEXTS))


def test_a_causal_tower_pools_at_the_end_token_of_another_tokenizer_also_in_open_clip(tmp_path: Path) -> None:
    captions = [f"a {w} beside the {v}" for w in ("cat", "dog") for v in ("river", "road")]
    part = train_sentencepiece(captions, tmp_path / "sp.model", vocab_size=300, kind="bpe", context=12)
    dual = Model(arch=arch(tmp_path), tokenizer=part).build().eval()
    ids, want = dual.tokenizer(TEXTS), encoded(dual)
    torch.testing.assert_close(dual.encode_text(ids), want, atol=1e-5, rtol=0)
    pretrained.save(dual, tmp_path / "model")
    peer: Any = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    torch.testing.assert_close(peer.encode_text(ids, normalize=True), want, atol=1e-5, rtol=0)
    assert "pool_type" not in Model(arch="vlp-nano", tokenizer=ClipBPE()).build().config["text_cfg"]


@pytest.mark.parametrize("model", [{"model_type": "roberta", **SIZES, "pad_token_id": 0}, {"model_type": "gpt2"}])
def test_an_encoder_masks_the_padding_of_its_tokenizer(tmp_path: Path, model: dict[str, Any]) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99} if model["model_type"] == "gpt2" else {}
    tokenizer = HuggingFace(path=str(word_tokenizer(tmp_path / "t", "a", "cat", "dog", "beside")), context=12)
    dual = Model(arch=arch(tmp_path), text={"hf": {**model, **sizes}}, tokenizer=tokenizer).build().eval()  # type: ignore[arg-type]
    want = encoded(dual)
    torch.testing.assert_close(dual.encode_text(dual.tokenizer(TEXTS)), want, atol=1e-5, rtol=0)


def test_an_empty_text_without_special_tokens_alone_is_as_among_others(tmp_path: Path) -> None:
    folder = word_tokenizer(tmp_path / "t", "a", "cat", end=False)
    hf = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99}
    tokenizer = HuggingFace(path=str(folder), context=12)
    dual = Model(arch=arch(tmp_path), text={"hf": hf, "pooler": "last"}, tokenizer=tokenizer).build().eval()  # type: ignore[arg-type]
    assert dual.tokenizer.encode([""]) == [[]]
    torch.testing.assert_close(encoded(dual, [""])[0], encoded(dual, ["", "a cat"])[0], atol=1e-5, rtol=0)


def test_a_prefix_stands_behind_a_start_token_that_no_end_token_follows(tmp_path: Path) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(word_tokenizer(tmp_path / "t", "cat", end=False))
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[SEP] $A", special_tokens=[("[SEP]", 2)]
    )
    fast.add_special_tokens({"bos_token": "[SEP]"})
    fast.save_pretrained(tmp_path / "start")
    ends = word_tokenizer(tmp_path / "end", "cat")
    for folder, ids, at in ((tmp_path / "start", [[2]], 1), (ends, [[2]], 0), (tmp_path / "t", [[]], 0)):
        dual = Model(arch="vlp-nano", tokenizer=HuggingFace(path=str(folder)), prefix=2).build()
        assert (dual.tokenizer.encode([""]), dual.prefix_at) == (ids, at)
