"""FILIP against loops, InfoNCE, algebra, and itself in several processes, in micro-batches and in a real model."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import normalize, pad
from torch.nn.parallel import DistributedDataParallel

from tests.losses import token_compare
from tests.losses.compare import AWKWARD, assert_equal
from tests.losses.token_compare import merged, one_rank, seen, token_features
from tests.models.tiny import NANO, make_dual
from tests.models.tiny import make_batch as tiny_batch
from vlp import gradcache
from vlp.embed import Encoder
from vlp.kernels.late import late_similarity
from vlp.losses import LOSSES
from vlp.losses.filip import FILIP
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.losses.tokens import own_tokens, pool_tokens
from vlp.models.model import Model
from vlp.token_scores import token_scores
from vlp.types import Features

SETTINGS = [
    {},
    {"label_smoothing": 0.1, "clip_logits": 5.0},
    {"image_keep": 0.4},
    {"text_keep": 0.3, "temperature": 0.2},
    {"image_keep": 0.5, "text_keep": 0.5, "group": 4, "label_smoothing": 0.2},
]


def _awkward(make_batch):
    mask = [[bool(x) for x in row] for row in AWKWARD["caption_mask"]]
    return make_batch(**AWKWARD | {"caption_mask": mask})


def _by_loops(settings):
    return lambda features, batch: token_compare.filip(features, batch, **{"group": 1} | settings)


def _in_room(features, room):
    """The features as a model makes them whose texts have at most `room` tokens; `pad_max: zero` asks."""
    return features._replace(extra={"filip/room": torch.tensor([float(room)], requires_grad=True)})


ZERO = [{"pad_max": "zero"}, {"pad_max": "zero", "text_keep": 0.5}]


@pytest.mark.parametrize("settings", [*SETTINGS, *ZERO, {"positives": "own", "label_smoothing": 0.1}])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("more", [0, 3])
def test_equals_loops(make_batch, settings, impl, more):
    batch = _awkward(make_batch)
    features = _in_room(token_features(batch), batch.text.shape[2] + more)
    expected = seen(_by_loops(settings), features, batch)
    assert_equal(seen(FILIP(**settings, impl=impl), features, batch), expected)


@pytest.mark.parametrize("positives", ["label", "own"])
@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.3}, {"temperature": 0.1}])
def test_one_token_each_is_infonce(make_batch, settings, positives):
    settings = settings | {"positives": positives}
    mask = [[bool(x) for x in row] for row in AWKWARD["caption_mask"]]
    batch = make_batch(**AWKWARD | {"caption_mask": mask})
    batch = dataclasses.replace(batch, token_mask=batch.caption_mask[..., None], text=batch.text[..., :1])
    features = token_features(batch, patches=1)
    found = seen(FILIP(**settings), features, batch)
    pooled = features._replace(image=features.image_tokens[:, 0], text=features.text_tokens[:, :, 0])
    named = token_compare.leaves(features)
    grads = torch.autograd.grad(InfoNCE(**settings)(pooled, batch)["contrast"], list(named.values()), allow_unused=True)
    expected = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(named.items(), grads)}
    expected = {"value": InfoNCE(**settings)(pooled, batch)["contrast"].detach(), **expected}
    assert_equal(found, expected)


def test_the_two_directions_are_not_transposes():
    eye = torch.eye(2, dtype=torch.float64)
    image = torch.stack([eye, eye[[0, 0]]])  # the second picture shows only one thing
    words = torch.ones(2, 2, dtype=torch.bool)
    late = late_similarity(image, image, x_mask=None, y_mask=words)
    assert late.rows.tolist() == [[1.0, 0.5], [1.0, 1.0]]
    assert late.columns.tolist() == [[1.0, 1.0], [0.5, 1.0]]


@pytest.mark.parametrize("settings", [*SETTINGS, *ZERO])
@pytest.mark.parametrize("garbage", [0.0, 3.0, math.nan])
def test_padding_changes_nothing(make_batch, settings, garbage):
    batch = _awkward(make_batch)
    features = _in_room(token_features(batch), batch.text.shape[2] + 5)
    expected = seen(FILIP(**settings), features, batch)
    longer = dataclasses.replace(batch, text=pad(batch.text, (0, 5)), token_mask=pad(batch.token_mask, (0, 5)))
    text = pad(features.text_tokens.detach(), (0, 0, 0, 5))
    text[~longer.token_mask] = garbage
    found = seen(FILIP(**settings), features._replace(text_tokens=text.requires_grad_()), longer)
    assert found["text_tokens"][~longer.token_mask].abs().max() == 0
    T = batch.text.shape[2]
    assert_equal(found | {"text_tokens": found["text_tokens"][:, :, :T]}, expected)


def test_saying_every_word_twice_changes_nothing(make_batch):
    batch = make_batch(5, captions=2)
    features = token_features(batch)
    twice = dataclasses.replace(batch, token_mask=batch.token_mask.repeat(1, 1, 2))
    value = FILIP()(features._replace(text_tokens=features.text_tokens.repeat(1, 1, 2, 1)), twice)["contrast"]
    torch.testing.assert_close(value, FILIP()(features, batch)["contrast"], atol=1e-12, rtol=0)


def test_a_patch_unlike_every_word_keeps_its_negative_similarity(make_batch):
    """The authors' code gives it the zero of a padding token."""
    batch = make_batch(2, tokens=4)
    batch = dataclasses.replace(batch, token_mask=torch.tensor([[[True, True, False, False]]] * 2))
    row = torch.eye(3, dtype=torch.float64)[0]
    words = row.expand(2, 1, 4, 3) * batch.token_mask[..., None]
    features = token_features(batch, width=3)._replace(image_tokens=-row.expand(2, 5, 3), text_tokens=words)
    mask = {"x_mask": None, "y_mask": batch.token_mask[:, 0]}
    negative = late_similarity(features.image_tokens, words[:, 0], **mask).rows
    zero = late_similarity(features.image_tokens, words[:, 0], pad_max="zero", **mask).rows
    assert (negative == -1).all()
    assert (zero == 0).all()


