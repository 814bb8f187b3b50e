"""Low-rank updates against matrices written out, on every kind of attention that towers have."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, normalize
from torch.nn.utils.parametrize import register_parametrization

from tests.adapters.weight_towers import (
    RESNET,
    assert_untouched,
    batch,
    make_encoder,
    make_task,
    trace,
    zero_shot_logits,
)
from tests.models.test_text_hf import ENCODERS, build
from tests.models.tiny import NANO
from vlp.adapters.clip_lora import ClipLora, Part, attention_weights, start, updated
from vlp.adapters.tuned import HEAD, TunedClassifier
from vlp.embed import Encoder
from vlp.text.batches import pad

TIMM = copy.deepcopy(NANO) | {
    "custom_text": True,
    "vision_cfg": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 32,
    },
    "embed_dim": 192,
}


def drawn_parts(own, r, *, seed=0):
    """Parts whose B is not zero."""
    rng = torch.Generator().manual_seed(seed)
    parts = start(own, r, rng)
    return {
        name: [Part(one.down.detach(), torch.randn(one.up.shape, generator=rng)) for one in some]
        for name, some in parts.items()
    }


@pytest.mark.parametrize("towers", ["image", "both"])
def test_with_b_at_zero_it_is_zero_shot_bit_for_bit(towers):
    encoder = make_encoder()
    task = make_task(encoder)
    made = ClipLora(towers=towers, steps=0).fit(encoder, task)
    assert torch.equal(made(batch(task.validation)), zero_shot_logits(encoder, task, task.validation))


def test_a_third_of_the_fused_weight_is_updated_by_its_own_product():
    own = {"visual.attn.in_proj_weight": torch.randn(6, 2, generator=torch.Generator().manual_seed(0))}
    parts = drawn_parts(own, 2)
    made = updated(own, parts, 0.7)["visual.attn.in_proj_weight"]
    for third, part in enumerate(parts["visual.attn.in_proj_weight"]):
        for row in range(2):
            for column in range(2):
                product = sum(float(part.up[row, k] * part.down[k, column]) for k in range(2))
                want = float(own["visual.attn.in_proj_weight"][2 * third + row, column]) + 0.7 * product
                assert float(made[2 * third + row, column]) == pytest.approx(want, abs=1e-5)


def test_the_merged_weight_gives_what_the_two_paths_give_beside_each_other():
    own, x = {"text.qkv.weight": torch.randn(48, 16)}, torch.randn(5, 16)
    parts = drawn_parts(own, 2)
    beside = linear(x, own["text.qkv.weight"])
    paths = [linear(linear(x, part.down), part.up) for part in parts["text.qkv.weight"]]
    beside = beside + 0.5 * torch.cat(paths, dim=1)
    merged = linear(x, updated(own, parts, 0.5)["text.qkv.weight"])
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=0)


class Paths(nn.Module):
    """A fused weight with a low-rank path for queries, keys and values, drawn as the adapter draws them."""

    def __init__(self, width, r, rng):
        super().__init__()
        bound = 1 / math.sqrt(width)
        downs = [torch.empty(r, width).uniform_(-bound, bound, generator=rng) for _ in range(3)]
        self.down = nn.ParameterList([nn.Parameter(down) for down in downs])
        self.up = nn.ParameterList([nn.Parameter(torch.zeros(width, r)) for _ in range(3)])

    def forward(self, weight):
        return weight + torch.cat([up @ down for up, down in zip(self.up, self.down)]) / math.sqrt(2)


def test_three_steps_equal_a_copy_of_the_model_trained_by_hand():
    encoder = make_encoder()
    task = make_task(encoder)
    made = ClipLora(steps=3, lr=0.01, lr_for=None, dropout=0.0, batch_size=64, augment=None).fit(encoder, task)
    dual, rng = copy.deepcopy(encoder.dual).eval().requires_grad_(False), torch.Generator().manual_seed(task.seed)
    learned = []
    for tower in (dual.visual, dual.text):
        for module in [one for one in tower.modules() if isinstance(one, nn.MultiheadAttention)]:
            paths = Paths(module.embed_dim, 2, rng)
            register_parametrization(module, "in_proj_weight", paths)
            learned += paths.parameters()
    optimizer = torch.optim.AdamW(learned, weight_decay=0.01)

    def class_rows():
        rows = []
        for name in task.names:
            texts = dual.tokenizer.encode([template.replace("{}", name) for template in task.templates])
            own = [dual.encode_text(*pad([text], dual.tokenizer))[0] for text in texts]
            rows.append(normalize(sum(own) / len(own), dim=0))
        return torch.stack(rows)

    for cosine in (1.0, 0.75, 0.25):
        optimizer.param_groups[0]["lr"] = 1e-6 + (0.01 - 1e-6) * cosine
        optimizer.zero_grad()
        logits = encoder.scale * dual.encode_image(batch(task.support)) @ class_rows().T
        cross_entropy(logits, task.support.known).backward()
        optimizer.step()
    torch.testing.assert_close(made.state[HEAD], class_rows().detach(), atol=1e-5, rtol=0)
    own = encoder.dual.state_dict()
    for name in set(made.state) - {HEAD}:
        want = dual.get_submodule(name.removesuffix(".in_proj_weight")).in_proj_weight.detach()
        torch.testing.assert_close(made.state[name], want, atol=1e-5, rtol=0)
        assert (want - own[name]).abs().max() > 1e-3


def test_dropout_leaves_out_inputs_of_a_and_keeps_the_mean():
    own = {"visual.qkv.weight": torch.zeros(30, 2000)}
    parts = drawn_parts(own, 1)
    rng = torch.Generator().manual_seed(0)
    made = updated(own, parts, 1.0, dropout=0.25, rng=rng)["visual.qkv.weight"]
    whole = updated(own, parts, 1.0)["visual.qkv.weight"]
    gone = (made[:10] == 0).all(dim=0)
    assert 0.2 < float(gone.float().mean()) < 0.3
    torch.testing.assert_close(made[:10, ~gone], whole[:10, ~gone] / 0.75)


@pytest.mark.parametrize("name", ["nano", "resnet", "timm", *ENCODERS])
def test_every_attention_of_every_kind_of_tower_is_found_and_moves_the_features(name):
    if name in ENCODERS:
        encoder = Encoder(build(name), batch_size=8, quiet=True)
    else:
        encoder = make_encoder({"nano": NANO, "resnet": RESNET, "timm": TIMM}[name])
    text = attention_weights(encoder.dual, ["text"])
    image = attention_weights(encoder.dual, ["image"])
    per_layer = 1 if name in ("nano", "resnet", "timm", "modernbert") else 3
    assert len(text) == per_layer * len(encoder.dual.text_blocks)
    assert len(image) == {"resnet": 3, "timm": 12 + 2}.get(name, len(encoder.dual.image_blocks))
    task = make_task(encoder, shots=1, held=0)
    before = trace(encoder.dual)
    made = ClipLora(steps=2, lr=0.01, batch_size=3).fit(encoder, task)
    assert_untouched(encoder.dual, before)
    own = encoder.dual.state_dict()
    assert set(made.state) == {*text, *image, HEAD}
    if name not in ("t5",):  # an embedding of position alone decides there
        assert all(not torch.equal(own[key], made.state[key]) for key in image)
    change = made(batch(task.support)) - zero_shot_logits(encoder, task, task.support)
    assert change.abs().max() > 1e-3


def test_a_rate_meant_for_clips_scale_is_made_fit_for_the_models():
    encoder = make_encoder()
    task = make_task(encoder, held=0)
    same = [ClipLora(steps=2, lr=1e-3), ClipLora(steps=2, lr=1e-3 * 100 / encoder.scale, lr_for=None)]
    first, second = (adapter.fit(encoder, task) for adapter in same)
    assert first.about["rate_factor"] == pytest.approx(100 / encoder.scale)
    assert second.about["rate_factor"] == 1.0
    for name, value in first.state.items():
        torch.testing.assert_close(value, second.state[name], atol=1e-5, rtol=1e-3)


def test_it_learns_by_the_seed_and_comes_back(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    adapter = ClipLora(steps=40, lr=5e-3, augment=None)
    one, same, other = (adapter.fit(encoder, replace(task, seed=seed)) for seed in (1, 1, 2))
    image, label = batch(task.support), task.support.known
    assert float((one(image).argmax(dim=1) == label).float().mean()) > 0.8
    assert all(torch.equal(one.state[name], same.state[name]) for name in one.state)
    assert not torch.equal(one.state[HEAD], other.state[HEAD])
    one.save(tmp_path)
    assert torch.equal(TunedClassifier.load(tmp_path, encoder)(image), one(image))
    # a rank of two, at most, is what was added to each third
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    for third in (one.state[name] - encoder.dual.state_dict()[name]).chunk(3):
        values = torch.linalg.svdvals(third)
        assert float(values[2]) < 1e-4 * float(values[0])
    assert one.about["parameters"] == 2 * 3 * 3 * (2 * 32 + 2 * 32)


def test_a_starts_as_torch_starts_a_layer_and_steps_count_shots():
    part = start({"qkv.weight": torch.zeros(12, 400)}, 8, torch.Generator().manual_seed(0))["qkv.weight"][0]
    bound = 1 / math.sqrt(400)
    assert 0.9 * bound < float(part.down.detach().abs().max()) <= bound
    assert (part.up == 0).all()
    encoder = make_encoder()
    support = make_task(encoder, shots=4).support
    assert ClipLora()._steps(support) == 2000
    assert ClipLora(steps=7)._steps(support) == 7


def test_towers_without_attention_and_features_of_texts_are_refused():
    encoder = make_encoder()
    task = make_task(encoder)
    with pytest.raises(ValueError, match="clip_lora with towers: both encodes prompts itself"):
        ClipLora().fit(encoder, replace(task, text=torch.randn(3, 1, 32)))
    encoder.dual.tower_parameters = lambda side: iter([("visual.conv.weight", torch.zeros(1))])
    with pytest.raises(ValueError, match=r"known in the image tower \(visual\.\*\)"):
        attention_weights(encoder.dual, ["image"])
