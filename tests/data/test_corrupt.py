"""Corruptions: formulas against loops, deterministic by key, harder with severity, any size; the table of them all."""

from __future__ import annotations

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vlp.data.corrupt import CORRUPTIONS, EXTRA, IMAGENET_C, SEVERITIES, corrupt
from vlp.data.corrupt.fields import Draw, plasma, smooth, streak, warp, zoom
from vlp.data.corrupt.sheet import HEAD, LABEL, contact_sheet


def picture(height=224, width=224, *, seed=0, grey=False):
    """Smooth coloured shapes with edges and some texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * (x * a + y * b) + c) for a, b, c in rng.uniform(-3, 3, (3, 3))]
    image = 0.5 + 0.3 * np.stack(waves) + 0.05 * rng.standard_normal((3, height, width))
    image[:, : height // 2, : width // 3] += 0.25
    image = np.broadcast_to(image.mean(axis=0), image.shape) if grey else image
    return torch.from_numpy((image.clip(0, 1) * 255).astype(np.uint8))


def distance(name, severity, image, *, keys="abc"):
    changed = [corrupt(image, name, severity, key=key).float() for key in keys]
    return float(torch.stack([(each - image.float()).square().mean() for each in changed]).mean().sqrt())


def draw(severity=1, scale=1.0):
    return Draw(severity, scale, np.random.default_rng(0))


def test_there_are_fifteen_and_four():
    assert (len(IMAGENET_C), EXTRA) == (15, ("speckle_noise", "gaussian_blur", "spatter", "saturate"))
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("height", "width", "grey"), [(37, 51, False), (64, 33, True), (2, 3, False), (1, 1, False)])
def test_shape_and_type_stay_at_any_size(name, height, width, grey):
    image = picture(height, width, grey=grey)
    before = image.clone()
    for severity in (1, 4, 5):
        found = corrupt(image, name, severity, key="k")
        assert (found.shape, found.dtype) == (image.shape, torch.uint8)
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_key_gives_the_same_pixels_and_another_key_others(name):
    image = picture(48, 48)
    first = corrupt(image, name, 5, key="a", seed=3)
    assert torch.equal(corrupt(image, name, 5, key="a", seed=3), first)
    assert not torch.equal(first, image)
    assert torch.equal(corrupt(image, name, 0, key="a"), image)
    fixed = (
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
        "gaussian_blur",
        "saturate",
    )
    for other in (corrupt(image, name, 5, key="b", seed=3), corrupt(image, name, 5, key="a", seed=4)):
        assert torch.equal(other, first) == (name in fixed)


# saturate turns from paler to stronger and elastic_transform from affine to local at severity 3, spatter to mud at 4
MIXED = {"saturate": [(1, 2), (3, 4, 5)], "elastic_transform": [(1, 2), (3, 5)], "spatter": [(1, 2, 3), (4, 5)]}
# published constants that trade one strength for another: more of frost and less of the picture, denser and smaller fog
ENDS = ("frost", "fog", "snow", "glass_blur")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_further_away(name):
    image = picture()
    keys = "abcdefghijkl" if name in (*ENDS, *MIXED) else "abc"  # where what is drawn outweighs how hard it is
    away = {severity: distance(name, severity, image, keys=keys) for severity in SEVERITIES}
    runs = [(1, 5)] if name in ENDS else MIXED.get(name, [SEVERITIES])
    for run in runs:
        assert all(away[low] < away[high] for low, high in itertools.pairwise(run)), away
    assert min(away.values()) > 1


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur", "glass_blur", "elastic_transform"])
def test_lengths_grow_with_the_picture(name):
    small = picture(112, 112)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    ratio = distance(name, 3, large) / distance(name, 3, small)
    assert 0.8 < ratio < 1.25


def test_noise_has_the_published_strength():
    flat = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    for severity, sigma in zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38)):
        found = CORRUPTIONS["gaussian_noise"](flat / 255, draw(severity))
        assert found.std() == pytest.approx(sigma, rel=0.02)
    found = CORRUPTIONS["shot_noise"](flat / 255, draw(2))
    assert float(found.var()) == pytest.approx(128 / 255 / 25, rel=0.03)
    assert float(found.mean()) == pytest.approx(128 / 255, rel=0.01)
    found = CORRUPTIONS["impulse_noise"](flat / 255, draw(4))
    assert [float((found == end).float().mean()) for end in (0, 1)] == pytest.approx([0.085, 0.085], abs=0.004)
    found = CORRUPTIONS["speckle_noise"](flat / 255, draw(1))
    assert float(found.std()) == pytest.approx(0.15 * 128 / 255, rel=0.02)


def test_colours_follow_hsv():
    image = picture(5, 6)
    image[:, 0, 0] = 0
    image[:, 0, 1] = 200  # an exact grey
    for name, change in {
        "brightness": lambda h, s, v: (h, s, min(v + 0.3, 1)),
        "saturate": lambda h, s, v: (h, min(2 * s, 1), v),
    }.items():
        found = corrupt(image, name, 3)
        for y in range(5):
            for x in range(6):
                want = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())))
                assert found[:, y, x].tolist() == pytest.approx([255 * value for value in want], abs=0.51)
    assert corrupt(image, "saturate", 5)[:, 0, 1].tolist() == [200, 160, 160]


def test_contrast_fog_and_zoom_against_their_formulas():
    image = picture(20, 30)
    x = image.float() / 255
    mean = x.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(CORRUPTIONS["contrast"](x, draw(2)), 0.3 * x + 0.7 * mean)
    cloud = plasma(20, 30, 1.7, np.random.default_rng(0))
    torch.testing.assert_close(CORRUPTIONS["fog"](x, draw(3)), (x + 2.5 * cloud) * x.max() / (x.max() + 2.5))
    torch.testing.assert_close(zoom(x, 1.0), x, atol=1e-5, rtol=0)
    flat = torch.full((3, 9, 7), 0.25)
    torch.testing.assert_close(CORRUPTIONS["zoom_blur"](flat, draw(5)), flat)


def test_pixels_and_compression_are_pillows():
    image = picture(40, 24)
    as_pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    data = io.BytesIO()
    as_pil.save(data, "JPEG", quality=10)
    want = torch.from_numpy(np.array(Image.open(data))).permute(2, 0, 1)
    assert torch.equal(corrupt(image, "jpeg_compression", 4), want)
    found = corrupt(image, "pixelate", 5)  # a quarter of each side: blocks of 4 x 4
    blocks = image.float().unflatten(1, (10, 4)).unflatten(3, (6, 4)).mean(dim=(2, 4))
    torch.testing.assert_close(found[:, ::4, ::4].float(), blocks, atol=1.01, rtol=0)
    assert torch.equal(found, found[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))


@pytest.mark.parametrize("border", ["nearest", "reflect"])
def test_smoothing_equals_the_sum_over_neighbours(border):
    x, sigma = torch.rand(4, 5), 1.2
    reach = int(4 * sigma + 0.5)
    padded = np.pad(x.numpy(), reach, mode={"nearest": "edge", "reflect": "symmetric"}[border])
    weight = np.array([math.exp(-0.5 * (o / sigma) ** 2) for o in range(-reach, reach + 1)])
    weight /= weight.sum()
    want = [
        [(np.outer(weight, weight) * padded[i : i + 2 * reach + 1, j : j + 2 * reach + 1]).sum() for j in range(5)]
        for i in range(4)
    ]
    torch.testing.assert_close(smooth(x, sigma, border=border), torch.tensor(want, dtype=torch.float32))


def test_streaks_warps_and_disks_against_loops():
    x = torch.rand(1, 6, 7)
    weight = [math.exp(-0.5 * (step / 1.5) ** 2) for step in range(5)]
    want = sum(w * x[..., [min(column + step, 6) for column in range(7)]] for step, w in enumerate(weight)) / sum(
        weight
    )
    torch.testing.assert_close(streak(x, 2, 1.5, 0.0), want)
    upward = sum(w * x[:, [max(row - step, 0) for row in range(6)]] for step, w in enumerate(weight)) / sum(weight)
    torch.testing.assert_close(streak(x, 2, 1.5, -90.0), upward)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    torch.testing.assert_close(warp(x, rows, columns), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        warp(x, rows, columns + 0.5)[..., :-1], (x[..., :-1] + x[..., 1:]) / 2, atol=1e-5, rtol=0
    )
    point = torch.zeros(3, 31, 31)
    point[:, 15, 15] = 1
    spread = CORRUPTIONS["defocus_blur"](point, draw(4))[0]  # radius 8
    inside = torch.hypot(rows.new_tensor(range(31))[:, None] - 15, torch.arange(31.0) - 15) <= 7.5
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert spread[inside].std() < 1e-6
    assert float(spread[0].sum()) == 0


def test_glass_moves_pixels_no_further_than_it_says():
    x = torch.arange(40 * 40.0).view(1, 40, 40).expand(3, -1, -1) / 1600
    found = CORRUPTIONS["glass_blur"](x, draw(5))
    assert torch.equal(found[0], found[2])
    assert float((found - x).abs().max()) < 2 * 2 * 4 * 41 / 1600  # two rounds, chained once, 4 rows and columns
    assert float((found - x).abs().max()) > 41 / 1600


def test_plasma_fills_the_range_and_gets_rougher_with_less_decay():
    smooth_one, rough = (plasma(50, 64, decay, np.random.default_rng(1)) for decay in (3.0, 1.2))
    assert smooth_one.shape == (50, 64)
    assert 0 <= float(smooth_one.min()) < 0.3
    assert 0.7 < float(smooth_one.max()) <= 1
    assert rough.diff(dim=0).abs().mean() > 3 * smooth_one.diff(dim=0).abs().mean()


def test_what_does_not_exist_is_refused():
    image = picture(8, 8)
    with pytest.raises(ValueError, match='unknown corruption "fogg"; did you mean "fog"'):
        corrupt(image, "fogg", 1)
    with pytest.raises(ValueError, match="fog: severity 6; it is 1 to 5"):
        corrupt(image, "fog", 6)
    for wrong in (image.float(), image[0], image[:1]):
        with pytest.raises(ValueError, match=r"corruptions take uint8 \[3, h, w\]"):
            corrupt(wrong, "fog", 1)


def test_the_sheet_shows_what_corrupt_makes():
    image = picture(16, 16)
    sheet = contact_sheet(image, names=("fog", "contrast"), severities=(2, 5), cell=16, key="k")
    assert sheet.size == (LABEL + 3 * 20, HEAD + 2 * 20)
    pixels = torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
    for row, name in enumerate(("fog", "contrast")):
        for column, severity in enumerate((0, 2, 5)):
            top, left = HEAD + 20 * row, LABEL + 20 * column
            assert torch.equal(pixels[:, top : top + 16, left : left + 16], corrupt(image, name, severity, key="k"))
