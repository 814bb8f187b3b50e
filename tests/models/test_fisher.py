"""The tower of Fisher vectors: gradients of a likelihood, words of the first batch, edges as drawn, save and load."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.functional import normalize

from vlp.models import pretrained
from vlp.models.fisher import ANGLES, FisherDescriptor, FisherVector, patches, turned_edges
from vlp.models.model import Model

SHARES = (0.2, 0.3, 0.5)


def fitted() -> tuple[FisherVector, torch.Tensor]:
    """Words of three clouds along the first of six axes, and the patches of them."""
    generator = torch.Generator().manual_seed(0)
    words = FisherVector(6, kept=4, words=3)
    x = torch.randn(3000, 6, generator=generator) * torch.tensor([1.0, 3.0, 2.0, 1.0, 0.1, 0.1])
    x[:, 0] += torch.tensor([-20.0, 0.0, 20.0]).repeat_interleave(torch.tensor([int(3000 * s) for s in SHARES]))
    words.fit(x)
    return words, x


def test_the_vector_is_the_gradient_of_the_likelihood() -> None:
    words, x = fitted()
    picture = x[None, :50]
    means, deviations = words.means.clone().requires_grad_(), words.variances.sqrt().requires_grad_()
    gaussians = Independent(Normal(means, deviations), 1)
    mixture = MixtureSameFamily(Categorical(words.weight), gaussians)
    log_likelihood = mixture.log_prob((picture[0] - words.mean) @ words.axes).sum()
    by_mean, by_deviation = torch.autograd.grad(log_likelihood, [means, deviations])
    information = 50 * words.weight.sqrt()[:, None] / deviations.detach()
    expected = torch.cat([by_mean / information, by_deviation / (information * math.sqrt(2))]).flatten()
    expected = normalize(expected.sign() * expected.abs().sqrt(), dim=0)
    torch.testing.assert_close(words(picture)[0], expected, atol=1e-4, rtol=1e-3)


def test_fitting_whitens_the_patches_and_finds_their_clouds() -> None:
    words, x = fitted()
    torch.testing.assert_close(torch.cov(((x - words.mean) @ words.axes).mT), torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(words.weight, torch.tensor(SHARES), atol=1e-2, rtol=0)
    back = words.means @ torch.linalg.pinv(words.axes) + words.mean
    torch.testing.assert_close(back[:, 0], torch.tensor([-20.0, 0.0, 20.0]), atol=0.2, rtol=0)


@pytest.mark.parametrize(("angle", "turns"), [(0, 0), (2, 3), (4, 2), (6, 1)])
def test_edges_are_counted_towards_the_lighter_side(angle: int, turns: int) -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 16:] = 1.0
    found = turned_edges(picture.rot90(turns, dims=(2, 3)))[0].sum(dim=(1, 2))
    assert found[angle] > 0
    assert found[angle].item() == pytest.approx(found.sum().item(), rel=1e-4)


def test_an_edge_between_two_directions_is_shared() -> None:
    slope = torch.arange(32.0)[:, None] * math.sin(math.pi / 8) + torch.arange(32.0) * math.cos(math.pi / 8)
    found = turned_edges(slope.expand(1, 3, -1, -1))[0, :, 2:-2, 2:-2].mean(dim=(1, 2))
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert len(found) == ANGLES


def test_patches_hold_the_colours_of_their_cells_in_order() -> None:
    picture = torch.rand(2, 3, 24, 28)
    edges, colours = patches(picture)
    assert edges.shape == (2, 2, 128)  # at 0, 0 and 0, 4; the smaller scale has none
    cell = picture[1, :, 6:12, 4 + 12 : 4 + 18]  # second row, third column of the second patch
    found = colours[1, 1].unflatten(0, (16, 6))[4 + 2]
    torch.testing.assert_close(found[:3], cell.mean(dim=(1, 2)))
    torch.testing.assert_close(found[3:], cell.std(dim=(1, 2), correction=0), atol=1e-4, rtol=1e-4)


def test_a_picture_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="16 x 64 pixels has no patch of 24 x 24"):
        patches(torch.zeros(1, 3, 16, 64))


def test_words_are_fitted_to_the_first_batch_of_training_only() -> None:
    tower, first, second = FisherDescriptor(words=2), torch.randn(6, 3, 32, 32), torch.randn(6, 3, 32, 32)
    tower.eval()(first)
    assert not tower.edges.fitted
    tower.train()(first)
    assert tower.edges.fitted
    assert tower.colours.fitted
    words = tower.edges.means.clone()
    tower(second)
    assert torch.equal(tower.edges.means, words)
    again = FisherDescriptor(words=2)
    again.train()(first)
    assert torch.equal(again.edges.means, words)  # however the words began


def _words_of_a_share(rank: int, world: int) -> torch.Tensor:
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = FisherDescriptor(words=2)
    tower.fit(pixels.chunk(world)[rank])
    return tower.edges.means


@pytest.mark.slow
def test_two_processes_find_the_words_of_one(spawn) -> None:
    one = _words_of_a_share(0, 1)
    assert all(torch.equal(words, one) for words in spawn(_words_of_a_share, 2))


def test_blocks_have_equal_spread_in_training() -> None:
    tower = FisherDescriptor(words=2).train()
    out = tower(torch.rand(32, 3, 32, 32) * torch.rand(32, 3, 1, 1))
    parts = out[:, 2304:].split([2 * 2 * 48, 2 * 2 * 32], dim=1)
    assert [part.square().sum(1).mean().item() for part in parts] == pytest.approx([768, 768], rel=0.05)


def test_a_saved_model_is_the_same_again_words_and_all(tmp_path) -> None:
    dual = Model(arch="vlp-fisher-96").build()
    image = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    dual.train().encode_image(image)
    assert dual.visual.trunk.edges.fitted
    pretrained.save(dual.eval(), tmp_path)
    loaded = pretrained.load(tmp_path)
    torch.testing.assert_close(loaded.encode_image(image), dual.encode_image(image))
    assert dual.encode_image_tokens(image)[1].shape == (4, 1, 256)
