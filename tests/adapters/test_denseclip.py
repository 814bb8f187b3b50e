"""DenseCLIP's words, score maps and head: against loops, switched off bit for bit, trained, through a file."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, normalize

from tests.adapters.prompt_towers import encoder_of
from tests.adapters.test_linear_patches import NAMES, a_task, examples, patch_maps
from vlp.adapters.dense_task import DENSE_ADAPTERS, DenseTask
from vlp.adapters.denseclip import ContextDecoder, DenseClip, DenseClipClassifier, PixelText
from vlp.adapters.linear_patches import ZeroShotMask
from vlp.adapters.pixel_training import mean_iou
from vlp.adapters.prompts import ClassPrompts

SMALL = {"width": 16, "heads": 2, "layers": 2, "head_width": 16, "context": 2, "batch": 4}


@pytest.fixture(scope="module")
def encoder():
    return encoder_of("clip")


@pytest.fixture(scope="module")
def fitted(encoder):
    task = DenseTask(NAMES, support=examples(64), validation=examples(6, seed=1))
    return DenseClip(**SMALL, epochs=12, lr=1e-2).fit(encoder, task)


def test_switched_off_it_is_the_zero_shot_mask_bit_for_bit(encoder):
    off = DenseClip(**{**SMALL, "context": 0}, head=False, gamma=0, temperature=None, epochs=0)
    maps = patch_maps(3)
    want = ZeroShotMask().fit(encoder, a_task())(maps)
    assert torch.equal(off.fit(encoder, a_task())(maps), want)
    bare = off.model_copy(update={"layers": 0, "gamma": 1e-4})
    assert torch.equal(bare.fit(encoder, a_task())(maps), want)


def attended(attention, query, memory):
    """One sample's attention, head by head."""
    width, heads = query.shape[1], attention.num_heads
    parts = [
        linear(x, w, b)
        for x, w, b in zip(
            (query, memory, memory), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
        )
    ]
    step, found = width // heads, []
    for head in range(heads):
        q, k, v = (part[:, head * step : (head + 1) * step] for part in parts)
        found.append((q @ k.T / step**0.5).softmax(dim=1) @ v)
    return attention.out_proj(torch.cat(found, dim=1))


@torch.no_grad()
def test_the_decoder_equals_the_loop():
    torch.manual_seed(0)
    decoder = ContextDecoder(DenseClip(**SMALL), 32).eval()
    texts, visual = torch.randn(2, 3, 32), torch.randn(2, 7, 32)
    found = decoder(texts, visual)
    for sample in range(2):
        seen, x = decoder.memory(visual[sample]), decoder.texts(texts[sample])
        for layer in decoder.layers:
            h = layer_norm(x, (16,), layer.norm1.weight, layer.norm1.bias)
            x = x + attended(layer.self_attn, h, h)
            x = x + attended(layer.multihead_attn, layer.norm2(x), seen)
            x = x + layer.linear2(gelu(layer.linear1(layer.norm3(x))))
        torch.testing.assert_close(found[sample], decoder.out(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_score_maps_equal_the_loop_and_the_head_sees_them():
    torch.manual_seed(0)
    part = PixelText(DenseClip(**SMALL, gamma=0.5), classes=3, dim=32, hidden=20, scale=9.0).eval()
    maps, words = patch_maps(2), normalize(torch.randn(3, 32), dim=1)
    found = part(maps, words)
    for sample in range(2):
        whole = normalize(maps.patches[sample].mean(0), dim=0)[None]
        seen = part.decoder(words[None], torch.cat([whole, maps.patches[sample]])[None])[0]
        turned = normalize(words + part.gamma * seen, dim=1)
        for c in range(3):
            for place in range(6):
                want = float(maps.patches[sample, place] @ turned[c]) / 0.07
                assert float(found.map[sample, c, place // 3, place % 3]) == pytest.approx(want, abs=1e-4)
    inside = torch.cat([maps.as_map(maps.hidden), found.map * 0.07], dim=1)
    torch.testing.assert_close(found.scores, part.head(inside))
    assert found.scores.shape == (2, 3, 8, 12)


def test_it_learns_what_words_do_not_know_and_the_words_turn(encoder, fitted):
    task = a_task(validation=examples(6, seed=1))
    plain = mean_iou(ZeroShotMask().fit(encoder, task), task, batch=4)
    assert mean_iou(fitted, task, batch=4) > max(0.7, plain)
    assert fitted.about["selection"]["split"] == "validation"
    prompts = ClassPrompts(encoder, NAMES, count=2)
    start = prompts.encode(prompts.first(torch.Generator().manual_seed(0))).detach()
    assert not torch.allclose(fitted.words, start, atol=1e-3)
    assert not fitted.part.training
    assert all(parameter.requires_grad for parameter in encoder.dual.parameters())


def test_the_same_seed_gives_the_same_and_nothing_else_is_drawn(encoder):
    settings = DenseClip(**SMALL, epochs=1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    made = [settings.fit(encoder, a_task(seed=seed))(patch_maps(2)) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_classifier_survives_its_file(fitted, tmp_path):
    assert DENSE_ADAPTERS.build("denseclip") == DenseClip()
    fitted.save(tmp_path / "c")
    back = DenseClipClassifier.load(tmp_path / "c")
    assert torch.equal(fitted(patch_maps(2)), back(patch_maps(2)))
    assert (back.names, back.about, back.needs) == (NAMES, fitted.about, "patches")
    with pytest.raises(ValueError, match="holds no classifier"):
        DenseClipClassifier.load(tmp_path)
