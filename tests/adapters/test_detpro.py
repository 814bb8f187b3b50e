"""DetPro's prompts of regions: overlaps, weights and loss against loops, zero-shot when not trained, new classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.adapters.prompt_towers import encoder_of
from vlp.adapters.adapter import class_weights
from vlp.adapters.dense_task import DENSE_ADAPTERS
from vlp.adapters.detpro import DetPro, region_loss, region_weights
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.regions import BACKGROUND, Crops, Regions, RegionTask, jittered, overlaps
from vlp.adapters.task import Task

NAMES = ("cat", "dog", "ant")


@pytest.fixture(scope="module")
def encoder():
    return encoder_of("clip")


def regions(encoder, n=120, *, seed=0):
    """Crops near what a prompt with other vectors says of their class."""
    rng = torch.Generator().manual_seed(seed)
    prompts = ClassPrompts(encoder, NAMES, count=2)
    with torch.no_grad():
        truth = prompts.encode(torch.randn(2, prompts.width, generator=torch.Generator().manual_seed(7)))
    label = torch.randint(3, (n,), generator=rng)
    image = normalize(truth[label] + 0.01 * torch.randn(n, 32, generator=rng), dim=1)
    return Regions(image, label, torch.rand(n, generator=rng) * 0.9 + 0.1)


def test_overlaps_equal_the_loop():
    rng = torch.Generator().manual_seed(0)
    corner, side = torch.rand(6, 2, generator=rng) * 10, torch.rand(6, 2, generator=rng) * 8
    boxes = torch.cat([corner, corner + side], dim=1)
    found = overlaps(boxes, boxes[:4])
    for i, a in enumerate(boxes.tolist()):
        for j, b in enumerate(boxes[:4].tolist()):
            wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
            assert float(found[i, j]) == pytest.approx(wide * high / whole, abs=1e-6)
    assert overlaps(boxes, boxes).diagonal().tolist() == pytest.approx([1] * 6)


def test_proposals_lie_around_given_boxes_and_overlap_them_by_all_amounts():
    boxes = torch.tensor([[10.0, 10, 30, 40], [50, 20, 60, 30]])
    generator = torch.Generator().manual_seed(0)
    made = jittered(boxes, torch.tensor([4, 2]), size=(64, 80), each=200, jitter=0.7, generator=generator)
    assert torch.equal(made.boxes[:2], boxes)
    assert made.label[:2].tolist() == [4, 2]
    assert made.iou[:2].tolist() == [1, 1]
    assert bool((made.boxes[:, 2:] > made.boxes[:, :2]).all())
    assert float(made.boxes.min()) >= 0
    assert float(made.boxes[:, 2].max()) <= 80
    assert float(made.boxes[:, 3].max()) <= 64
    torch.testing.assert_close(made.iou, overlaps(made.boxes, boxes).amax(1))
    counts = torch.histc(made.iou, 5, 0, 1)
    assert bool((counts > 10).all())
    none = jittered(torch.zeros(0, 4), torch.zeros(0).long(), size=(8, 8), each=3, jitter=0.5, generator=generator)
    assert len(none.boxes) == 0


def test_crops_are_cut_from_their_picture_with_a_margin():
    pixels = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).repeat(3, 1, 1)
    asked = []

    def picture(number):
        asked.append(number)
        return pixels

    crops = Crops(picture, [(3, (1.0, 1.0, 3.0, 2.0)), (3, (0.2, 0.2, 0.4, 0.4))])
    assert isinstance(crops[0], Image.Image)
    assert np.asarray(crops[0])[..., 0].tolist() == [[5, 6]]
    assert np.asarray(crops[1])[..., 0].tolist() == [[0]]
    assert asked == [3]
    wide = Crops(picture, [(0, (1.0, 1.0, 3.0, 2.0))], margin=0.5)
    assert wide[0].size == (4, 3)


def test_weights_and_loss_equal_the_loop():
    rng = torch.Generator().manual_seed(0)
    label = torch.tensor([0, 0, 0, 2, 2, BACKGROUND, BACKGROUND])
    logits = torch.randn(7, 3, generator=rng)
    weight = region_weights(label, 3)
    assert weight.tolist() == pytest.approx([7 / 9, 7 / 3, 7 / 6, 7 / 4])
    total = divisor = 0.0
    for row, one in zip(logits, label.tolist(), strict=True):
        logs = row.log_softmax(0)
        value = -float(logs.mean()) if one == BACKGROUND else -float(logs[one])
        total, divisor = total + float(weight[one]) * value, divisor + float(weight[one])
    assert float(region_loss(logits, label, weight)) == pytest.approx(total / divisor, abs=1e-6)
    even = region_loss(torch.zeros(2, 3), label[-2:], weight)
    assert float(even) == pytest.approx(math.log(3))


def test_without_training_it_is_zero_shot_bit_for_bit(encoder):
    found = DetPro(epochs=0).fit(encoder, RegionTask(NAMES, ("bee",), ("a {}.",)))
    assert torch.equal(found.weight, class_weights(encoder, Task((*NAMES, "bee"), ("a {}.",))))
    assert (found.scale, found.names) == (encoder.scale, (*NAMES, "bee"))


def test_prompts_of_every_range_are_learned_and_averaged(encoder):
    support = regions(encoder)
    task = RegionTask(NAMES, ("bee",), support=support)
    settings = DetPro(context=2, epochs=8, lr=5e-4, batch=8)
    found = settings.fit(encoder, task)
    held = regions(encoder, seed=1)
    zero = DetPro(epochs=0).fit(encoder, RegionTask(NAMES))

    def right(classifier):
        return float((classifier(held.image)[:, :3].argmax(1) == held.label).double().mean())

    assert right(found) > max(0.8, right(zero))
    assert found.names == (*NAMES, "bee")
    assert found.scale == pytest.approx(100)
    positives = found.about["positives"]
    assert list(positives) == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert sum(positives.values()) == int((support.iou >= 0.5).sum())
    assert torch.equal(settings.fit(encoder, task).weight, found.weight)
    one = DetPro(context=2, epochs=1, bins=(0.95,)).fit(encoder, task)
    assert torch.allclose(one.weight.norm(dim=1), torch.ones(4), atol=1e-5)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.dual.parameters())


def test_negatives_are_a_drawn_share_as_background(encoder):
    support = regions(encoder)
    kept = DetPro(negatives=0.5)._negatives(support, 0)
    among = int(((support.iou >= 0.1) & (support.iou < 0.5)).sum())
    assert len(kept) == round(among / 2)
    assert set(kept.label.tolist()) == {BACKGROUND}
    assert float(kept.iou.max()) < 0.5


def test_what_cannot_be_is_refused(encoder):
    assert DENSE_ADAPTERS.build("detpro") == DetPro()
    with pytest.raises(ValueError, match='"cat" is a class to learn and one of the others'):
        RegionTask(NAMES, ("cat",))
    with pytest.raises(ValueError, match="support has a region of class 2, and 2 classes are learned"):
        RegionTask(NAMES[:2], support=regions(encoder))
    with pytest.raises(ValueError, match="needs regions with classes"):
        DetPro().fit(encoder, RegionTask(NAMES))
    far = regions(encoder)
    with pytest.raises(ValueError, match=r"no region of 120 overlaps an object by 2 or more"):
        DetPro(bins=(2.0,)).fit(encoder, RegionTask(NAMES, support=far))
