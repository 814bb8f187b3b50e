"""Prefix conditioning: whose words get which prefix, what it moves, and how it is kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from vlp import gradcache
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.models import pretrained
from vlp.models.assemble import Settings
from vlp.models.dual import Dual
from vlp.models.freeze import lock
from vlp.models.model import Model
from vlp.models.prefix import KINDS, Prefixes
from vlp.optim import Optim
from vlp.text.clip_bpe import ClipBPE
from vlp.types import Batch

from .test_text_hf import ENCODERS
from .tiny import NANO, Words, make_batch, make_dual

CHANGES: dict[str, dict[str, Any]] = {  # towers that mask and look both ways are the Hugging Face ones
    "causal": {},
    "sees its padding": {"no_causal_mask": True, "pool_type": "last"},
    "class token": {"embed_cls": True},
}
HUGGING_FACE = ("bert", "roberta", "t5", "qwen3")


class NoStart(Words):
    """A tokenizer without a start token, as T5's and SigLIP's."""

    def encode(self, texts: Any) -> list[list[int]]:
        return [row[1:] for row in super().encode(texts)]


def build(kind: str, *, prefix: int = 2, **settings: Any) -> Dual:
    """A tiny model with prefixes that are far from each other."""
    if kind in CHANGES:
        config = copy.deepcopy(NANO) | {"custom_text": True}
        config["text_cfg"] |= CHANGES[kind]
        dual = make_dual(config, prefix=prefix, **settings)
    else:
        torch.manual_seed(0)
        text: Any = {"hf": {"model_type": kind, **ENCODERS[kind]}, "pooler": "last" if kind == "qwen3" else "mean"}
        model = Model(arch="vlp-nano", text=text, tokenizer=ClipBPE(context=12), context=12, prefix=prefix, **settings)
        dual = model.build().eval()
        dual.tokenizer = NoStart() if kind == "t5" else Words()  # type: ignore[assignment]
    prefixes_of(dual).serve(KINDS)
    with torch.no_grad():
        prefixes_of(dual).label.add_(0.5)
        prefixes_of(dual).caption.sub_(0.5)
    return dual


def prefixes_of(dual: Dual) -> Any:
    assert isinstance(dual.prefix, Prefixes)
    return dual.prefix


def mixed(B: int = 4, *, sources: Sequence[int] = (0, 1, 1, 0)) -> Batch:
    return dataclasses.replace(make_batch(B), source=torch.tensor(sources))


def by_hand(dual: Dual, ids: Tensor, mask: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Feature [D] and unit tokens [T, D] of one text: its ids one by one, cut by hand, the prefix put in by hand."""
    length, at = int(mask.sum()), dual.prefix_at
    words = ids[:length].tolist()
    room = dual.context - len(prefix)
    words = words if length <= room else [*words[: room - 1], words[-1]]
    embeds = dual.embed(torch.tensor([words]))
    x = torch.cat([embeds[:, :at], prefix[None], embeds[:, at:]], dim=1)
    out = dual.text_tower.run(x, torch.ones(x.shape[:2]).bool(), torch.tensor([x.shape[1] - 1]), tokens=True)
    assert out.tokens is not None
    tokens = [t for i, t in enumerate(out.tokens[0]) if not at <= i < at + len(prefix)]
    return normalize(out.pooled, dim=-1)[0], normalize(torch.stack(tokens), dim=-1)


@pytest.mark.parametrize("kind", [*CHANGES, *HUGGING_FACE])
def test_every_caption_gets_the_prefix_of_its_source(kind: str) -> None:
    dual, batch = build(kind), mixed()
    dual.set_needs({"text_tokens", "text_hidden"})
    found = dual(batch)
    assert found.text_tokens.shape[2] == 10  # of 12 positions two are the prefix's
    prefixes, near = prefixes_of(dual), {"atol": 1e-5, "rtol": 0}
    for b in range(4):
        for k in range(2):
            ids, mask = batch.text[b, k], batch.token_mask[b, k]
            if not batch.caption_mask[b, k]:
                assert found.text[b, k].abs().max() == 0
                continue
            name = KINDS[int(batch.source[b])]
            text, tokens = by_hand(dual, ids, mask, prefixes.get_parameter(name))
            torch.testing.assert_close(found.text[b, k], text, **near)
            torch.testing.assert_close(found.text_tokens[b, k, : len(tokens)], tokens, **near)
            assert found.text_tokens[b, k, len(tokens) :].abs().sum() == 0
            with dual.prefixed(name):
                torch.testing.assert_close(dual.encode_text(ids[None], mask[None])[0], text, **near)
                single = dual.encode_text_tokens(ids[None], mask[None])
            torch.testing.assert_close(single[0][0], text, **near)
            torch.testing.assert_close(single[1][0, : len(tokens)], tokens, **near)
            assert int(single[2].sum()) == len(tokens)


