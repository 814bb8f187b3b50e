"""Fine-tuning against a copy of the model that is trained by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

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
from vlp.adapters.adapter import class_weights
from vlp.adapters.finetune import Finetune
from vlp.adapters.soup import Soup
from vlp.adapters.tuned import HEAD, TunedClassifier
from vlp.adapters.zeroshot import ZeroShot
from vlp.models.freeze import lock

FAST = {"epochs": 3, "lr": 1e-3, "batch_size": 4}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("towers", ["image", "both"])
def test_without_steps_it_is_zero_shot_bit_for_bit(towers, precision):
    encoder = make_encoder()
    encoder.precision = precision
    task = make_task(encoder, held=4)  # more than a batch
    made = Finetune(towers=towers, epochs=0).fit(encoder, task)
    assert torch.equal(made(batch(task.validation)), zero_shot_logits(encoder, task, task.validation))
    assert (made.needs, made.names, made.about["selection"]["split"]) == ("pictures", task.names, "none")


def test_three_steps_equal_a_copy_of_the_model_trained_by_hand():
    """With the head as it is published, H = s w, one matrix that AdamW moves like the others."""
    encoder = make_encoder()
    task = make_task(encoder)
    made = Finetune(epochs=3, batch_size=64, lr=1e-3, weight_decay=0.1, warmup=0, augment=None).fit(encoder, task)
    dual, scale, label = copy.deepcopy(encoder.dual).train(), encoder.scale, task.support.known
    head = torch.nn.Parameter(scale * class_weights(encoder, task))
    optimizer = torch.optim.AdamW([*dual.visual.parameters(), head], weight_decay=0.1)
    for rate in (1.0, 0.75, 0.25):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        features = normalize(dual.encode_image(batch(task.support)), dim=-1)
        optimizer.zero_grad()
        cross_entropy(features @ head.T, label).backward()
        optimizer.step()
    torch.testing.assert_close(made.state[HEAD] * scale, head.detach(), atol=1e-4, rtol=0)
    own = dual.state_dict()
    names = [name for name in made.state if name != HEAD]
    assert set(names) == {name for name in own if name.startswith("visual.")}
    for name in names:
        got, want, start = made.state[name], own[name], encoder.dual.state_dict()[name]
        if name.endswith("in_proj_bias"):  # no gradient but noise for keys, whose bias the softmax does not see
            got, want, start = (torch.cat(x.chunk(3)[::2]) for x in (got, want, start))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0, msg=name)
        assert (got - start).abs().max() > 1e-3, name


@pytest.mark.parametrize("config", [None, RESNET])
@pytest.mark.parametrize("towers", ["image", "both"])
def test_it_learns_and_leaves_the_model_alone(config, towers):
    encoder = make_encoder(RESNET) if config else make_encoder()
    task = make_task(encoder)
    encoder.dual.visual.train()  # modes of its own
    before = trace(encoder.dual)
    made = Finetune(towers=towers, epochs=12, lr=3e-3, batch_size=9).fit(encoder, task)
    logits = made(batch(task.support))
    assert_untouched(encoder.dual, before)
    if config is None:  # a dozen steps are too few for running statistics
        assert (logits.argmax(dim=1) == task.support.known).float().mean() > 0.8
    assert any(name.startswith("text.") for name in made.state) == (towers == "both")
    if config:
        counters = [name for name in made.state if name.endswith("num_batches_tracked")]
        assert counters
        assert all(made.state[name] == 12 for name in counters)


def test_the_head_may_stay_and_what_is_locked_stays():
    encoder = make_encoder()
    task = make_task(encoder)
    lock(encoder.dual, image=1)
    made = Finetune(train_head=False, **FAST).fit(encoder, task)
    assert torch.equal(made.state[HEAD], class_weights(encoder, task))
    assert set(made.state) == {"visual.proj", HEAD}
    lock(encoder.dual, image=True)
    assert len(Finetune(**FAST).fit(encoder, task).state) > 10


def test_equal_seeds_give_equal_bits_and_others_do_not():
    encoder = make_encoder()
    task = make_task(encoder)
    one, same, other = (Finetune(**FAST).fit(encoder, replace(task, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one.state[name], same.state[name]) for name in one.state)
    assert not torch.equal(one.state["visual.proj"], other.state["visual.proj"])


def test_it_comes_back_from_disk_with_its_backbone_only(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    made = Finetune(**FAST).fit(encoder, task)
    made.save(tmp_path / "one")
    back = TunedClassifier.load(tmp_path / "one", encoder)
    assert torch.equal(back(batch(task.validation)), made(batch(task.validation)))
    assert (back.names, back.about) == (made.names, made.about)
    with pytest.raises(ValueError, match="use that model, or fit again"):
        TunedClassifier.load(tmp_path / "one", make_encoder(seed=1))
    ZeroShot().fit(encoder, task).save(tmp_path / "linear")
    with pytest.raises(ValueError, match="kind None"):
        TunedClassifier.load(tmp_path / "linear", encoder)


@pytest.mark.parametrize("towers", ["image", "both"])
def test_other_names_get_the_tuned_towers_and_weights_from_words(towers):
    encoder = make_encoder()
    task = make_task(encoder)
    adapter = Finetune(towers=towers, **FAST)
    made = adapter.fit(encoder, task)
    new = replace(task, names=("pink", "grey"), support=None, validation=None)
    there = adapter.transfer(encoder, made, new)
    assert there.names == ("pink", "grey")
    assert torch.equal(there.state["visual.proj"], made.state["visual.proj"])
    assert torch.equal(there.state[HEAD], class_weights(encoder, new)) == (towers == "image")
    back = adapter.transfer(encoder, made, replace(task, support=None))
    assert torch.equal(back.state[HEAD], made.state[HEAD]) == (towers == "both")
    with pytest.raises(ValueError, match="fitted on other weights"):
        adapter.transfer(make_encoder(seed=1), made, new)


def test_what_cannot_be_tuned_is_refused():
    encoder = make_encoder()
    task = make_task(encoder)
    with pytest.raises(ValueError, match="Finetune needs labelled pictures"):
        Finetune().fit(encoder, replace(task, support=None))
    with pytest.raises(ValueError, match="finetune runs the image tower"):
        Finetune().fit(encoder, replace(task, support=replace(task.support, pictures=None)))
    with pytest.raises(ValueError, match="towers: both encodes prompts itself"):
        Finetune(towers="both").fit(encoder, replace(task, text=torch.randn(3, 1, 32)))
    with pytest.raises(ValueError, match="gives a LinearClassifier, which has no weights"):
        Soup(of=(ZeroShot(),), how="uniform").fit(encoder, task)
    encoder.precision = "fp16"
    with pytest.raises(ValueError, match="not tuned in fp16"):
        Finetune().fit(encoder, task)
    encoder.precision = "fp32"
    encoder.dual.image_tower.checkpoint_blocks()
    with pytest.raises(ValueError, match="grad_checkpointing"):
        Finetune().fit(encoder, task)


def test_more_pictures_than_a_batch_get_the_logits_of_each():
    encoder = make_encoder()
    task = make_task(encoder)
    made, many = Finetune(**FAST).fit(encoder, task), batch(examples(encoder, 5, seed=7))
    torch.testing.assert_close(made(many), torch.cat([made(one[None]) for one in many]), atol=1e-4, rtol=0)
