"""Captions and labels in one run: prefixes, single-source batches, UniCL, and both prefixes in one suite."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from eval.suite import Suite, run_suite
from tests.shards import COLOURS, make_shards
from vlp import checkpoint, config
from vlp.data.feed import Feed
from vlp.data.serve import TEXT_LABELS
from vlp.duration import parse
from vlp.log import read_steps
from vlp.models import pretrained
from vlp.run import Run
from vlp.trainer import Evaluator, Trainer
from vlp.types import UNLABELLED

TEMPLATES = ["a {} thing", "something {}", "it is {}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Globs of a captioned and of a labelled set of squares; the class is the colour."""
    folder = tmp_path_factory.mktemp("shards")
    classes = {i: {"cls": str(i % 4).encode(), "json": b"{}"} for i in range(48)}
    captions = make_shards(folder / "captions", samples=40, shards=2)
    return {"captions": captions, "labels": make_shards(folder / "labels", samples=48, shards=2, broken=classes)}


def settings(out: Path, globs: dict[str, str], **changes: Any) -> dict[str, Any]:
    labels = {"classes": list(COLOURS), "templates": TEMPLATES}
    return {
        "name": "t",
        "out": str(out),
        "model": {"arch": "vlp-nano", "prefix": 1},
        "data": {
            "batch_size": 8,
            "streams": 4,
            "workers": 0,
            "single_source": True,
            "mixture_block": 4,
            "sources": [
                {"name": "shards", "urls": globs["captions"], "weight": 1},
                {"name": "shards", "urls": globs["labels"], "kind": "label", "labels": labels, "weight": 1},
            ],
            "augment": None,
        },
        "losses": ["infonce"],
        "duration": "8steps",
        "optim": {"lr": 1e-3, "weight_decay": 0.5},
        "save": {"every": "100%", "keep": 0},
        "log": {"every": "1steps"},
        "device": "cpu",
        "threads": 1,
        **changes,
    }


def make(out: Path, globs: dict[str, str], *overrides: str, evaluators: Any = (), **changes: Any) -> Trainer:
    values = config.apply_overrides(settings(out, globs, **changes), overrides)
    return Trainer(config.validate(Run, values, where="test"), evaluators=evaluators)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_steps(out / "t" / "metrics.jsonl")]


def weights(out: Path, step: int, file: str = "model/open_clip_model.safetensors") -> dict[str, Tensor]:
    return checkpoint.load_tensors(out / "t" / "checkpoints" / f"step-{step:08d}" / file)


def each_step(measure: Callable[[Any, int], None]) -> Evaluator:
    def looked(dual: Any, done: int) -> dict[str, float]:
        measure(dual, done)
        return {}

    return Evaluator(parse("1steps"), looked)


class Straight(NamedTuple):
    """A run from its beginning to its end, and what its prefixes and a word's position were after each step."""

    out: Path
    after: list[dict[str, Tensor]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str]) -> Straight:
    after: list[dict[str, Tensor]] = []

    def look(dual: Any, done: int) -> None:
        kept = {"caption": dual.prefix.caption, "label": dual.prefix.label, "tower": dual.text.positional_embedding}
        after.append({name: parameter.detach().clone() for name, parameter in kept.items()})

    out = tmp_path_factory.mktemp("straight")
    make(out, data, evaluators=[each_step(look)]).train()
    return Straight(out, after)


def kinds(feed: Feed, steps: int = 8) -> list[str]:
    """The kind of each step's batch, which has only one."""
    found = []
    for step in range(steps):
        (source,) = set(feed.batch(step).source.tolist())
        found.append(feed.kinds[source])
    return found


def test_a_prefix_moves_in_the_steps_of_its_kind_and_only_there(
    straight: Straight, tmp_path: Path, data: dict[str, str]
) -> None:
    """Bit for bit, also after steps that gave it momentum, and under weight decay."""
    order = kinds(make(tmp_path, data).feed)
    assert sorted(order) == ["caption"] * 4 + ["label"] * 4
    assert {("label", "caption"), ("caption", "label")} <= set(itertools.pairwise(order))
    for kind, (before, after) in zip(order[1:], itertools.pairwise(straight.after), strict=True):
        stays = {name for name in before if torch.equal(before[name], after[name])}
        assert stays == {"caption", "label"} - {kind}