def test_zeros_are_seen_by_texts_with_room_left_and_by_no_other(make_batch):
    """As in the authors' code, which pads texts to the context; and whatever the other texts of the batch."""
    batch = make_batch(2, tokens=4)
    batch = dataclasses.replace(batch, token_mask=torch.tensor([[[True] * 4], [[True, True, False, False]]]))
    row = torch.eye(3, dtype=torch.float64)[0]
    features = token_features(batch, width=3)._replace(
        image_tokens=-row.expand(2, 5, 3), text_tokens=row.expand(2, 1, 4, 3) * batch.token_mask[..., None]
    )
    loss = FILIP(pad_max="zero", temperature=1.0)
    full, short = (loss._similarities(_pooled(features, batch), room)[0] for room in (4, 5))
    assert full[..., 0].tolist() == [[-1, 0], [-1, 0]]
    assert short[..., 0].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="needs its head"):
        loss(features, batch)


def _pooled(features, batch):
    return pool_tokens(own_tokens(features.image_tokens, features.text_tokens, batch), batch)


def test_the_model_tells_how_long_texts_are():
    """In training and in evaluation a text that fills the context sees no zero, and one that is shorter does."""
    torch.manual_seed(0)
    dual = Model(arch="vlp-nano").build()
    objective = Objective([FILIP(pad_max="zero")])
    dual.set_needs(objective.needs)
    dual.heads.update(objective.heads(dual))
    dual.eval()
    texts = ["a red square", "word " * 90]
    ids = dual.tokenizer(texts)
    room = dual.heads["filip_room"].room
    with torch.no_grad():
        batch = dataclasses.replace(
            tiny_batch(2, 1, absent=False),
            image=torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8),
            text=ids[:, None],
            token_mask=dual.text_tower.mask(ids)[:, None],
        )
        assert batch.token_mask.sum(-1).flatten().tolist() == [5, room]
        for rows in (slice(0, 2), slice(0, 1)):  # alone the short text is the longest of its batch
            part = batch.rows(rows.start, rows.stop)
            found = dual(part)
            cut = found._replace(text_tokens=found.text_tokens[:, :, : int(part.token_mask.sum(-1).max())])
            loss, stored = objective.losses[0], Encoder(dual, quiet=True).text_tokens(texts[rows])
            unlike = torch.stack([-t[real].pinverse().sum(1) for t, real in zip(stored.tokens.float(), stored.mask)])
            for patches in (cut.image_tokens, normalize(unlike, dim=-1)[:, None]):
                pooled = _pooled(cut._replace(image_tokens=patches), part)
                trained = loss._similarities(pooled, loss._room(cut))[0][..., 0]
                measured = token_scores(patches, stored.tokens, stored.mask, want="rows", pad_max="zero")
                torch.testing.assert_close(trained, measured, atol=1e-3, rtol=0)
            assert trained[0, 0] == 0
            assert len(part) == 1 or trained[1, 1] < 0


