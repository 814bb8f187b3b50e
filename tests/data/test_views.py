from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tests.data.test_decode import encoded, photo
from vlp.data import augment as module
from vlp.data.augment import Augment, augmented
from vlp.data.boxes import stored_box
from vlp.data.captions import Captions
from vlp.data.decode import from_pil
from vlp.data.distort import blur, move
from vlp.data.order import branch, keyed_rng
from vlp.data.stages import Item, drafted
from vlp.data.transforms import Preprocess
from vlp.types import BadSampleError, Sample

PREPROCESS = Preprocess(size=48)
SIMCLR = Augment(
    scale=(0.08, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), gray_prob=0.2, blur=(0.1, 2.0), solarize_prob=0.2
)
CLEAN = Augment(crop=False)


def item(data: bytes, seed: int = 0, **settings: Any) -> Item:
    sample = Sample("k", {"jpg": data, "txt": b"a"}, "s.tar", 0)
    rng = keyed_rng(seed)
    return drafted(sample, captions=Captions(), preprocess=PREPROCESS, rng=rng, **settings).finished()


def views(data: bytes, seed: int = 0, **settings: Any) -> Tensor:
    return item(data, seed, **settings).extra["views"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_views_are_keyed_differ_and_leave_the_picture_alone(kind: str) -> None:
    data = encoded(photo(90, 70), kind)
    found = views(data, augment=Augment(), views=(SIMCLR, SIMCLR, CLEAN))
    assert found.shape == (3, 3, 48, 48)
    assert found.dtype == torch.uint8
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[2], PREPROCESS(data)), "a view without anything is the evaluation transform"
    assert torch.equal(found, views(data, augment=Augment(), views=(SIMCLR, SIMCLR, CLEAN)))
    assert not torch.equal(found[0], views(data, 1, augment=Augment(), views=(SIMCLR,))[0])
    assert torch.equal(found[:1], views(data, augment=Augment(), views=(SIMCLR,))), "no view changes another"
    plain = item(data, augment=Augment(flip=0.5))
    assert torch.equal(plain.image, item(data, augment=Augment(flip=0.5), views=(SIMCLR, CLEAN)).image)
    assert "views" not in plain.extra
    assert torch.equal(item(data, augment=None, views=(SIMCLR,)).image, PREPROCESS(data))
    with pytest.raises(ValueError, match="so do views"):
        drafted(
            Sample("k", {"jpg": data, "txt": b"a"}, "s", 0), captions=Captions(), preprocess=PREPROCESS, views=(CLEAN,)
        )


def test_a_picture_is_decoded_once_at_a_scale_that_is_safe_for_every_view(monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls = encoded(photo(900, 700), quality=92), []
    for name in ("decode", "decode_shrunk"):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, real=real, name=name, **k: calls.append((name, a[1:])) or real(*a, **k)
        )
    wide, narrow = Augment(scale=(0.9, 1.0)), Augment(scale=(0.2, 0.25))
    for todo, expected in (
        ((wide,), [("decode_shrunk", (8,))]),
        ((wide, narrow), [("decode_shrunk", (4,))]),
        ((wide, CLEAN), [("decode", (module.Limits(),))]),
    ):
        calls.clear()
        found = augmented(data, [(augment, keyed_rng(n)) for n, augment in enumerate(todo)], PREPROCESS)
        assert calls == expected
        for number, (augment, image) in enumerate(zip(todo, found)):
            whole = augment.model_copy(update={"shrink": 0}).apply(data, PREPROCESS, keyed_rng(number))
            assert (
                whole.float() - image.float()
            ).square().mean() < 255**2 / 10**4  # 40 dB of noise, which has what a photograph has not


