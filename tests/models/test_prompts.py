"""embed, encode_embeds, prefixes and deep prompts: what prompt methods stand on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vlp.models.deep import appended, changed_inputs, deep_prompts
from vlp.models.dual import Dual

from .tiny import NANO, make_batch, make_dual, random_ids, reference


def test_encode_text_is_encode_embeds_of_embed(dual: Dual) -> None:
    ids = random_ids(6)
    mask = torch.arange(12) <= ids.argmax(dim=1)[:, None]
    longest = int(mask.sum(dim=1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    assert torch.equal(dual.encode_text(ids, mask), dual.encode_embeds(dual.embed(ids), mask, ids.argmax(dim=1)))


def test_embeddings_have_no_positions(dual: Dual) -> None:
    ids = torch.full((1, 12), 7)
    assert torch.equal(dual.embed(ids)[0, 0], dual.embed(ids)[0, 5])


@pytest.mark.parametrize("per_text", [False, True])
def test_a_prefix_of_word_embeddings_is_those_words(dual: Dual, per_text: bool) -> None:
    words = torch.tensor([11, 12])
    ids = random_ids(5)[:, :10]
    end = ids.argmax(dim=1)
    with_words = torch.cat([ids[:, :1], words.expand(5, -1), ids[:, 1:]], dim=1)
    prefix = dual.embed(words.expand(5, -1)) if per_text else dual.embed(words[None])[0]
    got = dual.encode_text(ids, torch.arange(10) <= end[:, None], prefix=prefix)
    torch.testing.assert_close(got, reference(dual).encode_text(with_words, normalize=True), atol=1e-5, rtol=0)


def test_a_prefix_takes_words_from_texts_that_fill_the_context(dual: Dual) -> None:
    ids = torch.randint(3, 90, (1, 12))
    ids[:, 0], ids[:, -1] = 97, 98
    words = torch.tensor([11, 12])
    expected = torch.cat([ids[:, :1], words[None], ids[:, 1:9], ids[:, -1:]], dim=1)
    got = dual.encode_text(ids, torch.ones_like(ids, dtype=torch.bool), prefix=dual.embed(words[None])[0])
    torch.testing.assert_close(got, reference(dual).encode_text(expected, normalize=True), atol=1e-5, rtol=0)


def test_a_prefix_without_room_is_refused(dual: Dual) -> None:
    with pytest.raises(ValueError, match="leaves 1 positions"):
        dual.encode_text(random_ids(1), prefix=torch.zeros(11, 32))


def test_a_prefix_gets_the_gradient_and_leaves_images_alone(dual: Dual) -> None:
    prefix = torch.zeros(1, 32, requires_grad=True)
    dual.encode_text(random_ids(3), prefix=prefix).sum().backward()
    assert prefix.grad is not None
    assert prefix.grad.abs().sum() > 0


def test_a_bidirectional_tower_takes_a_prefix_within_its_context() -> None:
    config = copy.deepcopy(NANO) | {"custom_text": True}
    config["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last"}
    dual = make_dual(config)
    ids = random_ids(4)[:, :10]
    words = torch.tensor([11, 12])
    joined = torch.cat([ids[:, :1], words.expand(4, -1), ids[:, 1:]], dim=1)
    got = dual.encode_text(ids, prefix=dual.embed(words[None])[0])
    torch.testing.assert_close(got, reference(dual).encode_text(joined, normalize=True), atol=1e-5, rtol=0)


def test_blocks_are_the_towers_blocks(dual: Dual) -> None:
    plain: Any = dual
    assert list(dual.image_blocks) == list(plain.visual.transformer.resblocks)
    assert list(dual.text_blocks) == list(plain.text.transformer.resblocks)


def test_deep_prompts_leave_no_trace(dual: Dual) -> None:
    batch = make_batch()
    before, state = dual(batch), copy.deepcopy(dual.state_dict())
    prompts = torch.randn(3, 2, 32, requires_grad=True)
    with deep_prompts(dual.text_blocks, prompts, at=1):
        prefix = torch.zeros(2, 32)
        during = dual.encode_text(random_ids(4)[:, :10], prefix=prefix)
    during.sum().backward()
    assert prompts.grad is not None
    assert prompts.grad.flatten(1).abs().sum(dim=1).gt(0).all()
    after = dual(batch)
    assert torch.equal(before.text, after.text)
    assert torch.equal(before.image, after.image)
    assert all(torch.equal(state[name], tensor) for name, tensor in dual.state_dict().items())
    assert not any(block._forward_pre_hooks for block in [*dual.text_blocks, *dual.image_blocks])


def test_deep_prompts_on_every_block_equal_a_loop_by_hand(dual: Dual) -> None:
    """VPT: prompts appended before block 0 and replaced before each later one."""
    plain: Any = dual
    image, prompts = torch.randn(2, 3, 32, 32), torch.randn(3, 2, 32)
    blocks = dual.image_blocks
    x = plain.image_tower.embed(image)
    for block, prompt in zip(blocks, prompts):
        x = torch.cat([x[:, :17], prompt.expand(2, -1, -1)], dim=1)
        x = block(x)
    expected = torch.nn.functional.normalize(plain.visual.ln_post(x[:, 0]) @ plain.visual.proj, dim=-1)

    def placed(prompt: torch.Tensor) -> Any:
        return lambda x: torch.cat([x[:, :-2], prompt.expand(len(x), -1, -1)], dim=1)

    changes = {0: appended(prompts[0]), 1: placed(prompts[1]), 2: placed(prompts[2])}
    with changed_inputs(blocks, changes):
        got = dual.encode_image(image)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_more_prompts_than_blocks_are_refused(dual: Dual) -> None:
    with pytest.raises(ValueError, match="4 deep prompts for a tower of 3 blocks"):
        deep_prompts(dual.text_blocks, torch.zeros(4, 1, 32), at=1)


def test_hooks_come_off_when_the_body_fails(dual: Dual) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), deep_prompts(dual.text_blocks, torch.zeros(1, 1, 32), at=1):
        raise RuntimeError("on purpose")
    assert not any(block._forward_pre_hooks for block in dual.text_blocks)
