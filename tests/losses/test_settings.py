"""Methods that are settings of InfoNCE: the files under configs/train say what their papers say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.losses.compare import assert_equal, only_term, value_and_gradients
from vlp import config
from vlp.losses.infonce import InfoNCE
from vlp.run import Run

CONFIGS = Path(__file__).resolve().parents[2] / "configs/train"


def _loss(name):
    run = config.load(Run, CONFIGS / f"{name}.yaml")
    (loss,) = run.losses
    return loss, run


def test_align(make_batch, make_features):
    """Smoothed cross entropy in both directions, one temperature that starts at 1; without smoothing it is CLIP."""
    loss, run = _loss("align")
    features, batch = make_features(6), make_batch(6)

    def align(f):
        z, own = f.scale * f.image @ f.text[:, 0].T, torch.arange(6)
        return sum(cross_entropy(logits, own, label_smoothing=0.1) for logits in (z, z.T)) / 2

    found = value_and_gradients(only_term(loss, batch), features)
    assert_equal(found, value_and_gradients(align, features))
    plain = loss.model_copy(update={"label_smoothing": 0.0})
    clip = value_and_gradients(only_term(InfoNCE(), batch), features)
    assert_equal(value_and_gradients(only_term(plain, batch), features), clip)
    assert run.model.model_copy(update={"arch": "vlp-nano"}).build().logit_scale.exp().item() == 1.0


def test_convirt(make_batch, make_features):
    """0.75 on pictures to texts at a temperature of 0.1; at one half it is CLIP at that temperature."""
    loss, run = _loss("convirt")
    features, batch = make_features(6, scale=3.0), make_batch(6)

    def convirt(f, weight=0.75):
        z, own = f.image @ f.text[:, 0].T / 0.1, torch.arange(6)
        return weight * cross_entropy(z, own) + (1 - weight) * cross_entropy(z.T, own)

    found = value_and_gradients(only_term(loss, batch), features)
    assert_equal(found, value_and_gradients(convirt, features))
    even = only_term(loss.model_copy(update={"image_to_text": 0.5}), batch)(features).item()
    clip = only_term(InfoNCE(), batch)(features._replace(scale=torch.tensor([10.0]).double())).item()
    assert even == pytest.approx(clip, abs=1e-12)
    assert run.data.sources[0].captions.pick == "sentences"


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("dcl", ["dcl"]),
        ("dclw", ["dclw"]),
        ("plip", ["sdm"]),
        ("distill", ["infonce", "distill", "feature_distill", "relation_distill"]),
        ("distill_stored", ["infonce", "distill"]),
        ("hard_negatives", ["hard_negative"]),
        ("negclip", ["negclip"]),
        ("matryoshka", ["matryoshka"]),
        ("koleo", ["infonce", "koleo"]),
    ],
)
def test_the_other_files_name_their_losses(name, losses):
    run = config.load(Run, CONFIGS / f"{name}.yaml")
    assert [loss.name for loss in run.losses] == losses
    if name == "plip":
        assert run.data.sources[0].kind == "label"
        assert run.data.sources[0].caption_stage() is not None
