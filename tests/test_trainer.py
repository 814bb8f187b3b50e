"""A run as a user makes it: resumed, interrupted, cut into processes, fed with bad samples, and refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shards import make_shards
from vlp import checkpoint, config
from vlp.config import ConfigError
from vlp.log import read_lines, read_steps
from vlp.models import pretrained
from vlp.report.progress import training
from vlp.run import Run
from vlp.trainer import Evaluator, Trainer
from vlp.verdict import NonFiniteError

ROOT = Path(__file__).parent.parent


def settings(out: Path, urls: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "out": str(out),
        "model": {"arch": "vlp-nano"},
        "data": {
            "batch_size": 8,
            "streams": 4,
            "workers": 0,
            "sources": [{"name": "shards", "urls": urls}],
            "augment": {"scale": [0.5, 1.0]},
        },
        "losses": ["infonce"],
        "duration": "10steps",
        "optim": {"lr": 1e-3},
        "save": {"every": "4steps", "keep": 3},
        "log": {"every": "1steps"},
        "device": "cpu",
        "threads": 1,
        **changes,
    }


def make(out: Path, urls: str, *overrides: str, evaluators: Any = (), **changes: Any) -> Trainer:
    values = config.apply_overrides(settings(out, urls, **changes), overrides)
    return Trainer(config.validate(Run, values, where="test"), evaluators=evaluators)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_steps(out / "t" / "metrics.jsonl")]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(out / "t" / "checkpoints")
    assert found.path is not None
    return checkpoint.load_tensors(found.path / "model" / "open_clip_model.safetensors")


def stop_at(step: int) -> Evaluator:
    def measure(dual: Any, done: int) -> dict[str, float]:
        if done == step:
            raise KeyboardInterrupt
        return {}

    return Evaluator("1steps", measure)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, urls: str) -> Path:
    out = tmp_path_factory.mktemp("straight")
    make(out, urls).train()
    return out


def test_the_loss_falls(tmp_path: Path, urls: str) -> None:
    make(tmp_path, urls, "duration=40steps", "optim.lr=3e-3", "data.batch_size=16").train()
    curve = losses(tmp_path)
    assert len(curve) == 40
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def test_interrupted_in_the_epoch_equals_uninterrupted_bit_for_bit(tmp_path: Path, urls: str) -> None:
    dropped = {"model": {"arch": "vlp-nano", "patch_dropout": 0.25}, "companions": [{"name": "ema", "decay": 0.9}]}
    make(tmp_path / "a", urls, **dropped).train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", urls, evaluators=[_span(stop_at(5))], **dropped).train()
    assert len(losses(tmp_path / "b")) == 5
    make(tmp_path / "b", urls, **dropped).train()  # goes on at step 4, in the middle of an epoch of 6 steps
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    left, right = final_weights(tmp_path / "a"), final_weights(tmp_path / "b")
    assert all(torch.equal(left[name], right[name]) for name in left)
    ema = [checkpoint.newest(tmp_path / s / "t" / "checkpoints").path for s in "ab"]
    averages = [checkpoint.load_tensors(path / "companion.ema.safetensors") for path in ema if path]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def _span(evaluator: Evaluator) -> Evaluator:
    from vlp.duration import parse

    return evaluator._replace(every=parse(evaluator.every))


def test_workers_are_no_part_of_the_order(tmp_path: Path, urls: str, straight: Path) -> None:
    make(tmp_path, urls, "data.workers=2").train()
    assert losses(tmp_path) == losses(straight)


def test_gradcache_equals_the_full_batch(tmp_path: Path, urls: str, straight: Path) -> None:
    make(tmp_path, urls, "micro_batch=3").train()
    assert losses(tmp_path) == pytest.approx(losses(straight), rel=2e-4)


def test_a_checkpoint_is_the_model_and_its_run_again(tmp_path: Path, straight: Path) -> None:
    dual = pretrained.load(straight / "t")
    assert dual.transform.size == (32, 32)
    again = config.load(Run, straight / "t" / "config.yaml")
    assert again.duration == config.load(Run, straight / "t" / "checkpoints" / "step-00000010" / "config.yaml").duration
    steps = [path.name for path in checkpoint.listed(straight / "t" / "checkpoints")]
    assert steps == ["step-00000004", "step-00000008", "step-00000010"]


def test_a_finished_run_started_again_does_nothing(
    straight: Path, urls: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = losses(straight)
    progress = make(straight, urls).train()
    assert progress.step == 10
    assert losses(straight) == before
    longer = "duration=... allow_change=[duration]"
    said = f"t is finished (10 of 10 steps); nothing to train. Longer: {longer}; anew: name=OTHER"
    assert capsys.readouterr().err.splitlines() == [said]
    shutil.copytree(straight / "t", tmp_path / "t")
    assert make(tmp_path, urls, *longer.replace("...", "12steps").split()).train().step == 12, "as it was told"
    assert "resumed at step 10: 12 steps of 8 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", [None, 2])
def test_a_run_goes_on_without_the_weights_that_it_started_from(tmp_path: Path, urls: str, prefix: int | None) -> None:
    first = {"model": {"arch": "vlp-nano", "prefix": prefix, "context": 20}}
    make(tmp_path / "first", urls, duration="2steps", **first).train()
    weights = checkpoint.newest(tmp_path / "first" / "t" / "checkpoints").path / "model"  # type: ignore[operator]
    later = {"model": {"pretrained": str(weights)}}
    make(tmp_path / "a", urls, **later).train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", urls, evaluators=[_span(stop_at(5))], **later).train()
    shutil.rmtree(weights)
    make(tmp_path / "b", urls, **later).train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    a, b = final_weights(tmp_path / "a"), final_weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_evaluation_at_no_distance_is_refused(tmp_path: Path, urls: str) -> None:
    with pytest.raises(ConfigError, match=r"evals\.1\.every is 0steps; it must be more than 0"):
        make(tmp_path, urls, evals=[{"suite": "a.yaml"}, {"suite": "b.yaml", "every": 0}])


def test_never_resume_refuses_a_folder_with_checkpoints(straight: Path, urls: str) -> None:
    with pytest.raises(ValueError, match="holds step-00000010 of an earlier run"):
        make(straight, urls, "resume=never")


def test_changed_settings_are_refused_with_their_paths(straight: Path, urls: str) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"optim\.lr: 0\.001 in the checkpoint, 0\.002 now"):
        make(straight, urls, "optim.lr=2e-3").train()
    make(straight, urls, "optim.lr=2e-3", "allow_change=[optim]").train()


def test_changed_shards_are_refused(tmp_path: Path) -> None:
    urls = make_shards(tmp_path / "data")
    make(tmp_path, urls, "duration=4steps").train()
    make_shards(tmp_path / "data", samples=40)
    with pytest.raises(checkpoint.CheckpointError, match="fingerprint"):
        make(tmp_path, urls, "duration=4steps").train()


def test_bad_samples_leave_the_loss_and_are_counted_by_reason(tmp_path: Path) -> None:
    broken = {
        3: {"jpg": b"<html>404</html>"},
        9: {"json": b'{"caption": "  "}'},
        20: {"jpg": make_truncated()},
    }
    urls = make_shards(tmp_path / "data", broken=broken)
    progress = make(tmp_path, urls, "duration=1epochs", "data.max_bad_fraction=0.2").train()
    assert dict(progress.skips) == {"not_image": 1, "empty_caption": 1, "truncated_image": 1}
    lines = list(read_lines(tmp_path / "t" / "skips.jsonl"))
    assert sorted((line["reason"], line["key"]) for line in lines) == [
        ("empty_caption", "000009"), ("not_image", "000003"), ("truncated_image", "000020"),
    ]  # fmt: skip
    assert all(line["shard"].endswith(".tar") for line in lines)


def make_truncated() -> bytes:
    from tests.shards import picture

    return picture(20)[0][:-200]


def test_too_many_bad_samples_stop_the_run_with_counts(tmp_path: Path) -> None:
    urls = make_shards(tmp_path / "data", samples=160, broken={i: {"jpg": b"no"} for i in range(0, 160, 8)})
    with pytest.raises(RuntimeError, match=r"not_image \d+.*max_bad_fraction=0.01.*skips\.jsonl"):
        make(tmp_path, urls, "duration=1epochs").train()


def test_a_run_without_one_usable_sample_ends_before_its_first_step(tmp_path: Path, urls: str) -> None:
    with pytest.raises(RuntimeError, match=r"none of 8 samples could be used \(no_caption 8\).*captions\.fields"):
        make(tmp_path, urls, "data.sources.0.captions.fields=[title]").train()
    assert read_steps(tmp_path / "t" / "metrics.jsonl") == [], "a loss of 0 that nothing was seen for"
    assert len(list(read_lines(tmp_path / "t" / "skips.jsonl"))) == 8


def test_a_later_batch_without_a_pair_makes_no_update_and_no_loss_of_zero(
    tmp_path: Path, urls: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weight decay and momentum alone would move the weights; the run goes on, and says what it met."""
    after: list[torch.Tensor] = []

    def look(dual: Any, done: int) -> dict[str, float]:
        after.append(dual.visual.conv1.weight.detach().clone())
        return {}

    def mixed(seed: int) -> Trainer:
        sources = [
            {"name": "shards", "urls": urls, "weight": 1, "title": "fine"},
            {"name": "shards", "urls": urls, "weight": 1, "title": "dumb", "captions": {"fields": ["title"]}},
        ]
        data = {**settings(tmp_path, urls)["data"], "sources": sources, "single_source": True, "mixture_block": 4}
        data["max_bad_fraction"] = 1
        values = settings(tmp_path, urls, data=data, duration="4steps", seed=seed, companions=["ema"])
        looks = [_span(Evaluator("1steps", look))]  # type: ignore[arg-type]
        return Trainer(config.validate(Run, values, where="test"), evaluators=looks)

    trainer = next(found for found in map(mixed, range(20)) if found.feed.batch(0).valid.any())
    empty = [step for step in range(4) if not trainer.feed.batch(step).valid.any()]
    assert len(empty) == 2
    trainer.train()

    steps = read_steps(tmp_path / "t" / "metrics.jsonl")
    assert [step for step, record in enumerate(steps) if "loss" not in record] == empty
    assert all("terms" not in steps[step] and "grad_norm" not in steps[step] for step in empty)
    assert [step for step in range(1, 4) if torch.equal(after[step], after[step - 1])] == empty
    assert steps[-1]["left_out"] == {"not_finite": 0, "overflow": 0, "no_pair": 2}
    assert int(trainer.companions["ema"].updates) == len(trainer.spikes.values["loss"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for step in empty:
        assert f"step {step + 1}: none of its 8 slots has a pair, on any rank: dumb (no_caption 8)" in said
        assert f"step {step + 1}/4 no pair, no loss" in said
    assert "not finite" not in str(training(steps))


def _in_a_group(rank: int, world: int, out: Path, urls: str, overrides: tuple[str, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # Accelerate asks for them; the group is there already
    make(out, urls, *overrides).train()


def test_gradcache_in_a_group_of_one_process(tmp_path: Path, urls: str, spawn: Any) -> None:
    """`torchrun --nproc-per-node 1` has DDP too, which must not reduce before the last micro-batch."""
    overrides = ("micro_batch=3", "duration=3steps")
    spawn(_in_a_group, 1, tmp_path / "group", urls, overrides)
    make(tmp_path / "alone", urls, *overrides).train()
    assert losses(tmp_path / "group") == losses(tmp_path / "alone")


def test_a_fault_ends_the_loader_with_the_run(tmp_path: Path, urls: str) -> None:
    import multiprocessing

    def measure(dual: Any, done: int) -> dict[str, float]:
        raise IndexError("anything")

    plan = _span(Evaluator("2steps", measure))  # type: ignore[arg-type]
    before = {child.pid for child in multiprocessing.active_children()}  # those of other tests
    with pytest.raises(IndexError, match="anything"):
        make(tmp_path, urls, "data.workers=1", "duration=2000steps", evaluators=[plan]).train()
    assert not {child.pid for child in multiprocessing.active_children()} - before


def test_a_tokenizer_too_large_for_the_tower_is_refused(tmp_path: Path, urls: str) -> None:
    import json

    from vlp.models.find import find

    small = find("vlp-nano").config
    small["text_cfg"]["vocab_size"] = 400
    (tmp_path / "small.json").write_text(json.dumps(small))
    with pytest.raises(ValueError, match="has 49408 ids, the text tower embeddings for 400"):
        make(tmp_path, urls, model={"arch": str(tmp_path / "small.json")})


def test_a_limit_of_bad_samples_is_a_share_of_the_run_also_after_a_resume(tmp_path: Path) -> None:
    broken = {i: {"jpg": b"no"} for i in range(0, 400, 100)}
    urls = make_shards(tmp_path / "data", samples=400, broken=broken)
    limits = ("duration=4epochs", "data.max_bad_fraction=0.02", "save.every=40steps")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, urls, *limits, evaluators=[_span(stop_at(150))]).train()
    progress = make(tmp_path, urls, *limits).train()
    assert dict(progress.skips) == {"not_image": 16}


def test_an_evaluation_cut_short_is_made_up_for_and_none_is_done_twice(tmp_path: Path, urls: str) -> None:
    calls: list[int] = []

    def measure(dual: Any, done: int) -> dict[str, float]:
        calls.append(done)
        if calls == [4, 8, 10]:
            raise KeyboardInterrupt
        return {}

    plan = _span(Evaluator("4steps", measure))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, urls, evaluators=[plan]).train()
    make(tmp_path, urls, evaluators=[plan]).train()
    make(tmp_path, urls, evaluators=[plan]).train()
    assert calls == [4, 8, 10, 10]


def test_an_average_of_the_weights_can_be_evaluated(tmp_path: Path, urls: str) -> None:
    seen: list[torch.Tensor] = []

    def measure(dual: Any, done: int) -> dict[str, float]:
        seen.append(dual.visual.proj.detach().clone())
        return {}

    plans = [_span(Evaluator("10steps", measure, weights)) for weights in ("model", "ema")]  # type: ignore[arg-type]
    averaged = {"companions": [{"name": "ema", "decay": 0.9}, {"name": "ema", "decay": 0.5}]}
    trainer = make(tmp_path, urls, evaluators=plans, **averaged)
    trainer.train()
    assert torch.equal(seen[0], trainer.dual.visual.proj)
    assert torch.equal(seen[1], trainer.companions["ema"].averages["visual.proj"])
    assert not torch.equal(
        trainer.companions["ema"].averages["visual.proj"], trainer.companions["ema.2"].averages["visual.proj"]
    )
    with pytest.raises(ValueError, match='no weights called "emma"; did you mean "ema"'):
        make(tmp_path, urls, evaluators=[plans[0]._replace(weights="emma")], **averaged)


def test_moved_shards_are_the_same_data(tmp_path: Path, straight: Path, urls: str) -> None:
    import shutil

    shutil.copytree(Path(urls).parent, tmp_path / "moved")
    shutil.copytree(straight / "t", tmp_path / "t")
    progress = make(tmp_path, str(tmp_path / "moved" / "*.tar")).train()
    assert progress.step == 10


def test_a_loss_that_is_not_finite_stops_the_run_and_names_keys(tmp_path: Path, urls: str) -> None:
    trainer = make(tmp_path, urls, "max_nonfinite=1")
    with torch.no_grad():
        next(iter(trainer.dual.visual.parameters())).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"the weights are not.*\.tar.*2 in a row"):
        trainer.train()


def test_one_folder_has_one_run(tmp_path: Path, urls: str) -> None:
    trainer = make(tmp_path, urls)
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "t").mkdir()
        import json
        import socket

        (tmp_path / "t" / "lock.json").write_text(json.dumps({"pid": holder.pid, "host": socket.gethostname()}))
        with pytest.raises(checkpoint.CheckpointError, match=f"in use by process {holder.pid}"):
            trainer.train()
    finally:
        holder.kill()
        holder.wait()
    trainer.train()  # the holder is gone, so the lock is stale