@pytest.mark.parametrize("kind", ["causal", "sees its padding", "bert", "t5"])
def test_a_long_caption_loses_words_before_its_end(kind: str) -> None:
    dual, batch = build(kind), make_batch(2, 1, absent=False)
    ids = torch.randint(3, 90, (2, 1, 12))
    ids[:, :, -1] = 98
    batch = dataclasses.replace(batch, text=ids, token_mask=torch.ones_like(ids).bool(), source=torch.tensor([0, 1]))
    found = dual(batch).text
    for b, name in enumerate(KINDS):
        text, _ = by_hand(dual, ids[b, 0], batch.token_mask[b, 0], prefixes_of(dual).get_parameter(name))
        torch.testing.assert_close(found[b, 0], text, atol=1e-5, rtol=0)


def test_natural_length_changes_nothing(dual: Dual) -> None:
    one, four, batch = build("causal", text_groups=1), build("causal", text_groups=4), mixed()
    torch.testing.assert_close(one(batch).text, four(batch).text, atol=1e-6, rtol=0)


def test_the_prefix_moves_texts_and_no_picture() -> None:
    dual, batch = build("causal"), mixed()
    found, other = dual(batch), dual(dataclasses.replace(batch, source=1 - batch.source))
    assert torch.equal(found.image, other.image)
    assert (found.text - other.text).abs().amax(dim=-1)[batch.caption_mask].min() > 1e-3


def test_sources_share_the_prefix_of_their_kind() -> None:
    dual, batch = build("causal"), mixed(sources=(0, 1, 2, 3))
    prefixes_of(dual).serve(["label", "caption", "label", "caption"])
    found = dual(batch).text
    prefixes_of(dual).serve(KINDS)
    expected = dual(dataclasses.replace(batch, source=torch.tensor([1, 0, 1, 0]))).text
    assert torch.equal(found, expected)


def test_texts_without_a_source_are_captions() -> None:
    dual, batch = build("causal"), mixed()
    assert dual.prefix_kind == "caption"
    prefixes_of(dual).table = None
    captions = dual(batch).text
    with dual.prefixed("label"):
        assert dual.prefix_kind == "label"
        labels = dual(batch).text
    prefixes_of(dual).serve(["caption"] * 2)
    assert torch.equal(captions, dual(batch).text)
    prefixes_of(dual).serve(["label"] * 2)
    assert torch.equal(labels, dual(batch).text)


def test_prefixed_is_undone_and_refuses_what_is_not_there(dual: Dual) -> None:
    ids, own = make_batch().text[0], build("causal")
    before = own.encode_text(ids)
    with own.prefixed("label"):
        assert (own.encode_text(ids) - before).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="on purpose"), own.prefixed("label"):
        raise RuntimeError("on purpose")
    assert own.prefix_kind == "caption"
    assert torch.equal(own.encode_text(ids), before)
    with pytest.raises(ValueError, match='no kind "labels".*did you mean "label"'), own.prefixed("labels"):
        pass
    assert dual.prefix_kind is None
    with pytest.raises(ValueError, match=r"prefix: label, but this model has no prefixes.*model\.prefix=1"):
        dual.prefixed("label").__enter__()


def test_a_prefix_given_takes_the_place_of_the_models_own() -> None:
    dual, ids = build("causal"), make_batch().text[0]
    prefixes = prefixes_of(dual)
    with dual.prefixed("label"):
        expected = dual.encode_text(ids)
    assert torch.equal(dual.encode_text(ids, prefix=prefixes.label), expected)


