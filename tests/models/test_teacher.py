"""The live teacher: what it adds to a batch, what it refuses, and a run that learns from it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.losses.compare import assert_equal
from tests.shards import make_shards
from tests.test_trainer import _span, losses, make, stop_at
from vlp.losses import LOSSES
from vlp.losses.objective import Objective
from vlp.models import COMPANIONS, pretrained
from vlp.models.dual import Dual
from vlp.models.model import Model
from vlp.models.teacher import Teacher, TeacherState

from .tiny import NANO, make_batch, make_dual


def saved(folder: Path, *, seed: int = 1, **changes: Any) -> Path:
    """A folder with a model of the vlp-nano architecture, which has a tokenizer."""
    torch.manual_seed(seed)
    pretrained.save(Model(arch="vlp-nano", **changes).build(), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "model")


def nano(**changes: Any) -> Dual:
    torch.manual_seed(0)
    return Model(arch="vlp-nano", **changes).build()


def test_it_adds_its_features_and_nothing_else_moves(folder: Path) -> None:
    state = Teacher(pretrained=str(folder)).build(nano())
    batch = make_batch()
    drawn = torch.get_rng_state()
    filled = state.before_step(batch, state.teacher)
    assert torch.equal(torch.get_rng_state(), drawn)
    teacher = pretrained.load(folder)
    with torch.no_grad():
        expected = teacher(batch)
    assert torch.equal(filled.extra["teacher/image"], expected.image)
    assert torch.equal(filled.extra["teacher/text"], expected.text)
    assert torch.equal(filled.memory["teacher/scale"], expected.scale)
    assert not filled.extra["teacher/image"].requires_grad
    assert (filled.extra["teacher/text"][~batch.caption_mask] == 0).all()
    assert not batch.extra
    assert not any(p.requires_grad for p in state.teacher.parameters())
    before = pretrained.weights_hash(state.teacher)
    state.after_step(nano(), step=1, batch=filled)
    assert pretrained.weights_hash(state.teacher) == before == state.hash


def test_two_teachers_under_two_names(folder: Path) -> None:
    batch = make_batch()
    for name in ("teacher", "small"):
        batch = Teacher(pretrained=str(folder), prefix=name).build(nano()).before_step(batch, nano())
    assert set(batch.extra) == {f"{name}/{side}" for name in ("teacher", "small") for side in ("image", "text")}
    assert set(batch.memory) == {"teacher/scale", "small/scale"}


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(folder: Path, size: int) -> None:
    batch = make_batch()
    whole = Teacher(pretrained=str(folder)).build(nano()).before_step(batch, nano())
    parts = Teacher(pretrained=str(folder), micro_batch=size).build(nano()).before_step(batch, nano())
    assert_equal(dict(parts.extra), dict(whole.extra), atol=1e-5)


def test_half_precision_gives_floats(folder: Path) -> None:
    batch = make_batch()
    whole = Teacher(pretrained=str(folder)).build(nano()).before_step(batch, nano())
    half = Teacher(pretrained=str(folder), precision="bf16").build(nano()).before_step(batch, nano())
    for name, x in half.extra.items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, whole.extra[name], atol=5e-2, rtol=0)
        assert not torch.equal(x, whole.extra[name])


def test_it_is_read_from_a_file_of_weights(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes((folder / pretrained.WEIGHTS_FILE).read_bytes())
    state = Teacher(pretrained=str(file), arch="vlp-nano").build(nano())
    assert state.hash == Teacher(pretrained=str(folder)).build(nano()).hash


def test_another_size_context_or_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size \(32, 32\).*\(64, 64\); set model.image_size to 32"):
        Teacher(pretrained=str(folder)).build(nano(image_size=64))
    short = saved(tmp_path / "short", context=10)
    with pytest.raises(ValueError, match=r"reads 10 tokens.*set model.context to 10"):
        Teacher(pretrained=str(short)).build(nano())
    assert Teacher(pretrained=str(folder)).build(nano(context=10)).hash  # a longer teacher reads short texts
    words = make_dual(copy.deepcopy(NANO))
    words.tokenizer.context = words.text_tower.context = 12
    with pytest.raises(ValueError, match=r"other ids.*model.tokenizer"):
        Teacher(pretrained=str(folder)).build(words)


def test_a_resumed_run_needs_the_same_teacher(folder: Path, tmp_path: Path) -> None:
    state = Teacher(pretrained=str(folder)).build(nano())
    stored = state.state_dict()
    assert sum(x.numel() for x in stored.values()) <= 32
    Teacher(pretrained=str(folder)).build(nano()).load_state_dict(stored)
    other = Teacher(pretrained=str(saved(tmp_path / "other", seed=2))).build(nano())
    with pytest.raises(ValueError, match="began with a teacher of hash"):
        other.load_state_dict(stored)


def test_a_student_comes_nearer_to_it(folder: Path) -> None:
    """Every distillation, on a real model: its term falls, and every parameter learns."""
    student = nano().train()
    state = Teacher(pretrained=str(folder)).build(student)
    assert isinstance(state, TeacherState)
    torch.manual_seed(5)
    batch = state.before_step(make_batch(8, absent=False), student)
    specs = [{"name": "distill"}, {"name": "relation_distill"}, {"name": "feature_distill"}]
    specs[2]["teacher_width"] = batch.extra["teacher/image"].shape[1]  # type: ignore[assignment]
    objective = Objective([LOSSES.build(spec) for spec in specs])
    student.heads.update(objective.heads(student))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    seen = []
    for _ in range(15):
        value = objective(student(batch), batch)
        optimizer.zero_grad()
        value.total.backward()
        assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
        optimizer.step()
        seen.append(value.terms)
    for name in ("relation_distill/image", "feature_distill/image", "feature_distill/text", "distill"):
        assert seen[-1][name] < seen[0][name], name


def test_a_run_with_a_teacher_resumes_and_caches(tmp_path: Path, folder: Path) -> None:
    urls = make_shards(tmp_path / "shards", samples=24, shards=2)
    changes: dict[str, Any] = {
        "losses": [{"name": "infonce", "weight": 0.3}, {"name": "distill", "weight": 0.7}],
        "companions": [{"name": "teacher", "pretrained": str(folder)}],
        "save": {"every": "2steps", "keep": 3},
    }
    make(tmp_path / "a", urls, "duration=4steps", **changes).train()
    make(tmp_path / "b", urls, "duration=4steps", "micro_batch=3", **changes).train()
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-3)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c", urls, "duration=4steps", evaluators=[_span(stop_at(3))], **changes).train()
    make(tmp_path / "c", urls, "duration=4steps", **changes).train()
    assert losses(tmp_path / "c") == losses(tmp_path / "a")
    assert COMPANIONS.build(changes["companions"][0]) == Teacher(pretrained=str(folder))


def test_a_run_goes_on_with_a_teacher_that_lies_elsewhere_and_with_no_other(tmp_path: Path, folder: Path) -> None:
    urls = make_shards(tmp_path / "shards", samples=24, shards=2)
    changes: dict[str, Any] = {"losses": ["distill"], "companions": [{"name": "teacher", "pretrained": str(folder)}]}
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, urls, "save.every=1steps", evaluators=[_span(stop_at(1))], **changes).train()
    moved, other = shutil.copytree(folder, tmp_path / "moved"), saved(tmp_path / "other", seed=2)
    with pytest.raises(ValueError, match="began with a teacher of hash"):
        make(tmp_path, urls, f"companions.0.pretrained={other}", **changes).train()
    make(tmp_path, urls, f"companions.0.pretrained={moved}", **changes).train()
    assert len(losses(tmp_path)) == 10
