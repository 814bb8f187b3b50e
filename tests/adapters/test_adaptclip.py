"""AdaptCLIP's three adapters: against loops, frozen features at first, flaws of things never seen, through a file."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from tests.adapters.prompt_towers import encoder_of
from tests.adapters.test_linear_patches import patch_maps
from vlp.adapters.adaptclip import AdaptClip, AnomalyClassifier, drawn_normal, normal_of_group
from vlp.adapters.adaptclip_parts import Judged, PromptQuery, anomaly_loss, compared, harmonic
from vlp.adapters.dense_task import DENSE_ADAPTERS, IGNORED, DenseExamples, DenseTask, PatchMaps
from vlp.metrics.anomaly import AnomalyDetection

NAMES, GRID = ("normal", "anomalous"), (4, 4)
SMALL = {"context": 2, "middle": 8, "batch": 8, "lr": 5e-3}


def flawed(n, *, seed=0, objects=3, base=0):
    """Every object has patches of its own; half of the pictures have one strange patch."""
    rng = torch.Generator().manual_seed(seed)
    own = normalize(torch.randn(objects, 16, 32, generator=torch.Generator().manual_seed(50 + base)), dim=-1)
    kind = torch.arange(n) % objects
    patches = own[kind] + 0.05 * torch.randn(n, 16, 32, generator=rng)
    label = (torch.arange(n) // objects) % 2
    place = torch.randint(16, (n,), generator=rng)
    strange = torch.zeros(n, 16, dtype=torch.bool).scatter(1, place[:, None], True) & (label == 1)[:, None]
    patches[strange] = torch.randn(int(strange.sum()), 32, generator=rng) * 0.2
    patches = normalize(patches, dim=-1)
    image = normalize(patches.mean(1), dim=-1)
    mask = strange.long().unflatten(1, GRID).repeat_interleave(2, 1).repeat_interleave(2, 2)
    maps = PatchMaps(image, patches, GRID, patches[..., :20] / patches[..., :20].norm(dim=-1, keepdim=True))
    return DenseExamples(maps, mask, label, tuple(f"object {base + int(k)}" for k in kind))


@pytest.fixture(scope="module")
def encoder():
    return encoder_of("clip")


@pytest.fixture(scope="module")
def fitted(encoder):
    return AdaptClip(**SMALL, epochs=10).fit(encoder, DenseTask(NAMES, support=flawed(72)))


def test_at_first_seeing_is_frozen_features_and_frozen_words(encoder):
    task, maps = DenseTask(NAMES, ("a {} thing",), support=flawed(12)), patch_maps(3)
    found = AdaptClip(**SMALL, parts=("visual",), epochs=0).fit(encoder, task)(maps)
    words = task.weights(encoder)
    for picture in range(3):
        shares = [torch.softmax(maps.patches[picture, p] @ words.T / 0.07, dim=0)[1] for p in range(6)]
        torch.testing.assert_close(found.places[picture].flatten(), torch.stack(shares))
        whole = torch.softmax(maps.image[picture] @ words.T / 0.07, dim=0)[1]
        torch.testing.assert_close(found.image[picture], (whole + max(shares)) / 2)


@torch.no_grad()
def test_comparing_equals_the_loop():
    rng = torch.Generator().manual_seed(0)
    query, normal = (normalize(torch.randn(2, n, 8, generator=rng), dim=-1) for n in (16, 5))
    difference, apart = compared(query, normal)
    torch.manual_seed(0)
    part = PromptQuery([8], 4).eval()
    found = part([query], [normal], GRID)
    for picture in range(2):
        joint = torch.zeros(8, 16)
        for place in range(16):
            cosines = [float(query[picture, place] @ one) for one in normal[picture]]
            nearest = normal[picture, cosines.index(max(cosines))]
            torch.testing.assert_close(difference[picture, place], (query[picture, place] - nearest).abs())
            assert float(apart[picture, place]) == pytest.approx(1 - max(cosines), abs=1e-6)
            joint[:, place] = query[picture, place] + (query[picture, place] - nearest).abs()
        seen = joint / math.sqrt(1 + 1e-5)  # statistics that nothing was learned of
        pooled = torch.stack([(row.mean() + row.sort(descending=True).values[:10].mean()) / 2 for row in seen])
        torch.testing.assert_close(found.judged[0].image[picture], part.whole[0](pooled[None])[0])
        shares = part.places[0](seen.view(1, 8, *GRID)).softmax(dim=1)[0]
        torch.testing.assert_close(found.judged[0].places[picture], shares)
    assert found.judged[0].places.shape == (2, 2, 16, 16)
    assert torch.equal(found.apart[0].flatten(1), apart)
    shared = part([query], [normal[0]], GRID)
    assert torch.equal(shared.apart[0][0], found.apart[0][0])


def test_the_loss_equals_the_loop():
    rng = torch.Generator().manual_seed(0)
    found = Judged(torch.randn(2, 2, generator=rng), torch.rand(2, 2, 4, 4, generator=rng).softmax(dim=1))
    label, mask = torch.tensor([1, 0]), torch.randint(-1, 2, (2, 8, 8), generator=rng)
    large = interpolate(found.places, size=(8, 8), mode="bilinear", align_corners=False)
    want = sum(-math.log(float(found.image[b].softmax(0)[label[b]])) for b in range(2)) / 2
    focal, dice = [], 0.0
    for b in range(2):
        for kind in (0, 1):
            both = total = 1.0
            for y in range(8):
                for x in range(8):
                    if mask[b, y, x] != IGNORED:
                        share, true = float(large[b, kind, y, x]), float(mask[b, y, x] == kind)
                        both, total = both + 2 * share * true, total + share + true
                        if true:
                            focal.append(-((1 - share) ** 2) * math.log(share + 1e-5))
            dice += (1 - both / total) / 2
    assert float(anomaly_loss(found, label, mask)) == pytest.approx(want + sum(focal) / len(focal) + dice, abs=1e-5)


def test_flaws_of_objects_never_seen_are_found(encoder, fitted):
    held = flawed(24, seed=9, base=10)
    normal = flawed(6, seed=11, base=10).maps
    alone, beside = AnomalyDetection(), AnomalyDetection()
    for kind in range(3):
        rows = [row for row in range(24) if row % 3 == kind]
        maps, truth = held.maps.only(rows), held.label[rows].bool()
        alone.update(fitted(maps).image, truth)
        found = fitted(maps, normal.only([kind]))  # the first three are normal, one of each object
        beside.update(found.image, truth)
        assert found.places.shape == (8, 16, 16)
    assert beside.compute()["image_auroc"] > 0.9
    assert beside.compute()["image_auroc"] > alone.compute()["image_auroc"]


def test_scores_are_fused_as_said(encoder, fitted):
    maps, normal = flawed(4, seed=3).maps, flawed(3, seed=4).maps
    parts = {}
    with torch.no_grad():
        words, learned = fitted.words
        found = fitted.part(maps, words, learned, [level.flatten(0, 1) for level in fitted.part.levels(normal)])
    grown = [interpolate(one.places[:, 1:], size=(16, 16), mode="bilinear", align_corners=False) for one in found.words]
    compared_maps = torch.stack([one.places[:, 1:] for one in found.compared.judged]).mean(0)
    apart = [interpolate(one, size=(16, 16), mode="bilinear", align_corners=False) for one in found.compared.apart]
    parts["mean"] = (grown[0] + grown[1] + compared_maps) / 3
    parts["far"] = 2 * apart[0] * apart[1] / (apart[0] + apart[1])
    # distances are interpolated after their levels are one
    coarse = [one[:, 0] for one in found.compared.apart]
    far = interpolate(harmonic(coarse)[:, None], size=(16, 16), mode="bilinear", align_corners=False)
    want = 2 * parts["mean"] * far / (parts["mean"] + far)
    seen = fitted(maps, normal)
    torch.testing.assert_close(seen.places, want[:, 0])
    wholes = [one.image.softmax(1)[:, 1] for one in found.words]
    wholes.append(torch.stack([one.image.softmax(1)[:, 1] for one in found.compared.judged]).mean(0))
    mean, top = torch.stack(wholes).mean(0), want.flatten(1).amax(1)
    torch.testing.assert_close(seen.image, 2 * mean * top / (mean + top))
    assert float(harmonic([torch.tensor(0.5), torch.tensor(0.0)])) == pytest.approx(0, abs=1e-9)


def test_normal_pictures_are_others_of_the_same_object():
    support = flawed(12)
    candidates = normal_of_group(support, support.label)
    for row, others in enumerate(candidates):
        assert row not in others
        assert all(support.group[other] == support.group[row] and not support.label[other] for other in others)
    chosen = drawn_normal(candidates, torch.tensor([0, 5]), shots=3, generator=torch.Generator().manual_seed(0))
    assert set(chosen[0].tolist()) <= set(candidates[0])
    assert chosen.shape == (2, 3)


def test_the_same_seed_gives_the_same_and_the_model_stays(encoder):
    before = {name: value.clone() for name, value in encoder.dual.state_dict().items()}
    maps, normal = flawed(4, seed=3).maps, flawed(3, seed=4).maps
    made = [
        AdaptClip(**SMALL, epochs=1).fit(encoder, DenseTask(NAMES, support=flawed(24), seed=seed)) for seed in (0, 0, 1)
    ]
    found = [one(maps, normal).image for one in made]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert all(torch.equal(before[name], value) for name, value in encoder.dual.state_dict().items())


def test_a_classifier_survives_its_file(fitted, tmp_path):
    assert DENSE_ADAPTERS.build("adaptclip") == AdaptClip()
    fitted.save(tmp_path / "c")
    back, maps, normal = AnomalyClassifier.load(tmp_path / "c"), flawed(4).maps, flawed(3).maps
    for one, other in zip(fitted(maps, normal), back(maps, normal), strict=True):
        assert torch.equal(one, other)
    assert (back.names, back.about) == (NAMES, fitted.about)


def test_what_cannot_be_is_refused(encoder):
    support = flawed(12)
    alone = AdaptClip(**SMALL, parts=("prompt_query",), epochs=0).fit(encoder, DenseTask(NAMES, support=support))
    with pytest.raises(ValueError, match="prompt_query alone needs normal pictures"):
        alone(support.maps)
    blind = AdaptClip(**SMALL, parts=("textual",), epochs=0).fit(encoder, DenseTask(NAMES, support=support))
    with pytest.raises(ValueError, match="looked at by the prompt_query part"):
        blind(support.maps, support.maps)
    single = DenseExamples(support.maps, support.mask, support.label, tuple(f"o{n}" for n in range(12)))
    with pytest.raises(ValueError, match='no other normal picture of "o0"'):
        AdaptClip(**SMALL).fit(encoder, DenseTask(NAMES, support=single))
    plain = DenseExamples(support.maps, torch.zeros_like(support.mask))
    with pytest.raises(ValueError, match="0 of 12 pictures to learn from are anomalous"):
        AdaptClip(**SMALL).fit(encoder, DenseTask(NAMES, support=plain))
