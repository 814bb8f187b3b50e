"""Zero-shot by tokens against loops; its ends; the benchmark that serves it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eval.classify import Classification
from eval.data import open_data
from eval.view import View
from tests.eval.colours import COLOURS, colour_shard, jpeg
from vlp.adapters.task import Task
from vlp.adapters.token_zeroshot import TokenZeroShot
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder
from vlp.models.model import Model

TASK = Task(("red", "a bright green", "blue"), ("a photo of {}.", "{}"))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(Model(arch="vlp-nano").build().eval(), quiet=True)


@pytest.fixture(scope="module")
def pictures(encoder):
    return encoder.image_tokens([jpeg(colour) for colour in COLOURS])


def similarities(encoder, pictures, *, pad_max, blend):
    """[B, C, templates] in loops, from the model itself."""
    dual = encoder.dual
    values = torch.zeros(len(pictures.features), len(TASK.names), len(TASK.templates), dtype=torch.float64)
    for c, name in enumerate(TASK.names):
        for t, template in enumerate(TASK.templates):
            with torch.no_grad():
                pooled, tokens, mask = dual.encode_text_tokens(dual.tokenizer(template.replace("{}", name)))
            words = [token.half().double() for token in tokens[0][mask[0]]]
            for b, patches in enumerate(pictures.tokens.double()):
                best = [max([*(float(p @ w) for w in words), *([0.0] if pad_max == "zero" else [])]) for p in patches]
                coarse = float(pictures.features[b].double() @ pooled[0].double())
                values[b, c, t] = (1 - blend) * sum(best) / len(best) + blend * coarse
    return values


@pytest.mark.parametrize("pad_max", ["exclude", "zero"])
def test_similarities_are_averaged_over_templates(encoder, pictures, pad_max):
    got = TokenZeroShot(pad_max=pad_max).fit(encoder, TASK)(pictures)
    want = encoder.scale * similarities(encoder, pictures, pad_max=pad_max, blend=0.0).mean(dim=2)
    torch.testing.assert_close(got.double(), want, atol=encoder.scale * 2e-4, rtol=0)


@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_or_their_probabilities_are(encoder, pictures, blend):
    classifier = TokenZeroShot(combine="mean_prob", blend=blend).fit(encoder, TASK)
    each = encoder.scale * similarities(encoder, pictures, pad_max="exclude", blend=blend)
    want = each.softmax(dim=1).mean(dim=2)
    torch.testing.assert_close(classifier(pictures).double().softmax(dim=1), want, atol=1e-3, rtol=0)


def test_blend_goes_from_the_tokens_to_the_pooled_head(encoder, pictures):
    plain = ZeroShot().fit(encoder, TASK)(pictures.features)
    tokens, half, pooled = (TokenZeroShot(blend=blend).fit(encoder, TASK) for blend in (0.0, 0.5, 1.0))
    torch.testing.assert_close(pooled(pictures), plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(half(pictures), (tokens(pictures) + plain) / 2, atol=1e-4, rtol=0)
    assert (tokens.head, half.head, pooled.head) == ("tokens", "0.5 tokens + 0.5 global", "global")
    assert (tokens.needs, tokens.names) == ("tokens", TASK.names)
    assert tokens.about["adapter"] == "token_zeroshot"
    with pytest.raises(ValueError, match="blend"):
        TokenZeroShot(blend=1.5)
    given = replace(TASK, text=torch.ones(len(TASK.names), 1, 8))
    with pytest.raises(ValueError, match="token_zeroshot encodes prompts itself, and the task holds text features"):
        TokenZeroShot().fit(encoder, given)


def test_the_benchmark_serves_it_and_says_which_head_scored(encoder, tmp_path):
    shard = str(colour_shard(tmp_path / "c.tar", per_colour=2, broken=1))
    given = {"dataset": "d", "data": shard, "names": tuple(COLOURS), "templates": ("a {}.", "{}"), "batch": 3}
    found = {}
    for name, adapter in {
        "plain": "zeroshot",
        "pooled": {"name": "token_zeroshot", "blend": 1.0},
        "tokens": "token_zeroshot",
    }.items():
        part = Classification.model_validate({**given, "adapter": adapter})
        found[name] = part.measure(View(encoder, open_data(part.data), dataset="d"))
    assert found["plain"].metrics["acc1"] == found["pooled"].metrics["acc1"]
    assert {name: outcome.head for name, outcome in found.items()} == {
        "plain": None,
        "pooled": "global",
        "tokens": "tokens",
    }
    assert found["tokens"].n == 10
    part = Classification.model_validate({**given, "adapter": "token_zeroshot", "batch": 1000})
    whole = part.measure(View(encoder, open_data(part.data), dataset="d"))
    assert whole.metrics["acc1"] == found["tokens"].metrics["acc1"]
