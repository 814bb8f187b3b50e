"""Tokens of pictures and texts: order, halves, skips, limits, processes; words; scores of stored tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.eval.colours import colour_shard, jpeg
from vlp.data import open_records
from vlp.embed import Encoder
from vlp.kernels.late import late_similarity
from vlp.losses.wukong import Wukong
from vlp.models.model import Model
from vlp.text.clip_bpe import ClipBPE
from vlp.text.words import words
from vlp.token_scores import token_scores
from vlp.token_store import TokenStore


def nano(seed=0):
    torch.manual_seed(seed)
    return Model(arch="vlp-nano").build().eval()


@pytest.fixture(scope="module")
def dual():
    return nano()


TEXTS = ["a red square", "blue", "a red square", "three green circles above a small yellow triangle"]


def test_image_tokens_are_the_towers_in_order_without_the_bad_ones(dual):
    pictures = [jpeg("red"), b"no picture", jpeg("blue"), jpeg("white")]
    found = Encoder(dual, batch_size=2, quiet=True).image_tokens(pictures)
    assert found.kept == [0, 2, 3]
    assert len(found.skips) == 1
    assert (found.tokens.dtype, found.features.dtype) == (torch.float16, torch.float32)
    pixels = torch.stack([dual.transform(jpeg(colour)) for colour in ("red", "blue", "white")])
    with torch.no_grad():
        features, tokens = dual.encode_image_tokens(pixels)
    torch.testing.assert_close(found.features, features, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tokens.float(), tokens, atol=6e-4, rtol=0)
    torch.testing.assert_close(found.features, Encoder(dual, quiet=True).images(pictures).features, atol=1e-5, rtol=0)
    assert not found.tokens.is_inference()
    part = found.rows(torch.tensor([2, 0]))
    assert part.kept == [3, 0]
    assert torch.equal(part.tokens[1], found.tokens[0])


def test_text_tokens_keep_their_order_and_end_where_the_text_does(dual):
    found = Encoder(dual, batch_size=2, quiet=True).text_tokens(TEXTS)
    lengths = dual.tokenizer.lengths(TEXTS)
    assert found.mask.sum(1).tolist() == lengths
    assert found.mask.shape[1] == max(lengths) + 1  # a place of padding, which `pad_max: zero` looks at
    assert torch.equal(found.tokens[0], found.tokens[2])
    assert not found.tokens[~found.mask].any()
    torch.testing.assert_close(
        found.tokens.float().norm(dim=-1)[found.mask], torch.ones(sum(lengths)), atol=2e-3, rtol=0
    )
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            _, tokens, mask = dual.encode_text_tokens(dual.tokenizer(text))
        torch.testing.assert_close(found.tokens[row][found.mask[row]].float(), tokens[mask], atol=6e-4, rtol=0)
    pooled = Encoder(dual, quiet=True).texts(TEXTS)
    torch.testing.assert_close(found.features, pooled, atol=1e-5, rtol=0)
    full = Encoder(dual, quiet=True).text_tokens(["word " * 60])
    assert bool(full.mask.all())
    assert full.mask.shape == (1, dual.tokenizer.context)


def test_more_than_the_limit_is_refused_with_the_size_and_a_way_out(dual):
    small = Encoder(dual, token_gb=1e-6, quiet=True)
    with pytest.raises(ValueError, match=r"1 pictures take 2\.05e-06 GB \(16 of width 64 each, fp16\).*head: global"):
        small.image_tokens([jpeg("red")])
    with pytest.raises(ValueError, match="tokens of 4 texts take"):
        small.text_tokens([f"{text} {n}" for n, text in enumerate(TEXTS)])
    assert Encoder(dual, quiet=True).image_tokens([b"nothing"]).kept == []


def test_a_model_with_a_reducer_gives_its_tokens_and_on_request_its_patches():
    dual = nano()
    loss = Wukong(tokens=3)
    dual.heads.update(loss.heads(dual))
    dual.eval()
    encoder = Encoder(dual, quiet=True)
    reduced, patches = (encoder.image_tokens([jpeg("red")], reduce=reduce) for reduce in (True, False))
    assert (reduced.tokens.shape[1], patches.tokens.shape[1]) == (3, 16)
    with torch.no_grad():
        hidden = dual.image_tower.run(dual.pixels(dual.transform(jpeg("red"))[None]), tokens=True).hidden
        want = dual.heads["wukong"].tokens(hidden)
    torch.testing.assert_close(reduced.tokens.float(), want, atol=6e-4, rtol=0)
    torch.testing.assert_close(reduced.features, patches.features, atol=1e-5, rtol=0)


def test_bf16_is_near_fp32(dual):
    plain, half = (Encoder(dual, precision=p, quiet=True).image_tokens([jpeg("red")]) for p in ("fp32", "bf16"))
    assert (plain.tokens.float() - half.tokens.float()).abs().max() < 0.1
    assert half.tokens.isfinite().all()


def tokens_in_a_process(rank, world, shard):
    encoder = Encoder(nano(), batch_size=2, quiet=True)
    image, text = encoder.image_tokens(open_records(shard)), encoder.text_tokens(TEXTS)
    return image.features, image.tokens, image.kept, len(image.skips), *text


@pytest.mark.slow
def test_two_processes_share_the_work_and_both_get_the_whole(spawn, tmp_path):
    shard = str(colour_shard(tmp_path / "c.tar", per_colour=1, broken=2))
    alone = tokens_in_a_process(0, 1, shard)
    for found in spawn(tokens_in_a_process, 2, shard):
        for ours, theirs in zip(alone, found, strict=True):
            if isinstance(ours, torch.Tensor):
                torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
            else:
                assert ours == theirs


def test_a_store_moves_kept_rows_together():
    store = TokenStore(4, limit_gb=1.0, what="rows")
    store.add([1, 3], torch.tensor([[1.0], [3.0]]), torch.tensor([[[0.5]], [[0.25]]]))
    features, tokens = store.keep([1, 3])
    assert features.flatten().tolist() == [1.0, 3.0]
    assert tokens.flatten().tolist() == [0.5, 0.25]


@pytest.mark.parametrize("want", ["rows", "columns"])
@pytest.mark.parametrize("pad_max", ["exclude", "zero"])
def test_scores_in_parts_are_those_of_the_whole(monkeypatch, want, pad_max):
    monkeypatch.setattr("vlp.token_scores._NUMBERS", 50)
    torch.manual_seed(0)
    image, text = normalize(torch.randn(5, 3, 4), dim=-1), normalize(torch.randn(7, 6, 4), dim=-1)
    mask = torch.arange(6) < torch.tensor([1, 5, 2, 4, 3, 2, 1])[:, None]
    got = token_scores(image.half(), text.half() * mask[..., None], mask, want=want, pad_max=pad_max)
    whole = late_similarity(
        image.half().double(), text.half().double(), x_mask=None, y_mask=mask, pad_max=pad_max, impl="reference"
    )
    torch.testing.assert_close(got.double(), getattr(whole, want), atol=1e-6, rtol=0)


def test_words_of_clips_tokenizer():
    tokenizer = ClipBPE().build()
    text = "Two photosynthesizing cafés, 红色"
    ids = tokenizer.encode([text])[0]
    found = words(tokenizer, text, ids)
    assert [word.text for word in found] == ["<start>", "two", "photosynthesizing", "cafés", ",", "红", "色", "<end>"]
    assert [word.special for word in found] == [True, *[False] * 6, True]
    assert [word.start for word in found] == [0, *[word.stop for word in found[:-1]]]
    assert found[-1].stop == len(ids)


def test_words_of_a_sentencepiece_and_of_a_hugging_face_tokenizer(tmp_path):
    from vlp.text.train import train_sentencepiece

    lines = ["the red circle is above the blue square", "a green triangle", "红色的圆在蓝色方块左边"] * 30
    tokenizer = train_sentencepiece(lines, tmp_path / "m.model", vocab_size=320, kind="bpe", context=40).build()
    text = "the blue circles 红色"
    found = words(tokenizer, text, tokenizer.encode([text])[0])
    said = [word.text for word in found if not word.special]
    assert said[:3] == ["the", "blue", "circles"]
    assert "".join(said[3:]) == "红色"
    assert found[-1].text == "<end>"


def test_words_of_wordpiece(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from vlp.text.huggingface import HuggingFace

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "circ", "##les", "红"])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    wrapped.save_pretrained(tmp_path / "t")
    for context in (16, 4):
        tokenizer = HuggingFace(path=str(tmp_path / "t"), context=context).build()
        found = words(tokenizer, "red circles 红", tokenizer.encode(["red circles 红"])[0])
        said = [word.text for word in found]
        assert said == (
            ["[CLS]", "red", "circles", "红", "[SEP]"] if context == 16 else ["[CLS]", "red", "circ", "[SEP]"]
        )
        assert [word.special for word in found] == [True, *[False] * (len(said) - 2), True]


def test_words_of_an_unknown_tokenizer_are_its_tokens():
    assert [word.text for word in words(object(), "a b", [5, 7])] == ["#5", "#7"]
