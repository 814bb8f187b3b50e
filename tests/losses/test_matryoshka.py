"""Matryoshka against the inner loss on features cut by hand."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch.nn.functional import normalize

from tests.losses.compare import assert_equal, only_term, value_and_gradients
from tests.losses.extra import gradients, summed
from tests.losses.heads import headed, real_batch, seeded
from tests.losses.small import real_of, situation, with_columns
from tests.losses.test_negatives import _loops as negclip_loops
from vlp import config
from vlp.losses import LOSSES
from vlp.losses.infonce import InfoNCE
from vlp.losses.loss import Loss
from vlp.losses.matryoshka import Matryoshka
from vlp.losses.sigmoid import Sigmoid
from vlp.types import Features


def _cut(features, width):
    def unit(x):
        return normalize(x[..., :width], dim=-1)

    extra = {"negclip/text": unit(features.extra["negclip/text"])}
    return features._replace(image=unit(features.image), text=unit(features.text), extra=extra)


@pytest.mark.parametrize("shares", [None, (2.0, 0.0, 0.5)])
def test_equals_the_inner_loss_on_cut_features(make_batch, make_features, shares):
    features, batch = situation(make_batch, make_features)
    for inner in (InfoNCE(label_smoothing=0.1), Sigmoid()):
        found = value_and_gradients(only_term(Matryoshka(of=inner, widths=(1, 3, 6), shares=shares), batch), features)
        weights = shares or (1 / 3,) * 3

        def by_hand(f, inner=inner, weights=weights):
            terms = [only_term(inner, batch)(_cut(f, m)) for m in (1, 3, 6)]
            return sum(w * term for w, term in zip(weights, terms, strict=True))

        assert_equal(found, value_and_gradients(by_hand, features))


def test_equals_loops_with_a_head(make_batch, make_features):
    features, batch = situation(make_batch, make_features)
    found = gradients(summed(Matryoshka(of="negclip", widths=(2, 5)), batch), features)

    def loops(f):
        return sum(negclip_loops(_cut(f, m), batch) for m in (2, 5)) / 2

    assert real_of(batch, 0)
    assert_equal(found, gradients(loops, features))


def test_the_whole_width_alone_is_the_inner_loss(make_batch, make_features):
    features, batch = make_features(5), make_batch(5)
    found = value_and_gradients(only_term(Matryoshka(of=InfoNCE(), widths=(6,)), batch), features)
    expected = value_and_gradients(only_term(InfoNCE(), batch), features)
    assert found["value"].item() == pytest.approx(expected["value"].item(), abs=1e-12)
    radial = (expected["image"] * features.image).sum(-1, keepdim=True) * features.image
    torch.testing.assert_close(found["image"], expected["image"] - radial, atol=1e-12, rtol=0)


def test_early_dimensions_get_the_gradient_of_every_width(make_batch, make_features):
    features, batch = make_features(6), make_batch(6)
    found = value_and_gradients(only_term(Matryoshka(of=InfoNCE(), widths=(2,)), batch), features)
    assert found["image"][:, 2:].abs().max() == 0
    assert found["image"][:, :2].abs().max() > 0


def test_tokens_are_cut_too(make_batch):
    class Tokens(InfoNCE):
        def __call__(self, features, batch):
            assert features.image_tokens.shape == (3, 4, 2)
            assert features.text_tokens.shape == (3, 1, 5, 2)
            return {"sum": features.image_tokens.square().sum() + features.text_tokens.square().sum()}

    unit = {"image": torch.ones(3, 6), "text": torch.ones(3, 1, 6), "scale": torch.ones(1)}
    tokens = {"image_tokens": torch.randn(3, 4, 6), "text_tokens": torch.randn(3, 1, 5, 6)}
    tokens["text_tokens"][:, :, 3:] = 0
    batch = make_batch(3, valid=[True, True, False])
    value = Matryoshka(of=Tokens(), widths=(2,))(Features(**unit, **tokens), batch)["sum"]
    assert value.item() == pytest.approx(
        2 * 4 + 2 * 3, abs=1e-4
    )  # all of unit norm, but for padding and the empty slot


def test_needs_heads_and_settings_are_those_of_the_inner_loss():
    class Model:
        dim = 32

    loss = LOSSES.build({"name": "matryoshka", "of": {"name": "sigmoid"}, "widths": [8, 32]})
    assert loss.needs == {"bias"}
    assert loss.batchless == frozenset()
    assert loss.heads(Model()) == {}
    assert set(LOSSES.build({"name": "matryoshka", "of": "negclip", "widths": [8]}).heads(Model())) == {"negclip"}
    with pytest.raises(ValueError, match=r"widths \[8, 64\].*32 dimensions"):
        LOSSES.build({"name": "matryoshka", "of": "infonce", "widths": [8, 64]}).heads(Model())
    for bad, match in (
        ({"widths": []}, "widths"),
        ({"widths": [4, 4]}, "only once"),
        ({"widths": [4, 8], "shares": [1.0]}, "1 for 2 widths"),
        ({"widths": [4], "of": {"name": "infonce", "weight": 2.0}}, "set weight of matryoshka"),
        ({"widths": [4], "of": "infonse"}, "infonce"),
        ({"widths": [4], "of": {"name": "matryoshka", "of": "infonce", "widths": [8]}}, "wider than 4, to which"),
    ):
        with pytest.raises(ValueError, match=match):
            LOSSES.build({"name": "matryoshka", "of": "infonce", **bad})
    again = LOSSES.build(config.parse_yaml(config.to_yaml(LOSSES.dump(loss))))
    assert again == loss


class Twins(Loss):
    """Compares widths of what its head made; also under a name that lies in no joint space."""

    joint: ClassVar[frozenset[str]] = frozenset({"twins/image"})

    def __call__(self, features, batch):
        width = features.image.shape[1]
        assert features.extra["twins/image"].shape[1:] == (2, width)
        assert features.extra["twins/other"].shape[1] == 6
        return {"sum": (features.extra["twins/image"] * features.image[:, None]).sum()}


def test_what_lies_in_the_joint_space_is_cut_and_nothing_else(make_batch, make_features):
    features, batch = make_features(5), make_batch(5, valid=[True] * 4 + [False])
    extra = {"twins/image": torch.randn(5, 2, 6).double(), "twins/other": torch.randn(5, 6)}
    extra["twins/image"][4] = torch.nan
    outer = Matryoshka(of=Matryoshka(of=Twins(), widths=(2, 3)), widths=(4, 6))
    assert outer.joint == Twins.joint
    assert Loss.joint == InfoNCE().joint == frozenset()
    assert outer(features._replace(extra=extra), batch)["sum"].isfinite()
    found = Matryoshka(of=Twins(), widths=(3,))(features._replace(extra=extra), batch)["sum"]
    image, twins = (normalize(x[:4, ..., :3], dim=-1) for x in (features.image, extra["twins/image"]))
    torch.testing.assert_close(found, (twins * image[:, None]).sum())


def test_tokens_of_a_reducer_are_cut_along(make_batch, make_features):
    """Wukong's mixtures stand in for patches, so FILIP on them is the same with the same cut."""
    features, batch = make_features(4), make_batch(4)
    patches, words = (
        torch.randn(4, 3, 6).double(),
        torch.randn(4, features.text.shape[1], batch.text.shape[2], 6).double(),
    )
    given = features._replace(text_tokens=normalize(words, dim=-1), image_tokens=normalize(patches, dim=-1))
    reduced = given._replace(image_tokens=None, extra={"wukong/tokens": given.image_tokens})
    found = Matryoshka(of="wukong", widths=(2, 5))(reduced, batch)
    expected = Matryoshka(of="filip", widths=(2, 5))(given, batch)
    torch.testing.assert_close(found, expected)


