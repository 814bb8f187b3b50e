"""The layout tower: colours as Python's colorsys names them, edges as drawn, cells in their places, tokens of cells."""

from __future__ import annotations

import colorsys

import pytest
import torch

from vlp.models import pretrained
from vlp.models.freeze import lock
from vlp.models.layout import ANGLES, CELLS, COARSE, FINE, LayoutDescriptor, edges
from vlp.models.model import Model


def shown(pixels: torch.Tensor, tower: LayoutDescriptor) -> torch.Tensor:
    """Pictures of [0, 1] as the transform gives them."""
    return (pixels - tower._mean) / tower._std


def colour(pixel: list[float], bins: int) -> int:
    number = 0
    for part in colorsys.rgb_to_hsv(*pixel):
        number = number * bins + min(int(part * bins), bins - 1)
    return number


def test_cells_count_the_colours_of_colorsys() -> None:
    tower, pixels = LayoutDescriptor(), torch.rand(2, 3, 16, 24)
    pixels[:, :, 0] = pixels[:, :1, 0]  # greys have no hue
    found = tower.cells(shown(pixels, tower))
    expected = torch.zeros(2, FINE**3 + COARSE**3, CELLS, CELLS)
    for picture, cells in zip(pixels.movedim(1, -1).tolist(), expected, strict=True):
        for y, row in enumerate(picture):
            for x, pixel in enumerate(row):
                for number in (colour(pixel, FINE), FINE**3 + colour(pixel, COARSE)):
                    cells[number, y * CELLS // 16, x * CELLS // 24] += 1 / 6  # 2 x 3 pixels a cell
    differ = (found[:, : FINE**3 + COARSE**3] - expected).abs() > 1e-3
    assert differ.sum() <= 4  # a value on the edge of two bins falls to either


@pytest.mark.parametrize(("turn", "angle"), [(False, 0), (True, ANGLES // 2)])
def test_edges_are_counted_by_their_direction(turn: bool, angle: int) -> None:
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 5:] = 1.0
    found = edges(picture.mT if turn else picture)[0]
    assert found.sum() > 0
    assert found[angle].sum() == found.sum()
    assert found[angle].sum(dim=1 if turn else 0).nonzero().flatten().tolist() == [2]


def test_places_of_coarse_colours_count_and_of_fine_ones_do_not() -> None:
    tower = LayoutDescriptor().eval()
    image = shown(torch.rand(2, 3, 16, 16), tower)
    moved = tower(image.roll(2, dims=3))
    fine, cells = tower(image)[:, : FINE**3], tower(image)[:, FINE**3 : -ANGLES * 16]
    torch.testing.assert_close(moved[:, : FINE**3], fine)
    rolled = cells.unflatten(1, (COARSE**3, CELLS, CELLS)).roll(1, dims=3).flatten(1)
    torch.testing.assert_close(moved[:, FINE**3 : -ANGLES * 16], rolled)
    assert (cells - rolled).abs().max() > 0.1


def test_descriptors_have_equal_spread_in_training() -> None:
    tower = LayoutDescriptor().train()
    parts = tower(shown(torch.rand(64, 3, 16, 16) * torch.rand(64, 3, 1, 1), tower)).split(
        [FINE**3, COARSE**3 * CELLS**2, ANGLES * 16], dim=1
    )
    spreads = [part.square().sum(1).mean().item() for part in parts]
    assert max(spreads) < 768.1
    assert spreads[2] == pytest.approx(768, rel=0.05)  # each edge block varies; a colour nobody has does not
    assert [part.shape[1] for part in parts] == [512, 1728, 64]


def test_the_map_has_all_of_the_picture_and_one_cell_stands_for_its_own_kind() -> None:
    tower = LayoutDescriptor().eval()
    image = shown(torch.rand(2, 3, 16, 16), tower)
    cells = tower.forward_features(image)
    torch.testing.assert_close(tower.forward_head(cells), tower(image))
    all_over = image[:, :, 4:6, 6:8].repeat(1, 1, 8, 8)
    one = tower.forward_head(cells[:, :, 2:3, 3:4])
    colours = slice(0, FINE**3 + COARSE**3 * CELLS**2)  # edges between neighbours are others
    torch.testing.assert_close(one[:, colours], tower(all_over)[:, colours])


def test_a_size_that_does_not_fall_into_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="60 x 64 pixels.*model.image_size to a multiple of 8"):
        LayoutDescriptor()(torch.zeros(1, 3, 60, 64))


def test_an_unlocked_model_learns_the_statistics_and_a_locked_one_does_not() -> None:
    image = torch.rand(4, 3, 64, 64)
    for locked in (False, True):
        dual = Model(arch="vlp-layout-64").build().train()
        if locked:
            lock(dual, image=True)
        dual.visual(image)
        assert bool(dual.visual.trunk.norm.running_mean.any()) is not locked


def test_a_saved_model_is_the_same_again_and_has_tokens(tmp_path) -> None:
    dual = Model(arch="vlp-layout-64").build().eval()
    pretrained.save(dual, tmp_path)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(pretrained.load(tmp_path).encode_image(image), dual.encode_image(image))
    assert dual.encode_image_tokens(image)[1].shape == (2, CELLS**2, 256)
