"""The momentum copy between now and the domain before: how it moves, what it adds, what comes back, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.test_teacher import nano, saved
from vlp.losses.continual import Topology
from vlp.losses.momentum import MomentumContrast
from vlp.losses.objective import Objective
from vlp.models import COMPANIONS, pretrained
from vlp.models.compatible import CompatibleMomentum
from vlp.models.dual import Dual
from vlp.models.freeze import lock
from vlp.models.momentum import moving

from .tiny import make_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("reference") / "model")


def moved(dual: Dual, *, seed: int = 3) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in dual.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))


def test_each_step_goes_to_the_model_and_to_the_reference(folder: Path) -> None:
    dual = nano()
    state = COMPANIONS.build({"name": "compatible_momentum", "pretrained": str(folder)}).build(dual)
    reference = dict(moving(pretrained.load(folder)))
    by_hand = {name: p.detach().clone() for name, p in moving(dual)}
    for step in (1, 2, 3):
        moved(dual, seed=step)
        now = dict(moving(dual))
        by_hand = {n: 0.9 * c + 0.05 * now[n].detach() + 0.05 * reference[n].detach() for n, c in by_hand.items()}
        state.after_step(dual, step=step, batch=make_batch())
    for name, tensor in zip(state.names, state.weights(), strict=True):
        torch.testing.assert_close(tensor, by_hand[name])
    assert pretrained.weights_hash(state.reference) == state.hash


def test_the_shares_add_up_to_one(folder: Path) -> None:
    plain = CompatibleMomentum(pretrained=str(folder), momentum=0.8, model=0.2, reference=0.0)
    dual = nano()
    state, before = plain.build(dual), [p.detach().clone() for _, p in moving(dual)]
    moved(dual)
    state.after_step(dual, step=1, batch=make_batch())
    for copied, old, (_, new) in zip(state.weights(), before, moving(dual), strict=True):
        torch.testing.assert_close(copied, torch.lerp(old, new.detach(), 0.2))
    with pytest.raises(ValueError, match=r"is 1\.1; the three shares must add up to 1"):
        CompatibleMomentum(pretrained=str(folder), model=0.15)


def test_it_adds_the_features_of_copy_and_reference(folder: Path) -> None:
    dual, batch = nano().train(), make_batch()
    state = CompatibleMomentum(pretrained=str(folder)).build(dual)
    moved(dual)
    batch = replace(batch, valid=batch.valid & torch.tensor([True, True, False, True]))
    drawn = torch.get_rng_state()
    filled = state.before_step(batch, dual)
    assert torch.equal(torch.get_rng_state(), drawn)
    with torch.no_grad():
        expected = pretrained.load(folder)(batch)
        started = nano()(batch)
    real = batch.valid[:, None] & batch.caption_mask
    for name, seen in (("reference", expected), ("momentum", started)):
        image, text = filled.extra[f"{name}/image"], filled.extra[f"{name}/text"]
        torch.testing.assert_close(image, seen.image * batch.valid[:, None])
        torch.testing.assert_close(text, seen.text * real[..., None])
        assert not image.requires_grad
    assert dual.training
    again = state.before_step(batch, dual).extra
    assert all(torch.equal(again[name], x) for name, x in filled.extra.items())


def test_it_comes_back_to_the_bit_and_only_with_its_reference(folder: Path, tmp_path: Path) -> None:
    dual, settings = nano(), CompatibleMomentum(pretrained=str(folder))
    state, again = settings.build(dual), settings.build(dual)
    moved(dual)
    state.after_step(dual, step=1, batch=make_batch())
    stored = {name: x.clone() for name, x in state.state_dict().items()}
    again.load_state_dict(stored)
    assert all(torch.equal(x, stored[name]) for name, x in again.state_dict().items())
    other = CompatibleMomentum(pretrained=str(saved(tmp_path / "other", seed=2))).build(dual)
    with pytest.raises(ValueError, match="began with a reference of hash"):
        other.load_state_dict(stored)
    with pytest.raises(ValueError, match="no reference; it is that of another companion"):
        again.load_state_dict({name: x for name, x in stored.items() if name != "reference"})
    with pytest.raises(ValueError, match="1 weights are not in both"):
        again.load_state_dict({**stored, "visual.more": torch.zeros(1)})


def test_half_precision_gives_floats(folder: Path) -> None:
    dual, batch = nano(), make_batch()
    whole = CompatibleMomentum(pretrained=str(folder)).build(dual).before_step(batch, dual).extra
    half = CompatibleMomentum(pretrained=str(folder), precision="bf16").build(dual).before_step(batch, dual).extra
    for name, x in whole.items():
        assert half[name].dtype is torch.float32
        torch.testing.assert_close(half[name], x, atol=0.05, rtol=0)


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its pictures have size \(32, 32\), the student's \(64, 64\)"):
        CompatibleMomentum(pretrained=str(folder)).build(nano(image_size=64))
    wide = nano()
    wide.visual.ln_post = torch.nn.LayerNorm(7)
    with pytest.raises(ValueError, match=r"other towers than the model \(visual.ln_post"):
        CompatibleMomentum(pretrained=str(folder)).build(wide)


def test_frozen_weights_stay_those_of_the_model(folder: Path) -> None:
    dual = nano()
    lock(dual, image=True)
    state = CompatibleMomentum(pretrained=str(folder)).build(dual)
    kept = dual.visual.conv1.weight.detach().clone()
    state.after_step(dual, step=1, batch=make_batch())
    assert torch.equal(dual.visual.conv1.weight, kept)
    assert state.copy.visual.conv1.weight is dual.visual.conv1.weight
    assert not any(name.startswith("visual.") for name in state.names)


def test_a_model_held_by_both_moves_less_than_one_that_is_not(folder: Path) -> None:
    """On other data the reference's relations change less with topology and compatible momentum than without."""
    torch.manual_seed(5)
    batch, seen = make_batch(8, absent=False), make_batch(8, absent=False)
    apart = []
    for losses in ([MomentumContrast(queue=False)], [MomentumContrast(queue=False), Topology(weight=5.0)]):
        dual = pretrained.load(folder).train()
        state = CompatibleMomentum(pretrained=str(folder)).build(dual)
        optimizer = torch.optim.AdamW([p for p in dual.parameters() if p.requires_grad], lr=3e-3)
        objective = Objective(losses)
        for step in range(8):
            filled = state.before_step(batch, dual)
            optimizer.zero_grad()
            objective(dual(filled), filled).total.backward()
            optimizer.step()
            state.after_step(dual, step=step + 1, batch=filled)
        with torch.no_grad():
            there = state.before_step(seen, dual)
            terms = Topology()(dual.eval()(seen), there)
        apart.append(sum(float(term) for term in terms.values()))
    assert apart[1] < 0.8 * apart[0]
