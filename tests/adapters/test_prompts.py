"""Learned contexts in any text tower: as sentences when nothing is learned, the shared beginning exact, by loops."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.prompt_towers import CONTEXT, NAMES, PHOTO, TOWERS, WordTokenizer, clip, encoder_of
from vlp.adapters.adapter import class_weights
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.task import Task
from vlp.models.deep import deep_prompts
from vlp.models.shared_prefix import can_share

PLAIN = [name.replace("_", " ") for name in NAMES]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def whole(dual, rows, context, *, deep=(), at=1):
    """Features of prompts one by one, the plain way; rows of ids where "v" stands for the next learned vector."""
    found = []
    for row in rows:
        vectors = iter(context)
        embeds = torch.stack([next(vectors) if i == "v" else dual.embed(torch.tensor([[i]]))[0, 0] for i in row])
        mask = torch.ones(1, len(row), dtype=torch.bool)
        with deep_prompts(dual.text_blocks[1:], deep, at=at):
            found.append(dual.encode_embeds(embeds[None], mask, torch.tensor([len(row) - 1]))[0])
    return torch.stack(found)


def rows_of(dual, position, count):
    """Ids of [start] v.. name . [end] with the name at its place."""
    rows, half = [], {"end": count, "middle": count // 2, "front": 0}[position]
    for name in PLAIN:
        ids = dual.tokenizer.encode([f"{name}."])[0]
        start, words, tail = ids[: dual.tokenizer.start], ids[dual.tokenizer.start : -2], ids[-2:]
        rows.append([*start, *["v"] * half, *words, *["v"] * (count - half), *tail])
    return rows


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("count", [None, 2])
def test_words_that_are_not_changed_are_the_sentence(kind, count, rng):
    encoder = encoder_of(kind)
    prompts = ClassPrompts(encoder, NAMES, words="a photo of a", count=count)
    assert prompts.count == (count or 4)
    with torch.no_grad():
        found = prompts.encode(prompts.first(rng))
    torch.testing.assert_close(found, class_weights(encoder, Task(PLAIN, PHOTO)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_features_and_gradients_equal_prompts_put_together_by_hand(kind, position, rng):
    encoder = encoder_of(kind)
    dual = encoder.dual.double()
    prompts = ClassPrompts(encoder, NAMES, count=5, position=position)
    context = (prompts.first(rng).double() * 10).requires_grad_()
    aim = torch.randn(len(NAMES), dual.dim, dtype=torch.float64, generator=rng)
    found, want = prompts.encode(context), whole(dual, rows_of(dual, position, 5), context)
    torch.testing.assert_close(found, want, atol=1e-10, rtol=0)
    grads = [torch.autograd.grad((features * aim).sum(), context)[0] for features in (found, want)]
    torch.testing.assert_close(*grads, atol=1e-8, rtol=1e-6)
    assert grads[0].abs().sum(dim=1).gt(0).all()


@pytest.mark.parametrize("kind", TOWERS)
def test_deep_vectors_stand_in_the_place_of_the_context(kind, rng):
    encoder = encoder_of(kind)
    dual = encoder.dual.double()
    prompts = ClassPrompts(encoder, NAMES, count=3)
    vectors = torch.randn(2, 3, prompts.width, dtype=torch.float64, generator=rng).requires_grad_()
    found = prompts.encode(vectors[0], vectors[1:])
    at = int(dual.tokenizer.start)
    want = whole(dual, rows_of(dual, "end", 3), vectors[0], deep=vectors[1:], at=at)
    torch.testing.assert_close(found, want, atol=1e-10, rtol=0)
    grads = [torch.autograd.grad(features[:, 0].sum(), vectors)[0] for features in (found, want)]
    torch.testing.assert_close(*grads, atol=1e-8, rtol=1e-6)
    assert grads[0].abs().sum(dim=(1, 2)).gt(0).all()
    with pytest.raises(ValueError, match="4 depths of text prompts for a tower of"):
        prompts.encode(vectors[0], [vectors[0]] * 3)


@pytest.mark.parametrize("kind", TOWERS)
def test_contexts_of_classes_and_of_pictures_equal_the_loop(kind, rng):
    encoder = encoder_of(kind)
    prompts = ClassPrompts(encoder, NAMES, count=3, position="middle")
    with torch.no_grad():
        own = torch.randn(len(NAMES), 3, prompts.width, generator=rng)
        found = prompts.encode(own)
        each = prompts.encode_each(own[:2])
        for c in range(len(NAMES)):
            torch.testing.assert_close(found[c], prompts.encode(own[c])[c], atol=2e-6, rtol=0)
        for b in range(2):
            torch.testing.assert_close(each[b], prompts.encode(own[b]), atol=2e-6, rtol=0)


def test_many_classes_run_by_length_and_in_fp32_are_within_rounding(rng):
    names = [" ".join(f"w{(n * k) % 40}" for k in range(1 + n % 6)) for n in range(200)]
    encoder = encoder_of()
    assert can_share(encoder.dual.text_tower)
    prompts = ClassPrompts(encoder, names, words="a photo of a")
    with torch.no_grad():
        found = prompts.encode(prompts.first(rng))
    want = normalize(encoder.texts([f"a photo of a {name}." for name in names]), dim=-1)
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


def test_the_vectors_of_a_model_trained_with_prefixes_stay_in_front(rng):
    dual = clip()
    from vlp.models.prefix import Prefixes

    dual.prefix = Prefixes(2, 32)
    encoder = encoder_of()
    encoder.dual = dual
    prompts = ClassPrompts(encoder, NAMES, words="a photo of a")
    assert not encoder._shares()
    with torch.no_grad():
        found = prompts.encode(prompts.first(rng))
    torch.testing.assert_close(found, class_weights(encoder, Task(PLAIN, PHOTO)), atol=1e-6, rtol=0)


def test_random_vectors_are_small_and_seeded(rng):
    prompts = ClassPrompts(encoder_of(), NAMES)
    first = prompts.first(rng)
    assert first.shape == (16, 32)
    assert 0.015 < float(first.std()) < 0.025
    assert torch.equal(first, prompts.first(torch.Generator().manual_seed(0)))
    each = prompts.first(rng, each=True)
    assert each.shape == (4, 16, 32)
    assert not torch.equal(each[0], each[1])


def test_what_does_not_fit_is_refused():
    encoder = encoder_of()
    with pytest.raises(
        ValueError, match='"big old dog" has 26 positions, and the text tower takes 24: .*fewer than 20'
    ):
        ClassPrompts(encoder, NAMES, count=20)
    with pytest.raises(ValueError, match="has 4 tokens, so between 1 and 4 are learned, not 5"):
        ClassPrompts(encoder, NAMES, words="a photo of a", count=5)
    with pytest.raises(ValueError, match=f"has 33 tokens; the tokenizer takes {CONTEXT}"):
        ClassPrompts(encoder, ("cat", "very " * 29), count=4)


def test_a_tokenizer_that_joins_words_with_names_is_refused():
    class Joining(WordTokenizer):
        def _whole(self, text):
            return super()._whole(text.replace("a cat", "a-cat"))

    encoder = encoder_of()
    encoder.dual.tokenizer = Joining()
    with pytest.raises(ValueError, match='joins "a photo of a" with the name "cat"'):
        ClassPrompts(encoder, NAMES, words="a photo of a")


def test_visual_prompts_go_in_behind_the_patches_and_out_before_pooling(rng):
    dual = clip()
    image, prompts = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 32, requires_grad=True)
    visual = dual.visual
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(2, -1, -1)], dim=1))
    for depth, block in enumerate(visual.transformer.resblocks):
        x = torch.cat([x[:, :17], prompts[1].expand(2, -1, -1)], dim=1) if depth == 1 else x
        x = block(x)
    want = normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
    with dual.prompted_image(prompts):
        found = dual.encode_image(image)
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)
    assert torch.autograd.grad(found[:, 0].sum(), prompts)[0].abs().sum(dim=(1, 2)).gt(0).all()


@pytest.mark.parametrize("kind", TOWERS)
def test_visual_prompts_leave_no_trace_and_none_change_nothing(kind):
    dual = TOWERS[kind]()
    image, width = torch.randn(2, 3, 32, 32), dual.image_tower.width
    with torch.no_grad():
        before = dual.encode_image(image)
        for empty in ((), torch.empty(2, 0, width)):
            with dual.prompted_image(empty):
                assert torch.equal(dual.encode_image(image), before)
        with dual.prompted_image(torch.randn(2, 3, width)):
            during = dual.encode_image(image)
        assert (during - before).abs().max() > 1e-5
        assert torch.equal(dual.encode_image(image), before)
    too_deep = torch.randn(9, 3, width)
    with pytest.raises(ValueError, match="9 depths of visual prompts for a tower of"), dual.prompted_image(too_deep):
        pass


def test_attention_pooling_does_not_see_the_prompts():
    dual = TOWERS["siglip"]()
    trunk, image, prompts = dual.visual.trunk, torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32)
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(image)))
    x = torch.cat([x, prompts[0].expand(2, -1, -1)], dim=1)
    for block in trunk.blocks:
        x = block(x)
    want = normalize(trunk.forward_head(trunk.norm(x[:, :-3])), dim=-1)
    with dual.prompted_image(prompts):
        torch.testing.assert_close(dual.encode_image(image), want, atol=1e-6, rtol=0)


def test_a_tower_of_maps_has_no_place_for_them():
    from vlp.models.model import Model

    dual = Model(arch="resnet-tiny").build().eval()
    size = dual.transform.size
    with (
        pytest.raises(ValueError, match="need an image tower of tokens; this one has maps"),
        dual.prompted_image(torch.zeros(1, 2, 8)),
    ):
        dual.encode_image(torch.zeros(1, 3, *size))
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in dual.image_blocks)
