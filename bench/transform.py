"""Our training transform beside open_clip's, from JPEG bytes to a random crop of the model's size.

Ours ends in uint8, which the model normalises on its device; open_clip's ends in normalised floats. The crops are drawn
by lot and so cannot be compared; compared are the evaluation transforms (within 2 of 255) and, on the very crop that
ours drew, Pillow's resize: within 2 and 65 dB. Not so where ours decodes a large JPEG at a fraction of its size (to 64
pixels): there it is near, 45 dB, and a row with the same pictures decoded whole says what is exact.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from open_clip.transform import image_transform
from paired import Case, UnequalError, arguments, main, parse
from PIL import Image
from torch import Tensor

from vlp.data.augment import Augment
from vlp.data.boxes import draw_box
from vlp.data.transforms import Preprocess

SHAPES = ((341, 256), (500, 375))
LEVELS = 2
EXACT, NEAR = 65.0, 45.0  # dB; a bilinear resize in place of the bicubic has 52


def cases(count: int) -> Iterator[Case]:
    for width, height in SHAPES:
        pictures = [smooth_jpeg(width, height, seed) for seed in range(count)]
        kilobytes = sum(map(len, pictures)) / count / 1024
        title = f"{count} of {width}x{height} ({kilobytes:.0f} kB)"
        yield case(f"{title} to 224", pictures, 224, Augment(), floor=EXACT)
        yield case(f"{title} to 64", pictures, 64, Augment(), floor=NEAR)
        yield case(f"{title} to 64, decoded whole", pictures, 64, Augment(shrink=0), floor=EXACT)


def case(name: str, pictures: list[bytes], size: int, augment: Augment, *, floor: float) -> Case:
    preprocess = Preprocess(size=size)
    theirs = image_transform(size, is_train=True)

    def run_ours() -> list[Tensor]:
        rng = np.random.default_rng(0)
        return [augment.apply(data, preprocess, rng) for data in pictures]

    def run_theirs() -> list[Tensor]:
        return [theirs(Image.open(io.BytesIO(data))) for data in pictures]

    return Case(name, run_ours, run_theirs, checker(pictures, preprocess, augment, floor))


def checker(pictures: list[bytes], preprocess: Preprocess, augment: Augment, floor: float) -> Callable[..., str]:
    def check(ours: list[Tensor], theirs: list[Tensor]) -> str:
        if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
            raise UnequalError("the shapes of the crops")
        evaluation = image_transform(preprocess.size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
        whole = max(
            int((preprocess(data).int() - (evaluation(Image.open(io.BytesIO(data))) * 255).round().int()).abs().max())
            for data in pictures
        )
        rng = np.random.default_rng(0)
        crops = torch.stack([pillow_crop(data, preprocess, augment, rng) for data in pictures]).int()
        apart = (torch.stack(ours).int() - crops).abs()
        noise = float(apart.double().square().mean())
        decibel = 10 * math.log10(255**2 / noise) if noise else math.inf
        found = f"evaluation within {whole} of 255, same crop within {int(apart.max())} ({decibel:.0f} dB)"
        if whole > LEVELS or decibel < floor or (floor == EXACT and int(apart.max()) > LEVELS):
            raise UnequalError(found)
        return found

    return check


def pillow_crop(data: bytes, preprocess: Preprocess, augment: Augment, rng: np.random.Generator) -> Tensor:
    """uint8 [3, H, W]: the crop that our transform draws from this generator, made the way open_clip makes its own."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = draw_box(image.height, image.width, scale=augment.scale, ratio=augment.ratio, rng=rng)
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return torch.from_numpy(np.array(cut.resize(preprocess.size[::-1], Image.Resampling.BICUBIC))).permute(2, 0, 1)


def smooth_jpeg(width: int, height: int, seed: int) -> bytes:
    """Random clouds with fainter detail the finer it is, about as many bytes a pixel as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for cell in (64, 32, 16, 8, 4, 2):
        noise = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, dtype=np.float64) - 128) * cell / 80
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    options = parse(arguments(__doc__, rounds=9))
    main(cases(6 if options.quick else 40), options)