def stop_at(step: int) -> Evaluator:
    def stop(dual: Any, done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return each_step(stop)


@pytest.mark.parametrize("step", [1, 5])
def test_interrupted_equals_uninterrupted(tmp_path: Path, data: dict[str, str], straight: Straight, step: int) -> None:
    """After the first step one of the prefixes was never moved, and its optimizer has no state of it."""
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, data, f"save.every={step}steps", evaluators=[stop_at(step)]).train()
    unmoved = [name for name in weights(tmp_path, step, "optimizer.safetensors") if name.startswith("unmoved/")]
    assert len(unmoved) == (step == 1)
    make(tmp_path, data).train()
    assert losses(tmp_path) == losses(straight.out)
    for file in ("model/open_clip_model.safetensors", "optimizer.safetensors"):
        found, expected = weights(tmp_path, 8, file), weights(straight.out, 8, file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gradcache_equals_the_full_batch(tmp_path: Path, data: dict[str, str], straight: Straight) -> None:
    make(tmp_path, data, "micro_batch=3").train()
    assert losses(tmp_path) == pytest.approx(losses(straight.out), rel=2e-4)


def one_rank(rank: int, world: int, runs: list[tuple[Path, dict[str, str], dict[str, Any]]]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # Accelerate asks for them; the group is there already
    for out, globs, changes in runs:
        make(out, globs, **changes).train()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, data: dict[str, str], straight: Straight, spawn: Any) -> None:
    """Batches of one kind, and batches with both."""
    both = {"data": {**settings(tmp_path, data)["data"], "single_source": False}}
    make(tmp_path / "both", data, **both).train()
    spawn(one_rank, 2, [(tmp_path / "two", data, {}), (tmp_path / "two both", data, both)])
    for two, alone in (("two", straight.out), ("two both", tmp_path / "both")):
        assert losses(tmp_path / two) == pytest.approx(losses(alone), abs=1e-5)
        found, expected = weights(tmp_path / two, 8), weights(alone, 8)
        for name in ("prefix.caption", "prefix.label"):
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def test_without_prefixes_the_same_mixture_trains(tmp_path: Path, data: dict[str, str]) -> None:
    trainer = make(tmp_path, data, "losses.0.positives=own", "data.single_source=false", model={"arch": "vlp-nano"},
                   losses=[{"name": "infonce"}])  # fmt: skip
    trainer.train()
    assert trainer.dual.prefix is None
    assert not [name for name in weights(tmp_path, 8) if name.startswith("prefix")]


# -- what the batches hold ---------------------------------------------------------------------------------------------


def test_label_sources_give_sentences_drawn_anew_at_each_visit(tmp_path: Path, data: dict[str, str]) -> None:
    feed = make(tmp_path, data).feed
    seen: dict[str, set[str]] = {}
    sentences = {template.replace("{}", colour) for template in TEMPLATES for colour in COLOURS}
    for step in range(60):
        batch, captions = feed.batch(step), feed.slot_captions(step)
        if feed.kinds[int(batch.source[0])] == "label":
            assert {text for slot in captions for text in slot} <= sentences
            assert int(batch.label.min()) >= 1 << 24 > int(batch.label.max()) - 4  # class and source
            for key, (text,) in zip(batch.keys, captions, strict=True):
                seen.setdefault(key, set()).add(text)
        else:
            assert len(set(batch.label.tolist())) == 8 == int((batch.label >= UNLABELLED).sum())
    assert len(seen) == 48
    assert max(len(texts) for texts in seen.values()) > 1


def test_ids_of_captions_and_of_classes_never_meet(tmp_path: Path) -> None:
    """Equal captions may be positives of each other, not of a class whose sentence has the same words."""
    words = {i: {"json": json.dumps({"caption": "A  red thing"}).encode()} for i in (0, 1, 2)}
    classes = {i: {"cls": b"0", "json": b"{}"} for i in range(8)}
    globs = {
        "captions": make_shards(tmp_path / "c", samples=8, shards=1, broken=words),
        "labels": make_shards(tmp_path / "l", samples=8, shards=1, broken=classes),
    }
    changes = {**settings(tmp_path, globs)["data"], "same_caption_same_label": True, "single_source": False}
    changes["sources"][1]["labels"]["templates"] = ["a {} thing"]
    feed = make(tmp_path, globs, data=changes).feed
    found: dict[str, set[int]] = {"caption": set(), "label": set()}
    for batch in feed.batches(0, 8):
        for source, label in zip(batch.source.tolist(), batch.label[batch.valid].tolist(), strict=True):
            found[feed.kinds[source]].add(label)
    assert min(found["caption"]) >= TEXT_LABELS > UNLABELLED > max(found["label"])
    assert (len(found["caption"]), len(found["label"])) == (6, 1)  # three of eight captions have the same words


# -- evaluation --------------------------------------------------------------------------------------------------------


def suite(data: dict[str, str], *prefixes: str | None) -> Suite:
    parts = []
    for prefix in prefixes:
        given = {} if prefix is None else {"prefix": prefix}
        parts += [
            {"name": "zeroshot", "dataset": "labels", "data": data["labels"], "names": list(COLOURS),
             "templates": TEMPLATES, "n_boot": 50, **given},
            {"name": "retrieval", "dataset": "captions", "data": data["captions"], "n_boot": 50, **given},
        ]  # fmt: skip
    return config.validate(Suite, {"name": "both", "benchmarks": parts}, where="test")


def test_one_suite_reports_both_prefixes(tmp_path: Path, data: dict[str, str], straight: Straight) -> None:
    dual = pretrained.load(straight.out / "t")
    with torch.no_grad():
        dual.prefix.label.add_(1.0)  # type: ignore[union-attr, operator]
    records = run_suite(dual, suite(data, None, "label"), out=tmp_path)
    told = [(row.dataset, row.prefix) for row in records]
    assert told == [("labels", "caption"), ("labels", "label"), ("captions", "caption"), ("captions", "label")]
    plain = run_suite(dual, suite(data, "caption"), out=tmp_path / "caption")
    assert [row.metrics for row in plain] == [records[0].metrics, records[2].metrics]
    assert records[0].metrics != records[1].metrics
    assert records[2].metrics != records[3].metrics
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["prefix"] for line in lines] == ["caption", "label"] * 2
    kept = checkpoint.load_tensors(tmp_path / "eval" / "captions" / "features.safetensors")["text"]
    caption = checkpoint.load_tensors(tmp_path / "caption" / "eval" / "captions" / "features.safetensors")["text"]
    assert torch.equal(kept, caption)  # the diagnostic leaves no files
    with dual.prefixed("label"):
        label = run_suite(dual, suite(data, None), out=tmp_path / "label")
    assert [row.metrics for row in label] == [records[1].metrics, records[3].metrics]


def test_a_model_without_prefixes_refuses_before_it_reads(tmp_path: Path, data: dict[str, str]) -> None:
    from vlp.models.model import Model

    dual = Model(arch="vlp-nano").build()
    nowhere = {"labels": "nowhere/*.tar", "captions": "nowhere/*.tar"}
    with pytest.raises(ValueError, match=r"labels: prefix: label, but this model has no prefixes.*model\.prefix=1"):
        run_suite(dual, suite(nowhere, "label"), out=tmp_path)
    assert [row.prefix for row in run_suite(dual, suite(data, None), out=tmp_path)] == [None, None]


def test_the_cache_of_features_knows_the_prefix(tmp_path: Path, straight: Straight) -> None:
    from vlp.embed import Encoder

    encoder = Encoder(pretrained.load(straight.out / "t"), cache=tmp_path, quiet=True)
    caption = encoder.texts(["a red thing"])
    with encoder.dual.prefixed("label"):
        label = encoder.texts(["a red thing"])
    assert not torch.equal(caption, label)
    assert torch.equal(caption, encoder.texts(["a red thing"]))
