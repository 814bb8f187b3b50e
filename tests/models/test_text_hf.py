"""Hugging Face encoders from configurations, as text towers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from vlp.models import pretrained
from vlp.models.dual import Dual
from vlp.models.freeze import lock, text_groups
from vlp.models.model import Model
from vlp.models.text_hf import HFTextConfig
from vlp.text.clip_bpe import ClipBPE

from .tiny import Words, make_batch

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "modernbert": SIZES
    | {"global_attn_every_n_layers": 2, "cls_token_id": 97, "sep_token_id": 98, "bos_token_id": 97, "eos_token_id": 98},
    "distilbert": {
        "vocab_size": 99,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
    "t5": {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "pad_token_id": 0},
    "layoutlm": SIZES,  # calls its pooler in any case
    "gemma3_text": SIZES
    | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4, "bos_token_id": 97, "eos_token_id": 98},
    "qwen3": SIZES | {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 97, "eos_token_id": 98},
}


def build(kind: str, **settings: Any) -> Dual:
    torch.manual_seed(0)
    text = HFTextConfig(hf={"model_type": kind, **ENCODERS[kind]}, **settings)
    dual = Model(arch="vlp-nano", text=text, tokenizer=ClipBPE(context=12), context=12).build()
    dual.tokenizer = Words()
    return dual.eval()


@pytest.mark.parametrize("pooler", ["cls", "mean", "max", "last"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_trimmed_is_full_length_is_one_by_one(kind: str, pooler: str) -> None:
    dual, batch = build(kind, pooler=pooler), make_batch(absent=False)
    ids, mask = batch.text.flatten(0, 1), batch.token_mask.flatten(0, 1)
    grouped = dual(batch).text.flatten(0, 1)
    embeds, end = dual.embed(ids), mask.sum(dim=1) - 1
    torch.testing.assert_close(dual.encode_embeds(embeds, mask, end), grouped, atol=1e-5, rtol=0)
    torch.testing.assert_close(dual.encode_text(ids), grouped, atol=1e-5, rtol=0)
    for row in range(len(ids)):
        length = int(mask[row].sum())
        alone = dual.encode_text(ids[row, :length][None], mask[row, :length][None])
        torch.testing.assert_close(alone[0], grouped[row], atol=1e-5, rtol=0)
    assert dual.trims
    assert len(dual.text_blocks) == 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("fnet", "a fnet sees the padding behind a text"),
        ("clip_text_model", 'a clip_text_model is no text tower here: it must take embeddings .* "You have to specify'),
        ("canine", "a canine is no text tower here"),
    ],
)
def test_encoders_that_cannot_be_towers_are_refused(kind: str, said: str) -> None:
    settings = HFTextConfig(hf={"model_type": kind, **SIZES, "bos_token_id": 97, "eos_token_id": 98})
    with pytest.raises(ValueError, match=f"model.text.hf: {said}"):
        Model(arch="vlp-nano", text=settings, tokenizer=ClipBPE(context=12), context=12).build()


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_pooling_is_the_encoders_own_output(kind: str) -> None:
    dual = build(kind, pooler="mean")
    batch = make_batch(absent=False)
    ids, mask = batch.text[:, 0], batch.token_mask[:, 0]
    text: Any = dual.text
    hidden = text.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    expected = torch.stack([row[m].mean(dim=0) for row, m in zip(hidden, mask)])
    torch.testing.assert_close(dual.encode_text(ids, mask), normalize(text.proj(expected), dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_parameter_gets_a_gradient_and_locks(kind: str) -> None:
    dual, batch = build(kind, proj="mlp"), make_batch()
    dual.train()
    dual(batch).text.square().sum().backward()
    (dual(batch).text * torch.randn(32 * 2)[:64]).sum().backward()
    missing = [n for n, p in dual.tower_parameters("text") if p.grad is None]
    assert not missing, missing
    groups = text_groups(dual.text)
    lock(dual, text=len(groups))
    assert all(p.requires_grad for _, p in dual.tower_parameters("text"))
    lock(dual, text=1)
    assert {n for n, p in dual.tower_parameters("text") if p.requires_grad} == {
        "text.proj.0.weight",
        "text.proj.2.weight",
    }
    lock(dual, text=True)
    assert not any(m.training for m in dual.text.children())


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_it_comes_back_from_disk(tmp_path: Path, kind: str) -> None:
    dual = build(kind)
    pretrained.save(dual, tmp_path)
    again = pretrained.load(tmp_path)
    ids = make_batch().text[:, 0]
    mask = make_batch().token_mask[:, 0]
    assert torch.equal(again.encode_text(ids, mask), dual.encode_text(ids, mask))


def test_it_starts_from_a_folder_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel

    source = build("bert")
    text: Any = source.text
    text.transformer.save_pretrained(tmp_path / "bert")
    settings = HFTextConfig(hf=str(tmp_path / "bert"))
    dual = Model(arch="vlp-nano", text=settings, tokenizer=ClipBPE(context=12), context=12).build()
    plain = AutoModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False)
    found: Any = dual.text
    assert all(torch.equal(a, b) for a, b in zip(found.transformer.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_encoder_saved_in_half_precision_is_held_in_fp32(tmp_path: Path, pretrained: bool) -> None:
    text: Any = build("qwen3").text
    text.transformer.to(torch.bfloat16).save_pretrained(tmp_path)
    settings = HFTextConfig(hf=str(tmp_path), pretrained=pretrained)
    dual = Model(arch="vlp-nano", text=settings, tokenizer=ClipBPE(context=12), context=12).build().eval()
    assert {weight.dtype for weight in dual.parameters()} == {torch.float32}
    found: Any = dual.text
    saved = zip(found.transformer.parameters(), text.transformer.parameters())
    assert all(torch.equal(own, other.float()) for own, other in saved) is pretrained
    assert dual.encode_text(make_batch().text[:, 0], make_batch().token_mask[:, 0]).dtype is torch.float32


def test_the_image_tower_starts_from_weights_and_the_text_tower_from_its_own(tmp_path: Path) -> None:
    clip = Model(arch="vlp-nano").build().eval()
    pretrained.save(clip, tmp_path)
    text = HFTextConfig(hf={"model_type": "bert", **copy.deepcopy(SIZES)})
    dual = Model(pretrained=str(tmp_path), text=text, tokenizer=ClipBPE(context=12), lock_image=True).build().eval()
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(dual.encode_image(image), clip.encode_image(image), atol=1e-6, rtol=0)


def test_a_prefix_goes_behind_the_start_token() -> None:
    dual = build("bert", pooler="cls")
    ids, words = torch.tensor([[97, 5, 6, 98]]), torch.tensor([[11, 12]])
    joined = torch.tensor([[97, 11, 12, 5, 6, 98]])
    got = dual.encode_text(ids, prefix=dual.embed(words)[0])
    torch.testing.assert_close(got, dual.encode_text(joined), atol=1e-5, rtol=0)


def test_an_encoder_without_blocks_is_a_mean_of_embeddings_and_locks() -> None:
    hf = {"model_type": "bert", **SIZES, "num_hidden_layers": 0}
    dual = Model(arch="vlp-nano", text={"hf": hf, "pooler": "mean"}).build().eval()
    text: Any = dual.text
    ids = torch.tensor([[5, 6, 7]])
    embedded = text.transformer.embeddings(input_ids=ids).mean(dim=1)
    torch.testing.assert_close(dual.encode_text(ids, ids > 0), normalize(text.proj(embedded), dim=-1))
    lock(dual, text=1)
    assert {n for n, p in dual.tower_parameters("text") if p.requires_grad} == {"text.proj.weight"}


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoder has width 32 and the joint space 64"):
        build("bert", proj="none")
    with pytest.raises(ValueError, match="has no pooler of its own"):
        build("qwen3", pooler="pooler")
    with pytest.raises(ValueError, match=r"no config\.json"):
        Model(arch="vlp-nano", text=HFTextConfig(hf=str(tmp_path))).build()


def test_recomputed_blocks_give_the_same_gradients() -> None:
    batch, grads = make_batch(), []
    for recompute in (False, True):
        dual = build("bert")
        if recompute:
            dual.text_tower.checkpoint_blocks()
        dual.text.train()
        torch.manual_seed(0)
        dual(batch).text[..., :3].sum().backward()
        grads.append({n: p.grad for n, p in dual.tower_parameters("text") if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4, msg=name)
