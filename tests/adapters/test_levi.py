"""Layers and a small model on top of zero-shot logits, against what is written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import normalize

from tests.adapters.weight_towers import (
    RESNET,
    assert_untouched,
    batch,
    make_encoder,
    make_task,
    trace,
    zero_shot_logits,
)
from vlp.adapters.levi import (
    GRID,
    Levi,
    LeviClassifier,
    channels_last,
    mean_over_places,
    outputs_of,
    spaced,
    views_of,
)
from vlp.adapters.selection import score

FAST = {"epochs": 40, "batch_size": 16, "lr": 3e-3, "layers": 2, "width": 8}


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"alpha": 0.0, "epochs": 3}])
def test_switched_off_it_is_zero_shot_bit_for_bit(settings):
    encoder = make_encoder()
    task = make_task(encoder)
    made = Levi(**settings).fit(encoder, task)
    assert torch.equal(made(batch(task.validation)), zero_shot_logits(encoder, task, task.validation))


@pytest.mark.parametrize("config", [None, RESNET])
def test_views_are_the_layers_of_the_tower_written_out(config):
    encoder = make_encoder(RESNET) if config else make_encoder()
    task = make_task(encoder, shots=4)
    before = trace(encoder.dual)
    views = views_of(encoder, batch(task.support), 2)
    assert_untouched(encoder.dual, before)
    torch.testing.assert_close(views.image, task.support.image, atol=1e-6, rtol=0)
    dual = encoder.dual
    x = dual.pixels(batch(task.support))
    with torch.no_grad():
        x = dual.visual.stem(x) if config else dual.image_tower.embed(x)
        outputs = []
        for block in dual.image_blocks[:-1]:
            x = block(x)
            outputs.append(x.mean(dim=(2, 3)) if config else x.mean(dim=1))
    chosen = [outputs[0], outputs[2]] if config else outputs
    for found, want in zip(views.layers, [*chosen, views.image], strict=True):
        centred = want - want.mean(dim=1, keepdim=True)
        want = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(found, want, atol=2e-3, rtol=0)


def test_logits_are_the_sum_written_out():
    encoder = make_encoder()
    task = make_task(encoder)
    made = Levi(alpha=0.5, **FAST).fit(encoder, task)
    image, parts = batch(task.validation)[:3], made.tensors
    views = views_of(encoder, image, 2)
    small = nn.Sequential(
        *(
            layer
            for place, inputs in enumerate((3, 8, 8))
            for layer in (nn.Conv2d(inputs, 8, 3, 2, 1, bias=False), nn.GroupNorm(1, 8), nn.GELU())
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for place in range(3):
        small[3 * place].weight.data = parts[f"small.{place}.weight"]
        small[3 * place + 1].weight.data = parts[f"small.{place}.gain"]
        small[3 * place + 1].bias.data = parts[f"small.{place}.bias"]
    seen = small(image.float() / 255 - 0.5).detach()  # 32 pixels a side already
    p = parts["mixture"].exp() / parts["mixture"].exp().sum()
    want = zero_shot_logits(encoder, task, task.validation)[:3].clone()
    for row in range(3):
        for c in range(3):
            for place, layer in enumerate(views.layers):
                inputs = torch.cat([layer[row], seen[row]])
                head = parts[f"head.{place}.weight"][c] @ inputs + parts[f"head.{place}.bias"][c]
                want[row, c] += 0.5 * p[place] * head
    torch.testing.assert_close(made(image), want, atol=1e-3, rtol=0)


def test_it_learns_by_the_seed_comes_back_and_leaves_the_model_alone(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    before = trace(encoder.dual)
    one, same, other = (Levi(alpha=1, **FAST).fit(encoder, replace(task, seed=seed)) for seed in (1, 1, 2))
    image = batch(task.support)
    state = torch.get_rng_state()
    assert float((one(image).argmax(dim=1) == task.support.known).float().mean()) > 0.8
    assert torch.equal(state, torch.get_rng_state())
    assert_untouched(encoder.dual, before)
    assert torch.equal(one(image), same(image))
    assert not torch.equal(one(image), other(image))
    one.save(tmp_path)
    back = LeviClassifier.load(tmp_path, encoder)
    assert torch.equal(back(image), one(image))
    assert (back.names, back.about) == (one.names, one.about)
    with pytest.raises(ValueError, match="use that model, or fit again"):
        LeviClassifier.load(tmp_path, make_encoder(seed=1))


def test_alpha_is_the_best_on_validation_else_by_folds_else_one():
    encoder = make_encoder()
    task = make_task(encoder, held=4)
    made = Levi(**FAST).fit(encoder, task)
    scores = {}
    for alpha in GRID:
        logits = Levi(alpha=alpha, **FAST).fit(encoder, task)(batch(task.validation))
        scores[alpha] = score(logits, task.validation.known)
    assert made.alpha == max(GRID, key=scores.__getitem__)
    assert made.about["selection"]["acc1"] == scores[made.alpha].accuracy
    assert Levi(**FAST).fit(encoder, make_task(encoder, held=0)).about["selection"]["split"] == "train"
    one = Levi(**FAST).fit(encoder, make_task(encoder, shots=1, held=0))
    assert (one.alpha, one.about["selection"]["split"]) == (1.0, "none")


def test_layers_are_evenly_spaced():
    blocks = [nn.Identity() for _ in range(11)]
    assert [blocks.index(block) for block in spaced(blocks, 4)] == [1, 4, 7, 10]
    assert spaced(blocks[:2], 4) == blocks[:2]
    assert spaced([], 4) == []


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64)])  # 64: as many rows in the first map as channels
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_channels_of_maps_are_found_in_square_and_other_pictures(name, height, width):
    swin = name.startswith("swin")
    small = {"img_size": (height, width), "embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 1, 1)} if swin else {}
    tower = timm.create_model(name, num_classes=0, **small).eval()
    blocks = list(tower.layers if swin else tower.stages)
    with torch.no_grad(), outputs_of(blocks) as seen:
        tower(torch.randn(1, 3, height, width))
    outputs = [seen[place] for place in range(len(blocks))]
    assert channels_last(outputs, blocks) is swin
    for output, info in zip(outputs, tower.feature_info):
        pooled = mean_over_places(output, last=swin)
        assert pooled.shape == (1, info["num_chs"])
        assert torch.equal(pooled, output.mean(dim=(1, 2) if swin else (2, 3)))


def test_tokens_are_meant_over_their_places():
    x = torch.randn(2, 5, 3)
    assert torch.equal(mean_over_places(x, last=False), x.mean(dim=1))


def test_features_alone_are_refused():
    encoder = make_encoder()
    task = make_task(encoder)
    bare = replace(task, support=replace(task.support, pictures=None), validation=None)
    with pytest.raises(ValueError, match="levi runs the image tower over pictures"):
        Levi().fit(encoder, bare)
    with pytest.raises(NotImplementedError, match="Levi learns weights of its own classes"):
        Levi().transfer(encoder, None, task)
    assert normalize(task.support.image, dim=1).shape == (9, 32)