def test_a_stored_crop_is_cut_out_instead_of_a_random_one() -> None:
    data = encoded(photo(100, 80), "PNG")
    expected = PREPROCESS.resize(PREPROCESS.read(data)[:, 20:60, 10:85].contiguous(), (48, 48))
    found = augmented(
        data, [(Augment(), keyed_rng(0)), (Augment(), keyed_rng(1))], PREPROCESS, crop=[0.1, 0.25, 0.85, 0.75]
    )
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], Augment().apply(data, PREPROCESS, keyed_rng(1)))
    mirrored = augmented(data, [(Augment(flip=1.0), keyed_rng(0))], PREPROCESS, crop=[0.1, 0.25, 0.85, 0.75])
    assert torch.equal(mirrored[0], expected.flip(-1))
    assert stored_box([0.999, 0, 1, 0.001], 10, 10) == (0, 9, 1, 1), "at least a pixel"
    for crop in ([0.5, 0, 0.5, 1], [-0.1, 0, 1, 1], [0, 0, 1, 1.1], [0, 0.9, 1, 0.2]):
        with pytest.raises(BadSampleError, match="bad_crop"):
            stored_box(crop, 10, 10)


def test_blur_is_gaussian_and_moves_are_torchvisions() -> None:
    image = PREPROCESS(encoded(photo(64, 64), "PNG"))
    exact = F.gaussian_blur(image.float(), [25, 25], [2.0, 2.0])
    assert (blur(image, 2.0).float() - exact)[:, 8:-8, 8:-8].abs().mean() < 1.0
    rng = np.random.default_rng(3)
    angle, across, down = rng.uniform(-20, 20), round(rng.uniform(-4.8, 4.8)), round(rng.uniform(-4.8, 4.8))
    scale = rng.uniform(0.9, 1.1)
    peer = F.affine(
        Image.fromarray(image.permute(1, 2, 0).numpy()),
        angle,
        [across, down],
        scale,
        [0.0, 0.0],
        InterpolationMode.BILINEAR,
    )
    ours = move(image, degrees=20, shift=0.1, zoom=(0.9, 1.1), rng=np.random.default_rng(3))
    assert torch.equal(ours, from_pil(peer))
    assert torch.equal(move(image, degrees=0, shift=0, zoom=(1, 1), rng=rng), image)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"solarize_prob": 1.0}, lambda image: F.solarize(image, 128)),
        ({"gray_prob": 1.0}, lambda image: F.rgb_to_grayscale(image, 3)),
        ({"flip": 1.0}, lambda image: image.flip(-1)),
        ({"blur": (1.5, 1.5), "blur_prob": 1.0}, lambda image: blur(image, 1.5)),
        ({"blur": (1.5, 1.5), "blur_prob": 0.0}, lambda image: image),
    ],
)
def test_each_setting_does_what_it_says(settings: dict[str, Any], expected: Any) -> None:
    data = encoded(photo(60, 50), "PNG")
    found = Augment(crop=False, **settings).apply(data, PREPROCESS, keyed_rng(0))
    assert torch.equal(found, expected(PREPROCESS(data)))


def test_chances_are_as_set() -> None:
    image = PREPROCESS(encoded(photo(60, 50), "PNG"))
    often = Augment(crop=False, gray_prob=0.3, blur=(1.0, 1.0), blur_prob=0.6, solarize_prob=0.2)
    found = [often.distort(image, keyed_rng(seed)) for seed in range(400)]
    grays = sum(torch.equal(view[0], view[2]) for view in found)
    untouched = sum(torch.equal(view, image) for view in found)
    assert 85 < grays < 155  # 120, 3.8 deviations
    assert 57 < untouched < 123  # 0.7 * 0.4 * 0.8 = 0.224: 90


def test_branches_depend_on_the_key_alone_and_leave_the_generator_as_it_is() -> None:
    rng = keyed_rng(1, 2)
    numbers = [branch(rng, n).random() for n in (1, 2, 3)]
    assert numbers == [branch(keyed_rng(1, 2), n).random() for n in (1, 2, 3)]
    assert len({*numbers, branch(keyed_rng(1, 3), 1).random()}) == 4
    assert rng.random() == keyed_rng(1, 2).random()
