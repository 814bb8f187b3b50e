"""The momentum copy and the queue against loops by hand, on one process and on two."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conftest import random_batch
from vlp.models import COMPANIONS
from vlp.models.freeze import lock
from vlp.models.momentum import Momentum, Queue, moving
from vlp.types import Batch

from .tiny import make_batch, make_dual

EVERYTHING = ("image", "text", "view_image", "view_tokens")


def _with_views(batch: Batch) -> Batch:
    return batch.plus({"views": torch.randint(0, 256, (len(batch), 2, 3, 32, 32), dtype=torch.uint8)})


def _moved(dual) -> None:
    with torch.no_grad():
        for p in dual.parameters():
            p.add_(torch.randn_like(p) * 0.1)


def test_the_copy_makes_the_features_that_the_towers_make():
    dual, batch = make_dual(), _with_views(make_batch())
    state = COMPANIONS.build({"name": "momentum", "outputs": EVERYTHING}).build(dual)
    found = state.before_step(batch, dual).extra
    expected = dual(batch)
    image, text = expected.image * batch.valid[:, None], expected.text
    torch.testing.assert_close(found["momentum/image"], image)
    torch.testing.assert_close(found["momentum/text"], text * batch.caption_mask[..., None])
    for v in range(2):
        pooled, tokens = dual.encode_image_tokens(batch.extra["views"][:, v])
        torch.testing.assert_close(found["momentum/view_image"][:, v], pooled * batch.valid[:, None])
        torch.testing.assert_close(found["momentum/view_tokens"][:, v], tokens * batch.valid[:, None, None])
    assert not any(x.requires_grad for x in found.values())
    assert (found["momentum/image"][3] == 0).all()


@pytest.mark.parametrize("output", EVERYTHING)
def test_only_what_is_asked_for_is_made(output):
    dual, batch = make_dual(), _with_views(make_batch())
    found = Momentum(outputs=(output,)).build(dual).before_step(batch, dual)
    assert set(found.extra) == {"views", f"momentum/{output}"}


def test_the_weights_follow_by_hand():
    dual, batch = make_dual(), make_batch()
    state = Momentum(momentum=0.9).build(dual)
    by_hand = {name: tensor.detach().clone() for name, tensor in moving(dual)}
    for step in range(1, 4):
        _moved(dual)
        state.after_step(dual, step=step, batch=batch)
        by_hand = {name: 0.9 * by_hand[name] + 0.1 * tensor.detach() for name, tensor in moving(dual)}
    for name, tensor in state.state_dict().items():
        torch.testing.assert_close(tensor, by_hand[name])
    assert "logit_scale" not in by_hand
    assert "visual.conv1.weight" in by_hand


def test_before_step_changes_nothing_and_dropout_is_off():
    dual, batch = make_dual().train(), make_batch()
    state = Momentum().build(dual)
    before = {name: x.clone() for name, x in state.state_dict().items()}
    first, second = (state.before_step(batch, dual).extra for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], x) for name, x in state.state_dict().items())
    assert dual.training
    assert not state.copy.training


def test_without_momentum_the_copy_is_the_model():
    dual, batch = make_dual(), make_batch()
    state = Momentum(momentum=0.0).build(dual)
    _moved(dual)
    state.after_step(dual, step=1, batch=batch)
    torch.testing.assert_close(state.before_step(batch, dual).extra["momentum/text"], dual(batch).text)


def test_frozen_weights_and_heads_are_not_kept_twice():
    dual = make_dual()
    dual.heads["more"] = torch.nn.Linear(2, 2)
    lock(dual, image=True)
    state = Momentum().build(dual)
    assert not any(name.startswith(("visual.", "heads.")) for name in state.state_dict())
    assert state.copy.visual.conv1.weight is dual.visual.conv1.weight
    assert state.copy.text.token_embedding.weight is not dual.text.token_embedding.weight
    assert not list(state.copy.heads)
    assert list(dual.heads)
    assert all(p.requires_grad for p in dual.text.parameters())
    assert dual.tokenizer is state.copy.tokenizer


def test_running_statistics_follow():
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None},
        "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1},
    }
    dual, batch = make_dual(config).train(), make_batch()
    state = Momentum(momentum=0.5).build(dual)
    start = dual.visual.bn1.running_mean.clone()
    dual(batch)
    now = dual.visual.bn1.running_mean.clone()
    state.after_step(dual, step=1, batch=batch)
    torch.testing.assert_close(state.copy.visual.bn1.running_mean, (start + now) / 2)
    state.before_step(batch, dual)
    assert torch.equal(dual.visual.bn1.running_mean, now)


def test_half_precision_is_near_and_comes_back_as_floats():
    dual, batch = make_dual(), make_batch()
    plain = Momentum().build(dual).before_step(batch, dual).extra
    half = Momentum(precision="bf16").build(dual).before_step(batch, dual).extra
    for name, x in plain.items():
        assert half[name].dtype is torch.float32
        torch.testing.assert_close(half[name], x, atol=0.05, rtol=0)


def test_the_copy_comes_back_to_the_bit():
    dual, batch = make_dual(), make_batch()
    state = Momentum(momentum=0.7).build(dual)
    _moved(dual)
    state.after_step(dual, step=1, batch=batch)
    again = Momentum(momentum=0.7).build(dual)
    again.load_state_dict({name: x.clone() for name, x in state.state_dict().items()})
    _moved(dual)
    for one in (state, again):
        one.after_step(dual, step=2, batch=batch)
    found, expected = (one.before_step(batch, dual).extra for one in (again, state))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="momentum: 1 weights are not in both"):
        again.load_state_dict({**state.state_dict(), "visual.other": torch.zeros(1)})


def test_missing_views_are_explained():
    dual = make_dual()
    with pytest.raises(ValueError, match=r"give data\.views"):
        Momentum(outputs=("view_image",)).build(dual).before_step(make_batch(), dual)


# ---------------------------------------------------------------------------------------------------------- queue


def _step(number: int, *, num: int = 4) -> Batch:
    """A batch whose momentum features are known numbers; slot 1 is empty, slot 2 has only its second caption."""
    valid = [i != 1 for i in range(num)]
    mask = [[i != 2, True] for i in range(num)]
    batch = random_batch(num, captions=2, valid=valid, caption_mask=mask, label=[10 * number + i for i in range(num)])
    image = (100 * number + torch.arange(num))[:, None].expand(num, 32).float().clone()
    image[1] = torch.nan
    text = torch.stack([image + 0.25, image + 0.5], 1)
    return batch.plus({"momentum/image": image, "momentum/text": text, "sample": batch.label})


def _fill(state, steps):
    for number in steps:
        state.after_step(None, step=number, batch=state.before_step(_step(number), None))


@pytest.mark.parametrize("size", [2, 5, 64])
def test_the_queue_holds_the_newest_pairs(size):
    state = COMPANIONS.build({"name": "queue", "size": size}).build(make_dual())
    assert not state.before_step(_step(0), None).memory["queue/filled"].any()
    _fill(state, range(1, 5))
    memory = state.before_step(_step(0), None).memory
    newest = [(100.0 * n + i, 10 * n + i) for n in range(1, 5) for i in (0, 2, 3)][-size:]
    filled = memory["queue/filled"]
    assert int(filled.sum()) == len(newest)
    found = zip(memory["queue/image"][filled, 0].tolist(), memory["queue/label"][filled].tolist(), strict=True)
    assert sorted(found) == newest
    second = memory["queue/image"][filled, 0] % 100 == 2  # its first caption is absent
    texts = memory["queue/text"][filled, 0] - memory["queue/image"][filled, 0]
    assert texts.tolist() == [0.5 if s else 0.25 for s in second]
    assert (memory["queue/label"][~filled] == -1).all()


def _relabelled(labels, *, valid=None, sample=(7, 8, 9, 6)):
    """Four samples under these labels, with features that say which."""
    batch = random_batch(4, label=list(labels), valid=valid)
    rows = torch.tensor(sample)[:, None].expand(4, 32).float()
    columns = {"momentum/image": rows, "momentum/text": rows[:, None], "sample": torch.tensor(sample)}
    return batch.plus(columns)


def _filled(state, batch):
    memory = state.before_step(batch, None).memory
    return sorted(memory["queue/image"][memory["queue/filled"], 0].tolist())


def test_a_sample_does_not_meet_itself_under_another_label():
    """Its caption was another one when it entered; where it says the same again it is a positive, and stays."""
    state = Queue(size=8).build(make_dual())
    state.after_step(None, step=1, batch=_relabelled([50, 51, 52, 53]))
    assert _filled(state, _relabelled([50, 60, 52, 61])) == [7, 9]
    assert _filled(state, _relabelled([50, 60, 52, 61], valid=[True, True, True, False])) == [6, 7, 9]
    assert _filled(state, _relabelled([51, 51, 51, 51], sample=(1, 2, 3, 4))) == [6, 7, 8, 9]
    assert _filled(state, _relabelled([50, 60, 52, 53], sample=(7, 7, 9, 6))) == [6, 8, 9], "twice in the batch"
    again = Queue(size=8).build(make_dual())
    again.load_state_dict({name: x.clone() for name, x in state.state_dict().items()})
    assert _filled(again, _relabelled([50, 60, 52, 61])) == [7, 9]
    with pytest.raises(ValueError, match='no column "sample".*Feed'):
        state.before_step(random_batch(2), None)


def test_the_queue_comes_back_to_the_bit():
    state, again = (Queue(size=5).build(make_dual()) for _ in range(2))
    _fill(state, (1, 2))
    again.load_state_dict({name: x.clone() for name, x in state.state_dict().items()})
    for one in (state, again):
        _fill(one, (3,))
    found, expected = (one.before_step(_step(0), None).memory for one in (again, state))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r"queue: image is \(5, 32\) in the checkpoint, \(6, 32\) in this run"):
        Queue(size=6).build(make_dual()).load_state_dict(state.state_dict())


def test_one_side_and_columns_of_the_data():
    state = Queue(size=3, image=None, text="stored", width=4).build(make_dual())
    batch = _step(1).plus({"stored": torch.arange(4.0)[:, None].expand(4, 4)})
    state.after_step(None, step=1, batch=batch)
    memory = state.before_step(batch, None).memory
    assert set(memory) == {"queue/text", "queue/label", "queue/filled"}
    assert memory["queue/text"][:, 0].tolist() == [0, 2, 3]


def test_what_cannot_be_stored_is_explained():
    with pytest.raises(ValueError, match="stores nothing"):
        Queue(image=None, text=None).build(make_dual())
    with pytest.raises(ValueError, match='"momentum/image".*add `momentum`'):
        Queue().build(make_dual()).after_step(None, step=1, batch=random_batch(2))
    batch = random_batch(2).plus({"momentum/image": torch.zeros(2, 5), "momentum/text": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="width 5; set width: 5"):
        Queue().build(make_dual()).after_step(None, step=1, batch=batch)


def _one_rank(rank, world):
    state = Queue(size=5).build(make_dual())
    half = _relabelled([50, 60, 52, 61]).rows(2 * rank, 2 * rank + 2)
    other = Queue(size=8).build(make_dual())
    other.after_step(None, step=1, batch=_relabelled([50, 51, 52, 53]).rows(2 * rank, 2 * rank + 2))
    assert _filled(other, half) == [7, 9], "of the whole batch, on every rank"
    for number in (1, 2):
        batch = _step(number)
        half = len(batch) // world
        state.after_step(None, step=number, batch=batch.rows(rank * half, (rank + 1) * half))
    return state.state_dict()


def test_every_rank_has_the_queue_of_one_process(spawn):
    alone = Queue(size=5).build(make_dual())
    _fill(alone, (1, 2))
    for found in spawn(_one_rank, 2):
        assert all(torch.equal(found[name], x) for name, x in alone.state_dict().items())


def test_a_step_longer_than_the_queue_keeps_its_end():
    state = Queue(size=2).build(make_dual())
    batch = replace(_step(1), valid=torch.tensor([True, False, True, True]))
    state.after_step(None, step=1, batch=batch)
    assert sorted(state.state_dict()["image"][:, 0].tolist()) == [102, 103]