def test_a_prefix_takes_from_the_room():
    dual = Model(arch="vlp-nano", prefix=2).build().eval()
    room = FILIP(pad_max="zero").heads(dual)["filip_room"].room
    assert room == dual.context - 2
    stored = Encoder(dual, quiet=True).text_tokens(["word " * 90])
    assert stored.mask.shape == (1, room)
    assert bool(stored.mask.all())


@pytest.mark.parametrize("garbage", [7.0, math.nan, math.inf])
@pytest.mark.parametrize("settings", SETTINGS[:4])
def test_empty_slots_leave_exactly(make_batch, garbage, settings):
    small = make_batch(4, captions=2, label=[1, 2, 3, 3])
    kept = token_features(small)
    expected = seen(FILIP(**settings), kept, small)
    places, num = [0, 2, 3, 6], 8
    batch = make_batch(num, captions=2, label=[1, 1, 2, 3, 3, 4, 3, 3], valid=[i in places for i in range(num)])
    batch.token_mask[places] = small.token_mask
    named = {}
    for name, x in token_compare.leaves(kept).items():
        if name not in token_compare.ONCE:
            rows = torch.full((num, *x.shape[1:]), garbage, dtype=x.dtype)
            rows[places] = x.detach()
            named[name] = rows.requires_grad_()
    found = seen(FILIP(**settings), kept._replace(**named), batch)
    for name in named:
        assert found[name][[1, 4, 5, 7]].abs().max() == 0
        found[name] = found[name][places]
    assert_equal(found, expected)


def test_captions_of_one_image_are_separate_problems(make_batch):
    batch = make_batch(5, captions=2)
    features = token_features(batch)
    slots = []
    for k in (0, 1):
        one = dataclasses.replace(
            batch,
            text=batch.text[:, k : k + 1],
            token_mask=batch.token_mask[:, k : k + 1],
            caption_mask=batch.caption_mask[:, k : k + 1],
        )
        part = features._replace(text=features.text[:, k : k + 1], text_tokens=features.text_tokens[:, k : k + 1])
        slots.append(FILIP()(part, one)["contrast"])
    torch.testing.assert_close(FILIP()(features, batch)["contrast"], sum(slots) / 2, atol=1e-12, rtol=0)


def test_nothing_valid_is_zero_with_zero_gradient(make_batch):
    batch = make_batch(4, valid=[False] * 4)
    for settings in SETTINGS:
        assert all((x == 0).all() for x in seen(FILIP(**settings), token_features(batch), batch).values())


