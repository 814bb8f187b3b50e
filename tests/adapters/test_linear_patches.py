"""Zero-shot masks and linear layers on patches: against loops, equal before training, better after it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate, normalize

from tests.adapters.prompt_towers import encoder_of
from vlp.adapters.dense_task import DENSE_ADAPTERS, IGNORED, DenseExamples, DenseTask, PatchMaps
from vlp.adapters.linear_patches import LinearPatches, PatchClassifier, ZeroShotMask
from vlp.adapters.pixel_training import enlarged, mean_iou, pixel_loss

NAMES, GRID = ("sky", "grass", "house"), (2, 3)


def patch_maps(n, *, dim=32, hidden=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    made = [normalize(torch.randn(*shape, generator=rng), dim=-1) for shape in ((n, dim), (n, 6, dim), (n, 6, hidden))]
    return PatchMaps(made[0], made[1], GRID, made[2])


def examples(n=12, *, seed=0, classes=3):
    """Pictures whose patches say their class by a direction that words know nothing of."""
    maps = patch_maps(n, seed=seed)
    rng = torch.Generator().manual_seed(seed + 100)
    label = torch.randint(classes, (n, 6), generator=rng)
    mark = normalize(torch.randn(classes, 32, generator=torch.Generator().manual_seed(5)), dim=-1)
    patches = normalize(maps.patches + 2 * mark[label], dim=-1)
    hidden = normalize(maps.hidden + 2 * mark[label][..., :20], dim=-1)
    mask = label.unflatten(1, GRID).repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask[:, 0, 0] = IGNORED
    return DenseExamples(PatchMaps(maps.image, patches, GRID, hidden), mask)


def a_task(**more):
    return DenseTask(NAMES, ("a {}.", "the {}"), support=examples(), **more)


@pytest.fixture(scope="module")
def encoder():
    return encoder_of("clip")


def test_the_zero_shot_mask_equals_the_loop(encoder):
    task, maps = a_task(), patch_maps(2)
    found = ZeroShotMask().fit(encoder, task)(maps)
    assert found.shape == (2, 3, *GRID)
    for c, name in enumerate(NAMES):
        words = normalize(encoder.texts([f"a {name}.", f"the {name}"]).mean(0), dim=0)
        for picture in range(2):
            for place in range(6):
                want = encoder.scale * float(maps.patches[picture, place] @ words)
                assert float(found[picture, c, place // 3, place % 3]) == pytest.approx(want, abs=1e-4)


def test_without_training_it_is_the_zero_shot_mask_bit_for_bit(encoder):
    task, maps = a_task(), patch_maps(3)
    assert torch.equal(LinearPatches(epochs=0).fit(encoder, task)(maps), ZeroShotMask().fit(encoder, task)(maps))
    assert not LinearPatches(epochs=0, reads="hidden").fit(encoder, task)(maps).any()


@pytest.mark.parametrize("reads", ["patches", "hidden"])
def test_training_finds_what_words_do_not_know(encoder, reads):
    before = {name: value.clone() for name, value in encoder.dual.state_dict().items()}
    task = a_task(validation=examples(6, seed=1))
    fitted = LinearPatches(reads=reads, epochs=15, batch=4, lr=0.1).fit(encoder, task)
    assert mean_iou(fitted, task, batch=4) > 0.8 > mean_iou(ZeroShotMask().fit(encoder, task), task, batch=4)
    chosen = fitted.about["selection"]
    assert (chosen["split"], chosen["candidates"]) == ("validation", 15)
    assert chosen["mean_iou"] == pytest.approx(mean_iou(fitted, task, batch=4))
    again = LinearPatches(reads=reads, epochs=15, batch=4, lr=0.1).fit(encoder, task)
    assert torch.equal(fitted.weight, again.weight)
    assert all(torch.equal(before[name], value) for name, value in encoder.dual.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in encoder.dual.parameters())


def test_the_loss_counts_pixels_that_have_a_class():
    scores = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    mask = examples(2).mask
    large = interpolate(scores, size=(8, 12), mode="bilinear", align_corners=False)
    each = [
        cross_entropy(large[b, :, y, x], mask[b, y, x])
        for b in range(2)
        for y in range(8)
        for x in range(12)
        if mask[b, y, x] != IGNORED
    ]
    assert torch.allclose(enlarged(scores, (8, 12)), large)
    torch.testing.assert_close(pixel_loss(scores, mask), torch.stack(each).mean())
    assert pixel_loss(scores, torch.full_like(mask, IGNORED)) == 0


def test_a_classifier_survives_its_file(encoder, tmp_path):
    made, maps = LinearPatches(epochs=1).fit(encoder, a_task()), patch_maps(2)
    made.save(tmp_path / "c")
    back = PatchClassifier.load(tmp_path / "c")
    assert torch.equal(made(maps), back(maps))
    assert (back.names, back.about) == (made.names, made.about)
    with pytest.raises(ValueError, match="holds no classifier"):
        PatchClassifier.load(tmp_path)


def test_batches_of_one_train_too(encoder):
    start = ZeroShotMask().fit(encoder, a_task()).weight
    found = LinearPatches(batch=1, epochs=2).fit(encoder, a_task()).weight
    assert float((found - start).abs().max()) > 1e-3


def test_validation_without_a_pixel_of_a_class_chooses_nothing(encoder):
    own = examples(seed=7)
    blank = DenseExamples(own.maps, torch.full_like(own.mask, IGNORED))
    found = LinearPatches(epochs=3).fit(encoder, a_task(validation=blank))
    assert found.about["selection"]["split"] == "none"
    assert torch.equal(found.weight, LinearPatches(epochs=3).fit(encoder, a_task()).weight)


def test_what_cannot_be_is_refused(encoder):
    assert DENSE_ADAPTERS.build("zeroshot_mask") == ZeroShotMask()
    assert DENSE_ADAPTERS.build("linear_patches") == LinearPatches()
    with pytest.raises(ValueError, match="at least 2 class names"):
        DenseTask(("sky",))
    with pytest.raises(ValueError, match=r"masks of support have values -1 to 2; classes are 0 to 1"):
        DenseTask(NAMES[:2], support=examples())
    with pytest.raises(ValueError, match="give `train`"):
        LinearPatches().fit(encoder, DenseTask(NAMES))
    with pytest.raises(ValueError, match="do not fill a grid"):
        PatchMaps(torch.zeros(1, 2), torch.zeros(1, 5, 2), GRID)
    bare = examples()
    bare = DenseExamples(PatchMaps(bare.maps.image, bare.maps.patches, GRID), bare.mask)
    with pytest.raises(ValueError, match="needs patches before the projection"):
        LinearPatches(reads="hidden").fit(encoder, DenseTask(NAMES, support=bare))