def test_a_prefix_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="11 of the 12 positions of the text tower leave none"):
        build("causal", prefix=11)
    dual = build("causal")
    with pytest.raises(ValueError, match="leaves 1 positions"):
        dual.encode_text(torch.tensor([[97, 5, 98]]), prefix=torch.zeros(11, dual.text_tower.width))


def test_texts_are_cut_for_the_prefix_by_the_tokenizer_already() -> None:
    plain, prefixed = Model(arch="vlp-nano").build(), Model(arch="vlp-nano", prefix=3).build()
    assert (plain.tokenizer.context, prefixed.tokenizer.context) == (32, 29)
    asked = Model(arch="vlp-nano", prefix=3, tokenizer=ClipBPE(context=64)).build()
    assert (asked.tokenizer.context, asked.context) == (29, 32)


# -- what a step moves -------------------------------------------------------------------------------------------------

OBJECTIVE = Objective([InfoNCE()])


def gradients(dual: Dual) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in dual.named_parameters() if p.grad is not None}


def backward(model: nn.Module, batch: Batch) -> None:
    OBJECTIVE(model(batch), batch).total.backward()


def test_only_a_batch_of_its_kind_gives_a_prefix_a_gradient() -> None:
    dual, prefixes = (made := build("causal")), prefixes_of(made)
    for only, other in (KINDS, KINDS[::-1]):
        dual.zero_grad()
        batch = mixed(sources=[KINDS.index(only)] * 4)
        backward(dual, batch)
        assert prefixes.get_parameter(only).grad.abs().sum() > 0
        assert prefixes.get_parameter(other).grad.abs().sum() == 0  # in the graph all the same: DDP waits for it
        prefixes.leave_absent(batch)
        assert prefixes.get_parameter(only).grad is not None
        assert prefixes.get_parameter(other).grad is None


def test_a_kind_without_a_readable_caption_is_absent() -> None:
    dual, prefixes = (made := build("causal")), prefixes_of(made)
    batch = mixed(sources=[0, 0, 0, 1])  # the last slot has no caption
    backward(dual, batch)
    prefixes.leave_absent(batch)
    assert prefixes.label.grad is None
    batch = dataclasses.replace(mixed(sources=[0, 0, 1, 1]), valid=torch.tensor([True, True, False, False]))
    backward(dual, batch)
    prefixes.leave_absent(batch)
    assert prefixes.label.grad is None


def test_steps_of_one_kind_leave_the_other_prefix_bit_for_bit() -> None:
    dual, prefixes = (made := build("causal")), prefixes_of(made)
    adamw = Optim(lr=1e-2, weight_decay=0.5).build(dual, depths={})
    for step, sources in enumerate([[1] * 4, [1] * 4, [0] * 4, [0] * 4, [0, 1, 1, 0]]):
        before = {name: prefixes.get_parameter(name).detach().clone() for name in KINDS}
        batch = mixed(sources=sources)
        backward(dual, batch)
        prefixes.leave_absent(batch)
        adamw.step()
        adamw.zero_grad()
        for number, name in enumerate(KINDS):
            stays = torch.equal(before[name], prefixes.get_parameter(name))
            assert stays == (number not in sources), (step, name)


def test_prefixes_do_not_decay() -> None:
    groups = list(Optim(weight_decay=0.3).groups(build("causal"), depths={}))
    kept = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert {"prefix.caption", "prefix.label", "logit_scale"} <= kept
    assert "text.token_embedding.weight" not in kept


def test_prefixes_learn_in_front_of_a_locked_tower() -> None:
    dual = build("causal")
    lock(dual, text=True)
    backward(dual, mixed())
    assert prefixes_of(dual).caption.grad.abs().sum() > 0
    assert not [name for name in gradients(dual) if name.startswith("text.")]


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("kind", ["causal", "sees its padding", "bert"])
def test_gradcache_equals_the_whole_batch(kind: str, micro: int) -> None:
    dual, batch = build(kind).double(), mixed()
    backward(dual, batch)
    expected = gradients(dual)
    dual.zero_grad()
    gradcache.step(dual, OBJECTIVE, batch, micro=micro, reseed=torch.manual_seed)
    found = gradients(dual)
    assert found.keys() == expected.keys() >= {"prefix.caption", "prefix.label"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=1e-10)