CUT = sorted(name for name in LOSSES.entries if name != "matryoshka" and LOSSES.resolve(name).cuts)
WHOLE = sorted(LOSSES.entries.keys() - {"matryoshka", *CUT})


def _everything():
    """A batch with all columns that any loss reads."""
    batch = with_columns(real_batch(), vocab=97)
    teacher = {side: batch.extra[f"teacher/{side}"] for side in ("image", "text")}
    return batch.plus({f"reference/{side}": rows for side, rows in teacher.items()})


@pytest.mark.parametrize("name", CUT)
def test_every_other_loss_follows_the_width(name):
    """Values at two widths differ, and dimensions behind the cut have no gradient."""
    torch.manual_seed(0)
    batch, found = _everything(), {}
    for width in (8, 16):
        loss = LOSSES.build({"name": "matryoshka", "of": name, "widths": [width]})
        model = headed([loss], init_bias=-3.0)
        seeded(0)
        features = model(batch)
        value = summed(loss, batch)(features)
        rows = [features.image, features.text, features.image_tokens, features.text_tokens]
        rows += [features.extra[column] for column in loss.joint if column in features.extra]
        grads = torch.autograd.grad(value, [x for x in rows if x is not None], allow_unused=True)
        assert any((x[..., :width] != 0).any() for x in grads if x is not None)
        assert all((x[..., width:] == 0).all() for x in grads if x is not None)
        found[width] = value.item()
    assert found[8] != found[16]


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_cut_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"of: {name} cannot be cut"):
        LOSSES.build({"name": "matryoshka", "of": name, "widths": [8]})