def test_all_tokens_kept_is_no_selection(make_batch):
    batch = _awkward(make_batch)
    features = token_features(batch)
    expected = seen(FILIP(), features, batch)
    assert_equal(seen(FILIP(image_keep=1.0, text_keep=1.0), features, batch), expected, atol=0)
    nearly = seen(FILIP(image_keep=0.999, text_keep=0.999, group=4), features, batch)  # rounded up, but sorted
    assert_equal(nearly, expected)
    assert abs(seen(FILIP(image_keep=0.2), features, batch)["value"] - expected["value"]) > 1e-3
    assert abs(seen(FILIP(text_keep=0.2), features, batch)["value"] - expected["value"]) > 1e-3


def test_clipped_logits_have_no_gradient(make_batch):
    batch = make_batch(4)
    found = seen(FILIP(clip_logits=0.01), token_features(batch, scale=100.0), batch)
    assert found["value"].item() == pytest.approx(math.log(4), abs=0.02)
    assert found["image_tokens"].abs().max() == 0


@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(spawn, make_batch, world):
    batch = _awkward(make_batch)
    if world == 2:  # texts of the second rank are shorter
        batch.token_mask[4:, :, 5:] = False
    features = _in_room(token_features(batch), batch.text.shape[2])
    losses = [FILIP(**settings) for settings in SETTINGS if world == 2 or settings.get("group") != 4]
    losses += [FILIP(pad_max="zero"), FILIP(positives="own")]
    losses += [FILIP(wire="half"), FILIP(impl="reference", image_keep=0.4, group=2)]
    ranks = spawn(one_rank, world, losses, features, batch)
    for i, loss in enumerate(losses):
        rough = {"atol": 2e-2} if loss.wire == "half" else {}
        found = merged([rank[i] for rank in ranks], features)
        expected = seen(loss, features, batch)
        assert_equal(found, expected, **rough)
        torch.testing.assert_close(found["value"], expected["value"], atol=1e-12, rtol=0)


def test_a_rank_without_a_valid_slot_takes_part(spawn, make_batch):
    batch = make_batch(4, captions=2, label=[1, 2, 1, 2], valid=[True, True, False, False])
    features = token_features(batch)
    loss = FILIP(image_keep=0.5, text_keep=0.5, group=2)
    ranks = spawn(one_rank, 2, [loss], features, batch)
    assert ranks[1][0]["value"].item() == 0
    assert_equal(merged([rank[0] for rank in ranks], features), seen(loss, features, batch))


def test_half_on_the_wire_is_nearly_the_same(make_batch):
    batch = _awkward(make_batch)
    features = token_features(batch)
    full, half = seen(FILIP(), features, batch), seen(FILIP(wire="half"), features, batch)
    assert 0 < abs(full["value"] - half["value"]) < 1e-2
    torch.testing.assert_close(half["image_tokens"], full["image_tokens"], atol=2e-2, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"image_keep": 0.5, "text_keep": 0.5}, {"wire": "half"}])
def test_finite_under_autocast_at_the_largest_scale(make_batch, settings):
    batch = _awkward(make_batch)
    features = token_features(batch, scale=100.0, dtype=torch.float32)
    half = features._replace(image_tokens=features.image_tokens.bfloat16(), text_tokens=features.text_tokens.bfloat16())
    plain = FILIP(**settings)(half, batch)["contrast"]
    with torch.autocast("cpu", torch.bfloat16):
        value = FILIP(**settings)(half, batch)["contrast"]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain, atol=1e-5, rtol=1e-5)
    value.backward()
    for x in (features.image_tokens, features.text_tokens, features.scale):
        assert x.grad.isfinite().all()


def _texts_drawn(B=6):
    batch = tiny_batch(B, 2)
    return dataclasses.replace(batch, label=torch.tensor([1, 2, 1, 3, 4, 2]))


def _reseed(i):
    torch.manual_seed(i)


def _model(objective, config=NANO):
    dual = make_dual(config)
    dual.set_needs(objective.needs)
    dual.heads.update(objective.heads(dual))
    return dual.double().train()


