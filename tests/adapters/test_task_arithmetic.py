"""Sums of task vectors, and the choice of how much of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters.weight_towers import (
    RESNET,
    assert_untouched,
    batch,
    examples,
    make_encoder,
    make_task,
    trace,
    zero_shot_logits,
)
from vlp.adapters.finetune import Finetune
from vlp.adapters.selection import Score, score
from vlp.adapters.task_arithmetic import GRID, TaskArithmetic
from vlp.adapters.tuned import HEAD
from vlp.adapters.wise_ft import WiseFT

FAST = Finetune(epochs=6, lr=3e-3, batch_size=6, train_head=False)


@pytest.fixture
def saved(tmp_path):
    """Encoder, task, and two models tuned on other tasks."""
    encoder = make_encoder()
    task = make_task(encoder)
    paths = []
    for seed in (1, 2):
        other = replace(
            task, names=("x", "y", "z"), support=examples(encoder, 3, seed=seed), validation=None, seed=seed
        )
        paths.append(str(tmp_path / str(seed)))
        FAST.fit(encoder, other).save(tmp_path / str(seed))
    return encoder, task, paths


def test_sums_are_the_loop_and_nothing_of_them_is_zero_shot_bit_for_bit(saved):
    encoder, task, paths = saved
    before = trace(encoder.dual)
    made = TaskArithmetic(files=paths[:1], negate=paths[1:], lam=0.4).fit(encoder, task)
    own = encoder.dual.state_dict()
    from safetensors.torch import load_file

    one, two = (load_file(f"{path}/classifier.safetensors") for path in paths)
    for name, tensor in made.state.items():
        if name != HEAD:
            want = own[name] + 0.4 * (one[name] - own[name]) - 0.4 * (two[name] - own[name])
            torch.testing.assert_close(tensor, want, atol=1e-6, rtol=0)
    zero = TaskArithmetic(files=paths, lam=0).fit(encoder, task)
    assert torch.equal(zero(batch(task.validation)), zero_shot_logits(encoder, task, task.validation))
    assert torch.equal(zero.state[HEAD], made.state[HEAD])
    assert_untouched(encoder.dual, before)


def test_one_whole_vector_is_the_tuned_model():
    encoder = make_encoder()
    task = make_task(encoder)
    made, tuned = TaskArithmetic(of=(FAST,), lam=1).fit(encoder, task), FAST.fit(encoder, task)
    torch.testing.assert_close(made(batch(task.support)), tuned(batch(task.support)), atol=1e-3, rtol=0)


def test_lambda_is_the_best_on_validation_and_without_it_by_folds(saved):
    encoder, task, paths = saved
    made = TaskArithmetic(files=paths).fit(encoder, task)
    reached = {}
    for lam in GRID:
        logits = TaskArithmetic(files=paths, lam=lam).fit(encoder, task)(batch(task.validation))
        reached[lam] = score(logits, task.validation.known)
    assert made.about["lam"] == max(GRID, key=reached.__getitem__)
    assert made.about["selection"]["acc1"] == reached[made.about["lam"]].accuracy
    train = TaskArithmetic(of=(FAST,)).fit(encoder, make_task(encoder, shots=2, held=0))
    assert train.about["selection"]["split"] == "train"
    none = TaskArithmetic(files=paths).fit(encoder, make_task(encoder, shots=1, held=0))
    assert (none.about["lam"], none.about["selection"]["split"]) == (0.3, "none")


def test_forgetting_goes_as_far_as_the_control_task_allows():
    scores = {lam: Score(0.8 if lam <= 0.4 else 0.77 if lam <= 0.6 else 0.1, 0.0) for lam in GRID}
    chosen = TaskArithmetic(negate=("a",))._chosen(scores, "validation")
    assert (chosen.value, chosen.selection["acc1"]) == (0.6, 0.77)
    assert TaskArithmetic(negate=("a",), keep=1.0)._chosen(scores, "validation").value == 0.4
    assert TaskArithmetic(negate=("a",), files=("b",))._chosen(scores, "validation").value == 0.0


def test_batchnorm_is_measured_again_where_weights_are_moved():
    encoder = make_encoder(RESNET)
    task = make_task(encoder)
    made = TaskArithmetic(of=(FAST,), lam=0.5).fit(encoder, task)
    variances = [tensor for name, tensor in made.state.items() if name.endswith("running_var")]
    assert min(float(tensor.min()) for tensor in variances) >= 0
    half = (
        encoder.dual.state_dict()["visual.bn1.running_mean"] + FAST.fit(encoder, task).state["visual.bn1.running_mean"]
    ) / 2
    assert not torch.allclose(made.state["visual.bn1.running_mean"], half, atol=1e-4)
    zero = TaskArithmetic(of=(FAST,), lam=0).fit(encoder, task)
    assert torch.equal(zero(batch(task.validation)), zero_shot_logits(encoder, task, task.validation))


def test_nothing_to_add_is_refused():
    encoder = make_encoder()
    with pytest.raises(ValueError, match="task_arithmetic has nothing to merge"):
        TaskArithmetic().fit(encoder, make_task(encoder))


def test_what_its_ends_chose_is_in_its_record(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    part = WiseFT(of=FAST)
    chosen = part.fit(encoder, task)
    added = TaskArithmetic(of=(part,)).fit(encoder, task).about["selection"]
    assert (added["split"], added["of"]) == ("validation", [chosen.about["selection"]])
    chosen.save(tmp_path)
    none = make_task(encoder, shots=1, held=0)
    for asked in ({"files": (str(tmp_path),)}, {"negate": (str(tmp_path),)}):
        found = TaskArithmetic(lam=0.3, **asked).fit(encoder, none).about["selection"]
        assert (found["split"], found["of"]) == ("validation", [chosen.about["selection"]])
