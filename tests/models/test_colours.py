"""The colour tower: counts as Python's colorsys names them, shapes do not matter, and the tokens' mean is the whole."""

from __future__ import annotations

import colorsys

import pytest
import torch

from vlp.models import pretrained
from vlp.models.colours import ColourHistogram
from vlp.models.model import Model


def shown(pixels: torch.Tensor, tower: ColourHistogram) -> torch.Tensor:
    """Pictures of [0, 1] as the transform gives them."""
    return (pixels - tower._mean) / tower._std


def loop(pixel: list[float], bins: int) -> int:
    number = 0
    for part in colorsys.rgb_to_hsv(*pixel):
        number = number * bins + min(int(part * bins), bins - 1)
    return number


@pytest.mark.parametrize("bins", [3, 8])
def test_colours_are_those_of_colorsys(bins: int) -> None:
    tower, pixels = ColourHistogram(bins), torch.rand(2, 3, 9, 7)
    pixels[:, :, 0] = pixels[:, :1, 0]  # greys have no hue
    numbers = tower.colours(shown(pixels, tower))
    edge = 0
    for picture, found in zip(pixels.movedim(1, -1), numbers, strict=True):
        for pixel, number in zip(picture.flatten(0, 1).tolist(), found.flatten().tolist(), strict=True):
            edge += loop(pixel, bins) != number  # a value on the edge of two bins falls to either
    assert edge <= 2


def test_only_shares_of_colours_count_and_tokens_average_to_the_whole() -> None:
    tower = ColourHistogram().eval()
    image = shown(torch.rand(2, 3, 8, 8), tower)
    mixed = image.flatten(2)[:, :, torch.randperm(64)].unflatten(2, (8, 8))
    torch.testing.assert_close(tower(mixed), tower(image))
    torch.testing.assert_close(tower.forward_head(tower.forward_features(image)), tower(image))
    shares = tower.forward_features(image).mean(dim=(2, 3))
    assert shares.sum(1).tolist() == pytest.approx([1.0, 1.0])
    torch.testing.assert_close(tower(image), shares.sqrt() / (1 + tower.norm.eps) ** 0.5)


def test_a_saved_model_is_the_same_again(tmp_path) -> None:
    dual = Model(arch="vlp-colours-64").build().eval()
    pretrained.save(dual, tmp_path)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(pretrained.load(tmp_path).encode_image(image), dual.encode_image(image))
    assert dual.encode_image_tokens(image[:, :, :16, :16])[1].shape == (2, 256, 256)