def _gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}  # every one of them has a gradient


OBJECTIVE = Objective(
    [InfoNCE(weight=0.5), FILIP(image_keep=0.5, text_keep=0.5, group=2, own_scale=True, pad_max="zero")]
)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_gradcache_equals_the_whole_batch(micro):
    batch, direct, cached = _texts_drawn(), _model(OBJECTIVE), _model(OBJECTIVE)
    value = OBJECTIVE(direct(batch), batch)
    value.total.backward()
    found = gradcache.step(cached, OBJECTIVE, batch, micro=micro, reseed=_reseed)
    assert_equal({"value": found.total, **found.terms}, {"value": value.total.detach(), **value.terms}, atol=1e-6)
    assert_equal(_gradients(cached), _gradients(direct), atol=1e-6)


ALONE = Objective([FILIP(image_keep=0.5, group=3, own_scale=True)])  # nothing else reads the pooled features


def _one_rank(rank, world, batch):
    model = _model(ALONE)
    part = batch.rows(rank * 3, rank * 3 + 3)
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # a parameter without a gradient would be missed in the second pass
        model.zero_grad()
        ALONE(parallel(part), part).total.backward()
    return _gradients(model)


def test_ddp_sees_every_parameter_and_equals_one_process(spawn):
    batch, alone = _texts_drawn(), _model(ALONE)
    ALONE(alone(batch), batch).total.backward()
    for found in spawn(_one_rank, 2, batch):
        assert_equal(found, _gradients(alone), atol=1e-6)


def test_an_attention_pool_that_it_passes_by_has_a_gradient_too():
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    model = _model(ALONE, NANO | {"vision_cfg": resnet})
    batch = _texts_drawn()
    ALONE(model(batch), batch).total.backward()
    assert _gradients(model)["visual.attnpool.q_proj.weight"].abs().max() == 0


def test_a_few_steps_lower_it():
    batch, model = tiny_batch(6, 1, absent=False), _model(ALONE).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(15):
        value = ALONE(model(batch), batch)
        optimizer.zero_grad()
        value.total.backward()
        optimizer.step()
        values.append(value.terms["filip"].item())
    assert values[-1] < 0.5 * values[0]
    assert model.heads["filip_scale"].logit_scale.item() != pytest.approx(3.8665, abs=1e-4)


def test_the_own_scale_takes_the_place_of_the_models(make_batch):
    batch = make_batch(4)
    features = token_features(batch)
    own = features._replace(extra={"filip/scale": torch.tensor([3.0], dtype=torch.float64, requires_grad=True)})
    found = seen(FILIP(own_scale=True), own, batch)
    expected = seen(FILIP(), features._replace(scale=own.extra["filip/scale"].detach().requires_grad_()), batch)
    assert found["scale"].item() == 0
    torch.testing.assert_close(found["extra.filip/scale"], expected["scale"], atol=1e-12, rtol=0)
    torch.testing.assert_close(found["value"], expected["value"], atol=1e-12, rtol=0)


def test_settings_are_checked(make_batch):
    for bad in ({"image_keep": 0.0}, {"text_keep": 1.1}, {"group": 0}, {"clip_logits": 0.0}, {"pad_max": "none"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            FILIP(**bad)
    with pytest.raises(ValueError, match="leave one of them out"):
        FILIP(own_scale=True, temperature=0.1)
    with pytest.raises(ValueError, match="group: 4 says among which slots.*all are kept; set image_keep or text_keep"):
        FILIP(group=4)
    batch = make_batch(3)
    with pytest.raises(ValueError, match="group=2 does not divide the 3 slots"):
        FILIP(image_keep=0.5, group=2)(token_features(batch), batch)
    with pytest.raises(ValueError, match="the model made none"):
        FILIP()(Features(*token_features(batch)[:3]), batch)
    assert LOSSES.build({"name": "filip", "image_keep": 0.25}).name == "filip"
