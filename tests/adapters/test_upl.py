"""UPL: which pictures it believes, by loops; the mean of members; nothing learned is zero-shot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters.prompt_towers import NAMES, assert_untouched, encoder_of, state_of, task_of
from vlp.adapters.adapter import class_weights
from vlp.adapters.coop import CoOp
from vlp.adapters.prompted import ContextClassifier
from vlp.adapters.pseudo_shots import PseudoLabels, leaderboard, logits_over, top_of_predicted
from vlp.adapters.task import Examples, Task
from vlp.adapters.upl import UPL
from vlp.adapters.zeroshot import ZeroShot

PLAIN = tuple(name.replace("_", " ") for name in NAMES)


def pool_of(encoder, *, seed=0):
    """A task without labels; the names as prompts have them, so that words mean the same in templates."""
    task = task_of(encoder, shots=5, seed=seed)
    return Task(PLAIN, ("a photo of a {}.",), unlabelled=replace(task.support, label=None), seed=seed)


def sure_by_loops(logits, most):
    found = []
    for c in range(logits.shape[1]):
        mine = [row for row in range(len(logits)) if max(range(logits.shape[1]), key=lambda j: logits[row, j]) == c]
        mine.sort(key=lambda row: -float(logits[row].double().softmax(0)[c]))
        found += [(row, c) for row in mine[:most]]
    return found


def leaders_by_loops(logits, most):
    found = []
    for c in range(logits.shape[1]):
        ranked = sorted(range(len(logits)), key=lambda row: -float(logits[row].double().softmax(0)[c]))
        found += [(row, c) for row in ranked[:most]]
    return found


@pytest.mark.parametrize("most", [1, 3, 50])
def test_who_is_believed_by_loops(most):
    logits = 4 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 2] -= 100  # predicted nowhere
    for choose, by_loops in ((top_of_predicted, sure_by_loops), (leaderboard, leaders_by_loops)):
        believed = choose(logits, most)
        assert list(zip(believed.rows.tolist(), believed.label.tolist(), strict=True)) == by_loops(logits, most)
    assert top_of_predicted(logits, most).label.bincount(minlength=6)[2] == 0
    assert leaderboard(logits, most).label.bincount().tolist() == [min(most, 40)] * 6


def test_sure_ones_are_told_apart_beyond_what_single_precision_can():
    logits = torch.tensor([[30.0, 0.0], [32.0, 0.0], [31.0, 0.0], [0.0, 9.0]])
    assert top_of_predicted(logits, 2).rows.tolist() == [1, 2, 3]


def test_pseudolabels_as_shots_and_in_records():
    believed = PseudoLabels(torch.tensor([2, 0]), torch.tensor([1, 3]))
    pool = Examples(torch.eye(3), keys=("a", "b", "c"), pictures=[10, 20, 30])
    shots = believed.shots(pool)
    assert (shots.known.tolist(), shots.pictures, shots.keys) == ([1, 3], [30, 10], ("c", "a"))
    assert believed.record(pool, "wxyz") == {
        "rows": [2, 0],
        "keys": ["c", "a"],
        "label": [1, 3],
        "count": [0, 1, 0, 1],
    }
    assert not believed.same(None)
    assert believed.same(PseudoLabels(torch.tensor([2, 0]), torch.tensor([1, 3])))
    assert not believed.same(PseudoLabels(torch.tensor([2, 1]), torch.tensor([1, 3])))


def test_it_is_the_mean_of_coop_on_what_is_believed():
    encoder = encoder_of()
    task, before = pool_of(encoder), state_of(encoder)
    made = UPL(shots=2, members=3, epochs=2, tokens=3, lr=0.1).fit(encoder, task)
    assert_untouched(encoder, before)
    said = ZeroShot().fit(encoder, task)(task.unlabelled.image)
    rows, label = zip(*sure_by_loops(said, 2), strict=True)
    assert made.about["pseudolabels"]["rows"] == list(rows)
    assert made.about["pseudolabels"]["label"] == list(label)
    support = Examples(task.unlabelled.image[list(rows)], torch.tensor(label))
    seeds = torch.randint(2**31, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    coop = CoOp(epochs=2, tokens=3, lr=0.1)
    members = [coop.fit(encoder, replace(task, unlabelled=None, support=support, seed=seed)) for seed in seeds]
    want = sum(one(task.unlabelled.image) for one in members) / 3
    torch.testing.assert_close(made(task.unlabelled.image), want, atol=1e-4, rtol=0)
    assert made.learned["context"].shape == (3, 3, 32)
    assert not torch.equal(members[0].weight, members[1].weight)


def test_nothing_learned_is_zero_shot_and_seeds_decide():
    encoder = encoder_of()
    task = pool_of(encoder)
    plain = UPL(words="a photo of a", epochs=0, members=2).fit(encoder, task)
    torch.testing.assert_close(plain.weight, class_weights(encoder, task), atol=1e-6, rtol=0)
    adapter = UPL(epochs=1, members=2, tokens=2)
    one, same = (adapter.fit(encoder, task) for _ in range(2))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(adapter.fit(encoder, replace(task, seed=1)).weight, one.weight)


def test_labels_are_not_looked_at():
    encoder = encoder_of()
    task = pool_of(encoder)
    adapter = UPL(epochs=1, members=1, tokens=2)
    labelled = replace(task, support=Examples(task.unlabelled.image[:4], torch.arange(4)))
    assert torch.equal(adapter.fit(encoder, task).weight, adapter.fit(encoder, labelled).weight)
    with pytest.raises(ValueError, match="UPL needs pictures without labels"):
        adapter.fit(encoder, replace(labelled, unlabelled=None))


def test_a_saved_one_is_the_same_and_takes_other_names(tmp_path):
    encoder = encoder_of()
    task, adapter = pool_of(encoder), UPL(epochs=1, members=2, tokens=2)
    made = adapter.fit(encoder, task)
    made.save(tmp_path / "c")
    back = ContextClassifier.load(tmp_path / "c")
    assert torch.equal(back.weight, made.weight)
    torch.testing.assert_close(UPL().transfer(encoder, back, task).weight, made.weight, atol=1e-6, rtol=0)
    moved = UPL().transfer(encoder, back, Task(("dog", "ant")))
    assert (moved.names, moved.weight.shape) == (("dog", "ant"), (2, made.weight.shape[1]))
    assert moved.about["fitted"] == list(PLAIN)


def test_predictions_over_pictures_and_what_is_refused():
    encoder = encoder_of()
    task = pool_of(encoder)
    zeroshot = ZeroShot().fit(encoder, task)

    class Pixels:
        needs = "pictures"

        def __call__(self, image):
            return zeroshot(encoder.dual.encode_image(image))

    want = zeroshot(task.unlabelled.image)
    with torch.no_grad():
        found = logits_over(Pixels(), encoder, task.unlabelled, who="X")
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    bare = Examples(task.unlabelled.image)
    with pytest.raises(ValueError, match="X runs the image tower, and of the pictures only features"):
        logits_over(Pixels(), encoder, bare, who="X")
    Pixels.needs = "tokens"
    with pytest.raises(ValueError, match="this one needs tokens"):
        logits_over(Pixels(), encoder, bare, who="X")
    broken = replace(task.unlabelled, pictures=[*task.unlabelled.pictures[:-1], b"no picture"])
    Pixels.needs = "pictures"
    with pytest.raises(ValueError, match="picture 19 cannot be read"), torch.no_grad():
        logits_over(Pixels(), encoder, broken, who="X")


def test_published_settings():
    part = UPL()
    assert (part.shots, part.members, part.usual_epochs(16), part.lr, part.batch) == (16, 16, 50, 0.002, 32)
    assert (UPL.wants, UPL.level) == (("unlabelled",), "text")
