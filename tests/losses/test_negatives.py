"""NegCLIP against loops and InfoNCE, and its head on a real model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.losses.compare import assert_equal, only_term, value_and_gradients
from tests.losses.extra import gradients, summed
from tests.losses.small import M, real_of, situation
from tests.models.tiny import make_batch as tiny_batch
from tests.models.tiny import make_dual, random_ids
from vlp.losses.infonce import InfoNCE
from vlp.losses.negatives import CaptionNegatives, NegCLIP
from vlp.losses.objective import Objective
from vlp.models.model import Model


def _loops(features, batch):
    s, result, count = features.scale[0], [], 0
    negatives = [
        features.extra["negclip/text"][j, m]
        for j in range(len(batch))
        for m in range(M)
        if batch.valid[j] and batch.extra["negative_mask"][j, m].any()
    ]
    assert 2 <= len(negatives) < len(batch) * M
    for k in range(batch.caption_mask.shape[1]):
        real = real_of(batch, k)
        count += len(real)
        for i in real:
            positives = [j for j in real if batch.label[j] == batch.label[i]]
            rows = {j: s * (features.image[i] @ features.text[j, k]) for j in real}
            columns = {j: s * (features.image[j] @ features.text[i, k]) for j in real}
            wrong = sum((s * (features.image[i] @ y)).exp() for y in negatives)
            over_texts = (sum(z.exp() for z in rows.values()) + wrong).log()
            over_images = sum(z.exp() for z in columns.values()).log()
            result += [0.5 * (over_texts - rows[j]) / len(positives) for j in positives]
            result += [0.5 * (over_images - columns[j]) / len(positives) for j in positives]
    return sum(result) / count


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
def test_equals_loops(make_batch, make_features, how):
    features, batch = situation(make_batch, make_features)
    found = gradients(summed(NegCLIP(**how), batch), features)
    assert_equal(found, gradients(lambda f: _loops(f, batch), features))


def test_without_a_negative_it_is_infonce(make_batch, make_features):
    features, batch = situation(make_batch, make_features)
    none = batch.plus({"negative_mask": torch.zeros_like(batch.extra["negative_mask"])})
    found = value_and_gradients(only_term(NegCLIP(temperature=0.1), none), features)
    assert_equal(found, value_and_gradients(only_term(InfoNCE(temperature=0.1), none), features))


def test_only_pictures_see_the_negatives(make_batch, make_features):
    """A negative that equals its picture costs log 2 of that direction, half of the loss, at most; captions nothing."""
    eye = torch.eye(4, dtype=torch.float64)
    features = make_features(4)._replace(
        image=eye, text=eye[:, None], scale=torch.tensor([100.0]).double(), extra={"negclip/text": eye[:, None]}
    )
    batch = make_batch(4).plus({"negative_mask": torch.ones(4, 1, 3, dtype=torch.bool)})
    value = only_term(NegCLIP(), batch)(features).item()
    assert value == pytest.approx(0.5 * torch.tensor(2.0).log().item(), abs=1e-6)


def _with_negatives(seed: int = 0, *, absent: bool = True) -> Any:
    torch.manual_seed(seed)
    batch = tiny_batch(4, 2)
    ids = random_ids(8)
    mask = (torch.arange(12) <= ids.argmax(dim=1)[:, None]).reshape(4, 2, 12)
    if absent:
        mask[1, 1] = False
        mask[2] = False
    return batch.plus({"negative_text": ids.reshape(4, 2, 12), "negative_mask": mask})


def test_the_head_encodes_what_is_there_as_captions_are() -> None:
    dual, batch = make_dual(), _with_negatives()
    dual.heads["negclip"] = CaptionNegatives()
    made = dual(batch).extra["negclip/text"]
    assert made.shape == (4, 2, dual.dim)
    for i in range(4):
        for m in range(2):
            mask = batch.extra["negative_mask"][i, m]
            if not mask.any() or not batch.valid[i]:
                assert (made[i, m] == 0).all()
            else:
                alone = dual.encode_text(batch.extra["negative_text"][i, m][None], mask[None])
                torch.testing.assert_close(made[i, m], alone[0], atol=1e-5, rtol=0)


def test_a_rank_without_negatives_runs_the_tower_once_all_the_same() -> None:
    calls = []
    dual = make_dual()
    dual.heads["negclip"] = CaptionNegatives()
    dual.text.transformer.resblocks[0].register_forward_hook(lambda *args: calls.append(len(args[1][0])))
    batch = _with_negatives()
    dual(batch)
    some = len(calls)
    none = batch.plus({"negative_mask": torch.zeros_like(batch.extra["negative_mask"])})
    made = dual(none).extra["negclip/text"]
    assert len(calls) == 2 * some
    assert (made == 0).all()
    assert made.requires_grad


def test_steps_on_a_real_model_lower_it() -> None:
    dual = make_dual().train()
    loss = NegCLIP()
    dual.heads.update(loss.heads(dual))
    objective, batch = Objective([loss]), _with_negatives(absent=False)
    optimizer = torch.optim.AdamW(dual.parameters(), lr=3e-3)
    seen = []
    for _ in range(12):
        value = objective(dual(batch), batch)
        optimizer.zero_grad()
        value.total.backward()
        assert all(p.grad is not None for p in dual.parameters() if p.requires_grad)
        optimizer.step()
        seen.append(value.total.item())
    assert seen[-1] < 0.7 * seen[0]


def test_negatives_get_the_prefix_of_their_source(make_batch):
    dual = Model(arch="vlp-nano", prefix=1).build().eval()
    dual.prefix.serve(["caption", "label"])
    batch = replace(make_batch(2, size=32), source=torch.tensor([0, 1]))
    ids, mask = batch.text, batch.token_mask
    found = CaptionNegatives()(batch.plus({"negative_text": ids, "negative_mask": mask}), SimpleNamespace(dual=dual))
    for row, kind in enumerate(["caption", "label"]):
        with dual.prefixed(kind):
            expected = dual.encode_text(ids[row], mask[row])
        torch.testing.assert_close(found["negclip/text"][row], expected)