def test_batchnorm_refuses_to_be_cut(tmp_path: Path, urls: str) -> None:
    model = {"arch": "resnet-tiny", "image_size": 32}
    with pytest.raises(ValueError, match="BatchNorm"):
        make(tmp_path, urls, "micro_batch=4", model=model)


def run_file(out: Path, urls: str, **changes: Any) -> Path:
    path = out / "run.yaml"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_yaml(settings(out, urls, **changes)))
    return path


def launch(path: Path, *overrides: str, world: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [*(head if world > 1 else [sys.executable]), "train.py", str(path), *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.slow
def test_two_processes_equal_one_and_a_run_goes_on_at_another_number(tmp_path: Path, urls: str, straight: Path) -> None:
    two = launch(run_file(tmp_path / "two", urls), "expect_world=2", world=2)
    assert two.returncode == 0, two.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(straight), abs=1e-5)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "mix", urls, evaluators=[_span(stop_at(5))]).train()
    mixed = launch(run_file(tmp_path / "mix", urls), world=2)
    assert mixed.returncode == 0, mixed.stderr[-3000:]
    assert losses(tmp_path / "mix") == pytest.approx(losses(straight), abs=1e-5)


@pytest.mark.slow
def test_sigterm_saves_and_asks_to_be_requeued(tmp_path: Path, urls: str, straight: Path) -> None:
    path = run_file(tmp_path, urls, duration="2000steps", save={"every": "100%", "keep": 2})
    child = subprocess.Popen(
        [sys.executable, "train.py", str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(losses(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 75, stderr[-3000:]
    assert "requeue" in stderr
    done = checkpoint.newest(tmp_path / "t" / "checkpoints").path
    assert done is not None
    assert checkpoint.step_of(done) == len(losses(tmp_path))


def test_a_tokenizer_trained_on_the_shards_is_what_the_run_uses(tmp_path: Path, urls: str) -> None:
    from vlp.cli import main
    from vlp.text import TOKENIZERS

    words = tmp_path / "words.model"
    with pytest.raises(SystemExit) as ended:
        main(["tokenizer", "train", urls, str(words), "--vocab-size", "340", "--kind", "bpe"])
    assert not ended.value.code
    tokenizer = {"name": "sentencepiece", "path": str(words)}
    trainer = make(tmp_path, urls, "duration=2steps", model={"arch": "vlp-nano", "tokenizer": tokenizer})
    assert trainer.dual.embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1] == 64
    assert trainer.dual.text.token_embedding.num_embeddings == 340
    assert trainer.dual.tokenizer.context == trainer.dual.context == 32 < TOKENIZERS.build(tokenizer).context
    trainer.train()
    again = pretrained.load(tmp_path / "t")
    assert again.tokenizer.encode(["a red square"]) == trainer.dual.tokenizer.encode(["a red square"])