def one_rank(rank: int, world: int, batches: list[Batch], kinds: Sequence[str]) -> list[dict[str, Tensor]]:
    """Run by `spawn`: the gradients that the optimizer would see, for each kind of tower and each batch."""
    found = []
    for kind in kinds:
        dual = build(kind).double()
        model = DistributedDataParallel(dual, broadcast_buffers=False, gradient_as_bucket_view=True)
        for batch in batches:
            half = len(batch) // world
            part = batch.rows(rank * half, (rank + 1) * half)
            backward(model, part)
            prefixes_of(dual).leave_absent(part)
            found.append(gradients(dual))
            dual.zero_grad(set_to_none=True)
    return found


def test_two_processes_equal_one(spawn: Any) -> None:
    """Also where only one rank has a kind, and where no rank has it."""
    batches = [mixed(sources=sources) for sources in ((0, 0, 1, 0), (0, 0, 0, 0), (1, 0, 0, 1), (1, 1, 1, 1))]
    kinds = ("causal", "sees its padding")
    ranks = spawn(one_rank, 2, batches, kinds)
    cases = iter(zip(*ranks, strict=True))
    for kind in kinds:
        for batch in batches:
            dual = build(kind).double()
            backward(dual, batch)
            prefixes_of(dual).leave_absent(batch)
            expected = gradients(dual)
            for found in next(cases):
                assert found.keys() == expected.keys()
                for name in expected:
                    torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=1e-9)
    assert "prefix.label" not in ranks[0][1]
    assert "prefix.caption" not in ranks[1][3]


# -- to disk and back --------------------------------------------------------------------------------------------------


def test_prefixes_are_kept_with_the_model(tmp_path: Path) -> None:
    dual, ids = build("causal"), make_batch().text[0]
    pretrained.save(dual, tmp_path)
    again = pretrained.load(tmp_path)
    assert (again.prefix_kind, again.context) == ("caption", 12)
    again.tokenizer = dual.tokenizer
    for name in KINDS:
        with dual.prefixed(name), again.prefixed(name):
            assert torch.equal(again.encode_text(ids), dual.encode_text(ids))
    assert pretrained.weights_hash(again) == pretrained.weights_hash(dual)
    with torch.no_grad():
        prefixes_of(again).label.add_(1)
    assert pretrained.weights_hash(again) != pretrained.weights_hash(dual)
    pretrained.load_weights(again, tmp_path)
    assert pretrained.weights_hash(again) == pretrained.weights_hash(dual)


def test_plain_open_clip_does_not_read_texts_without_their_prefix(tmp_path: Path) -> None:
    pretrained.save(build("causal"), tmp_path)
    with pytest.raises(RuntimeError, match=r"prefix\.caption"):
        open_clip.create_model(f"local-dir:{tmp_path}")


def test_a_model_without_prefixes_is_as_before(tmp_path: Path) -> None:
    dual = make_dual()
    assert not [name for name in dual.state_dict() if name.startswith("prefix")]
    pretrained.save(dual, tmp_path)
    assert pretrained.load(tmp_path).prefix is None
    assert Settings().prefix is None


@pytest.mark.parametrize(
    ("there", "asked", "kept", "note"),
    [
        (0, 2, False, "prefix: starts at random"),
        (2, None, True, ""),
        (2, 2, True, ""),
        (2, 3, False, "prefix: those of the weights left out, starts at random"),
        (2, 0, False, "prefix: those of the weights left out, this model has none"),
        (0, None, False, ""),
    ],
)
def test_starting_from_weights(tmp_path: Path, there: int, asked: int | None, kept: bool, note: str) -> None:
    source = make_dual(prefix=there)
    source.tokenizer = ClipBPE(context=12)
    pretrained.save(source, tmp_path)
    dual = Model(pretrained=str(tmp_path), prefix=asked).build(stored=tmp_path)
    notes = pretrained.start(dual, str(tmp_path))
    assert notes == ([note] if note else [])
    assert torch.equal(dual.visual.proj, source.visual.proj)  # type: ignore[arg-type]
    length = there if asked is None else asked
    assert (dual.prefix is None) == (length == 0)
    if length:
        assert prefixes_of(dual).caption.shape == (length, 32)
    if kept:
        assert torch.equal(prefixes_of(dual).label, prefixes_of(source).label)
