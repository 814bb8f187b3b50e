from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from tests.data.test_decode import encoded, photo
from vlp.data.augment import Augment
from vlp.data.boxes import draw_box
from vlp.data.decode import Limits
from vlp.data.transforms import Preprocess
from vlp.types import BadSampleError

SHAPES = [(500, 375), (375, 500), (160, 120), (97, 160), (224, 224), (64, 64), (640, 300), (300, 640)]
SIZES: list[int | tuple[int, int]] = [224, 64, (112, 224), (224, 96)]


def peer(data: bytes, size: int | tuple[int, int], mode: str, interpolation: str = "bicubic", fill: int = 0) -> Tensor:
    """open_clip's pixels, before mean and standard deviation."""
    transform = image_transform(
        size, False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation, fill_color=fill
    )
    return (transform(Image.open(io.BytesIO(data))) * 255).round().to(torch.int)


def horizontal_first(data: bytes, height: int, width: int) -> Tensor:
    """Pillow's bicubic in the order of passes that all Pillows before 13 take."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((width, image.height), Image.BICUBIC).resize((width, height), Image.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).int()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_evaluation_transform_is_open_clips(size: int | tuple[int, int], mode: str) -> None:
    far = total = 0
    for number, (width, height) in enumerate(SHAPES):
        for kind in ("JPEG", "PNG"):
            data = encoded(photo(width, height, number), kind)
            expected = peer(data, size, mode)
            assert torch.equal(Preprocess(size=size, resize_mode=mode, resizer="pillow")(data).int(), expected)
            ours = Preprocess(size=size, resize_mode=mode)(data)
            assert ours.dtype == torch.uint8
            assert ours.is_contiguous()
            if (mode == "squash" and width < height) or height > 2 * width:
                continue  # here Pillow 13 swaps its passes: the next test
            apart = (ours.int() - expected).abs()
            assert apart.max() <= 2
            far += int((apart > 1).sum())
            total += apart.numel()
    assert far <= 3e-5 * total


@pytest.mark.parametrize(("height", "width"), [(112, 224), (50, 300), (300, 50), (224, 224), (64, 64)])
def test_resize_is_pillows_with_the_passes_in_its_old_order(height: int, width: int) -> None:
    for number, (w, h) in enumerate(SHAPES):
        data = encoded(photo(w, h, number), "PNG")
        ours = Preprocess(size=(height, width), resize_mode="squash")(data).int()
        apart = (ours - horizontal_first(data, height, width)).abs()
        assert apart.max() <= 2
        assert (apart > 1).float().mean() < 1e-4


def test_bilinear_and_fill_as_open_clip() -> None:
    data = encoded(photo(300, 200), "PNG")
    ours = Preprocess(size=96, resize_mode="longest", interpolation="bilinear", fill=77)(data).int()
    assert (ours - peer(data, 96, "longest", "bilinear", 77)).abs().max() <= 1
    assert ours[0, 0, 0] == 77


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_jpegs(mode: str) -> None:
    data = encoded(photo(300, 200).convert(mode), quality=90)
    assert (Preprocess(size=96)(data).int() - peer(data, 96, "shortest")).abs().max() <= 2


def test_normalize_is_exact() -> None:
    preprocess = Preprocess(size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(image[:, c].float() / 255 - preprocess.mean[c]) / preprocess.std[c] for c in range(3)], 1)
    assert torch.equal(preprocess.normalize(image), expected)
    assert preprocess.normalize(image[0]).shape == (3, 8, 8)


def test_normalized_pictures_are_open_clips() -> None:
    data = encoded(photo(224, 224))
    transform = image_transform(224, False)
    expected = transform(Image.open(io.BytesIO(data)))
    preprocess = Preprocess(size=224)
    assert torch.allclose(preprocess.normalize(preprocess(data)), expected, atol=1e-6)


def test_config_there_and_back() -> None:
    cfg = {"size": (384, 256), "mode": "RGB", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    cfg |= {"interpolation": "bilinear", "resize_mode": "squash", "fill_color": 3}
    preprocess = Preprocess.from_open_clip(cfg)
    assert preprocess.size == (384, 256)
    assert Preprocess.from_open_clip(preprocess.to_open_clip()) == preprocess
    assert Preprocess.from_open_clip({}, 64) == Preprocess(size=64)
    assert Preprocess.from_open_clip({"mean": 0.5, "std": None, "interpolation": "random"}, (8, 8)).mean == (
        0.5,
        0.5,
        0.5,
    )


def test_inputs(tmp_path: Path) -> None:
    image = photo(50, 40)
    data = encoded(image, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    preprocess = Preprocess(size=32)
    expected = preprocess(data)
    assert torch.equal(preprocess(image), expected)
    assert torch.equal(preprocess(tmp_path / "a.png"), expected)
    assert torch.equal(preprocess(bytearray(data)), expected)
    assert torch.equal(preprocess(preprocess.read(data)), expected)
    with pytest.raises(TypeError, match=r"torch.float32 \[3, 4, 4\]"):
        preprocess(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match="not NoneType"):
        preprocess(None)
    with pytest.raises(BadSampleError, match="extreme_aspect"):
        preprocess(Image.new("RGB", (100, 4)))
    with pytest.raises(BadSampleError, match="too_small"):
        preprocess(data, Limits(min_side=45))


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(160, 120, (0.08, 1.0)), (100, 100, (0.9, 1.0)), (300, 60, (0.5, 1.0)), (40, 400, (0.9, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(width: int, height: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    picture = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(picture, list(scale), [3 / 4, 4 / 3]) for _ in range(2000)], float)
    ours = np.array([draw_box(height, width, scale=scale, ratio=(3 / 4, 4 / 3), rng=rng) for _ in range(2000)], float)
    for column in range(4):
        error = 4 * np.hypot(theirs[:, column].std(), ours[:, column].std()) / np.sqrt(2000) + 0.05
        assert abs(theirs[:, column].mean() - ours[:, column].mean()) < error
        assert abs(theirs[:, column].std() - ours[:, column].std()) < error
        quantiles = np.linspace(0.1, 0.9, 5)
        apart = np.abs(np.quantile(theirs[:, column], quantiles) - np.quantile(ours[:, column], quantiles))
        assert apart.max() <= 1 + 0.15 * theirs[:, column].std()
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width


def test_augmented_picture_is_a_resized_crop() -> None:
    data = encoded(photo(160, 120))
    preprocess = Preprocess(size=64)
    box = draw_box(120, 160, scale=(0.3, 0.6), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(5))
    crop = Image.open(io.BytesIO(data)).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = torch.from_numpy(np.array(crop.resize((64, 64), Image.BICUBIC))).permute(2, 0, 1).int()
    ours = Augment(scale=(0.3, 0.6)).apply(data, preprocess, np.random.default_rng(5))
    assert (ours.int() - expected).abs().max() <= 2
    mirrored = Augment(scale=(0.3, 0.6), flip=1.0).apply(data, preprocess, np.random.default_rng(5))
    assert torch.equal(mirrored, ours.flip(-1))


def test_same_generator_same_picture_and_other_ones_differ() -> None:
    data = encoded(photo(160, 120))
    augment = Augment(scale=(0.3, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), gray_prob=0.3)
    views = [augment.apply(data, Preprocess(size=48), np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(views[0], views[1])
    assert len({view.numpy().tobytes() for view in views}) == 4
    assert all(view.shape == (3, 48, 48) and view.dtype == torch.uint8 for view in views)


def test_gray_and_jitter_do_what_they_say() -> None:
    data = encoded(photo(64, 64), "PNG")
    preprocess = Preprocess(size=64)
    gray = Augment(gray_prob=1.0).apply(data, preprocess, np.random.default_rng(0))
    assert torch.equal(gray[0], gray[2])
    plain = Augment().apply(data, preprocess, np.random.default_rng(0))
    dark = Augment(jitter=(0.9, 0, 0, 0), jitter_prob=1.0)
    means = [dark.apply(data, preprocess, np.random.default_rng(seed)).float().mean() for seed in range(20)]
    assert min(means) < 0.8 * plain.float().mean() < 1.2 * plain.float().mean() < max(means)
    never = Augment(jitter=(0.9, 0.9, 0.9, 0.2), jitter_prob=0.0).apply(data, preprocess, np.random.default_rng(0))
    assert torch.equal(never, plain)


def test_scaled_decoding_is_nearly_exact_and_only_where_there_is_room() -> None:
    data = encoded(photo(900, 700), quality=92)
    for size, same in ((64, False), (112, False), (400, True)):
        preprocess = Preprocess(size=size)
        whole = Augment(scale=(0.8, 1.0), shrink=0).apply(data, preprocess, np.random.default_rng(1))
        shrunk = Augment(scale=(0.8, 1.0), shrink=1.5).apply(data, preprocess, np.random.default_rng(1))
        assert torch.equal(whole, shrunk) == same
        error = (whole.float() - shrunk.float()).square().mean()
        assert error < 255**2 / 10**4.5  # 45 dB
    with pytest.raises(BadSampleError, match="truncated"):
        Augment().apply(data[:-300], Preprocess(size=64), np.random.default_rng(0))
    with pytest.raises(BadSampleError, match="too_many"):
        Augment().apply(data, Preprocess(size=64), np.random.default_rng(0), limits=Limits(max_pixels=1000))
