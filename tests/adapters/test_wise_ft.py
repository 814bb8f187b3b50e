"""Weights between two ends, and the choice of the place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters.weight_towers import (
    assert_untouched,
    batch,
    make_encoder,
    make_task,
    trace,
    zero_shot_logits,
)
from vlp.adapters.finetune import Finetune
from vlp.adapters.selection import folds, score
from vlp.adapters.tuned import HEAD, TunedClassifier, own_state
from vlp.adapters.wise_ft import GRID, WiseFT
from vlp.models import pretrained

FAST = Finetune(epochs=6, lr=3e-3, batch_size=6)
BOTH = FAST.model_copy(update={"towers": "both"})


@pytest.mark.parametrize("how", ["lerp", "slerp"])
@pytest.mark.parametrize("of", [FAST, BOTH])
def test_the_ends_are_the_backbone_and_the_tuned_model_bit_for_bit(of, how):
    encoder = make_encoder()
    task = make_task(encoder)
    before = trace(encoder.dual)
    image = batch(task.validation)
    first = WiseFT(of=of, alpha=0, how=how).fit(encoder, task)
    last = WiseFT(of=of, alpha=1, how=how).fit(encoder, task)
    assert torch.equal(first(image), zero_shot_logits(encoder, task, task.validation))
    assert torch.equal(last(image), of.fit(encoder, task)(image))
    assert_untouched(encoder.dual, before)


def test_between_them_every_tensor_and_the_head_are_interpolated():
    encoder = make_encoder()
    task = make_task(encoder)
    made, tuned = WiseFT(of=FAST, alpha=0.3).fit(encoder, task), FAST.fit(encoder, task)
    own = own_state(encoder, task, list(tuned.state))
    assert set(made.state) == set(own)
    for name, tensor in made.state.items():
        torch.testing.assert_close(tensor, 0.7 * own[name] + 0.3 * tuned.state[name], atol=1e-6, rtol=0)


def test_alpha_is_the_best_on_validation_the_first_of_equals(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder, held=5)
    FAST.fit(encoder, task).save(tmp_path)
    made = WiseFT(of=FAST).fit(encoder, task)
    scores = []
    for alpha in GRID:
        logits = WiseFT(file=str(tmp_path), alpha=alpha).fit(encoder, task)(batch(task.validation))
        scores.append(score(logits, task.validation.known))
    best = max(range(len(GRID)), key=lambda place: scores[place])
    assert made.about["alpha"] == GRID[best] > 0
    assert made.about["selection"]["split"] == "validation"
    assert made.about["selection"]["candidates"] == 21
    assert made.about["selection"]["acc1"] == scores[best].accuracy


def test_without_validation_folds_choose_and_one_shot_takes_the_default(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder, shots=2, held=0)
    made = WiseFT(of=FAST).fit(encoder, task)
    logits, label = {alpha: [] for alpha in GRID}, []
    for number, (learn, judge) in enumerate(folds(task).folds):
        label.append(judge.known)
        FAST.fit(encoder, replace(task, support=learn)).save(tmp_path / str(number))
        for alpha in GRID:
            part = WiseFT(file=str(tmp_path / str(number)), alpha=alpha).fit(encoder, task)
            logits[alpha].append(part(batch(judge)))
    best = max(GRID, key=lambda alpha: score(torch.cat(logits[alpha]), torch.cat(label)))
    assert (made.about["alpha"], made.about["selection"]["split"]) == (best, "train")
    whole = FAST.fit(encoder, task).state["visual.proj"]
    own = encoder.dual.state_dict()["visual.proj"]
    torch.testing.assert_close(made.state["visual.proj"], (1 - best) * own + best * whole, atol=1e-6, rtol=0)
    one = WiseFT(of=FAST).fit(encoder, make_task(encoder, shots=1, held=0))
    assert (one.about["alpha"], one.about["selection"]["split"]) == (0.5, "none")


def test_the_tuned_end_may_lie_on_disk_as_a_classifier_or_a_model(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    tuned = BOTH.fit(encoder, task)
    tuned.save(tmp_path / "classifier")
    other = make_encoder()
    other.dual.load_state_dict({name: x for name, x in tuned.state.items() if name != HEAD}, strict=False)
    pretrained.save(other.dual, tmp_path / "model")
    image = batch(task.validation)
    for name in ("classifier", "model"):
        made = WiseFT(file=str(tmp_path / name), alpha=1).fit(encoder, task)
        assert torch.equal(made(image), tuned(image))
    with pytest.raises(ValueError, match="knows other classes"):
        WiseFT(file=str(tmp_path / "classifier"), alpha=1).fit(encoder, replace(task, names=("a", "b", "c")))
    with pytest.raises(ValueError, match="use that model, or fit again"):
        WiseFT(file=str(tmp_path / "classifier"), alpha=1).fit(make_encoder(seed=1), task)
    with pytest.raises(ValueError, match="no such file or folder"):
        WiseFT(file=str(tmp_path / "nothing"), alpha=1).fit(encoder, task)


def test_what_it_made_is_a_tuned_classifier_that_comes_back(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    made = WiseFT(of=FAST, alpha=0.5).fit(encoder, task)
    made.save(tmp_path)
    back = TunedClassifier.load(tmp_path, encoder)
    assert torch.equal(back(batch(task.support)), made(batch(task.support)))
    assert back.about["settings"]["of"]["name"] == "finetune"


def test_what_its_end_chose_is_in_its_record(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder, shots=2, held=0)
    inner = WiseFT(of=FAST)
    made = WiseFT(of=inner, alpha=0.5).fit(encoder, task)
    alone = inner.fit(encoder, task)
    assert made.about["selection"] == {"split": "train", "candidates": 1, "of": [alone.about["selection"]]}
    both = WiseFT(of=inner).fit(encoder, make_task(encoder)).about["selection"]
    assert (both["split"], both["of"][0]["split"], both["of"][0]["candidates"]) == ("validation", "validation", 21)
    alone.save(tmp_path)
    read = WiseFT(file=str(tmp_path), alpha=0.5).fit(encoder, make_task(encoder, shots=1, held=0))
    assert read.about["selection"]["of"] == [alone.about["selection"]]
    assert "of" not in WiseFT(of=FAST, alpha=0.5).fit(encoder, task).about["selection"]
