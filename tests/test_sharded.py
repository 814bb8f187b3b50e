"""FSDP2: the same training as one process's, and checkpoints that any number of processes reads."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from tests.conftest import run_processes
from tests.shards import make_shards
from tests.test_trainer import losses, make
from vlp import checkpoint, dist, trained
from vlp.duration import Span
from vlp.models import pretrained
from vlp.optim_state import optimizer_tensors
from vlp.trainer import Evaluator

FSDP2 = "parallel=fsdp2"
EMA = {"companions": [{"name": "ema", "decay": 0.9}]}


def trained_until(out: Path, urls: str, *overrides: str, stop: int, **changes: Any) -> dict[str, Any]:
    """A run that is cut short after step `stop`: what this process held, and made of an evaluation."""
    seen: dict[str, Any] = {}

    def measure(dual: Any, done: int) -> dict[str, float]:
        ids = torch.tensor(dual.tokenizer.encode(["a red square"]))
        seen["text"] = dual.encode_text(ids).detach().clone()
        if done == stop:
            raise KeyboardInterrupt
        return {}

    trainer = make(out, urls, FSDP2, *overrides, evaluators=[Evaluator(STEP, measure)], **changes)
    seen["numbers"] = sum(_local(p).numel() for p in trainer.dual.parameters())
    seen["all"] = sum(p.numel() for p in trainer.dual.parameters())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    seen["moments"] = sum(_local(t).numel() for t in optimizer_tensors(trainer.parts.adamw).values())
    return seen


def by_two(rank: int, world: int, root: Path, urls: str) -> dict[str, Any]:
    """Run by two processes: a run, the same gone on with, one with GradCache, one whose disk fills up."""
    _as_launched()
    seen = trained_until(root / "run", urls, stop=9, **EMA)
    seen["ids"] = (dist.rank(), dist.world())
    if rank == 0:
        gone_on(root / "run", root / "again")
    dist.barrier()
    trained_until(root / "again", urls, stop=6, **EMA)
    recomputed = {"arch": "vlp-nano", "grad_checkpointing": True}
    trained_until(root / "cached", urls, "micro_batch=3", stop=3, model=recomputed, **EMA)
    seen["full"] = full_disk(rank, root / "full", urls)
    return seen


def by_four(rank: int, world: int, out: Path, urls: str) -> None:
    _as_launched()
    trained_until(out, urls, "expect_world=4", stop=6, **EMA)


def _as_launched() -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # Accelerate asks for them; the group is there already


def full_disk(rank: int, out: Path, urls: str) -> str:
    """The words of a run when the disk of the second process takes 4 KiB from step 5 on."""

    def measure(dual: Any, done: int) -> dict[str, float]:
        if done == 5 and rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))
        return {}

    trainer = make(out, urls, FSDP2, evaluators=[Evaluator(STEP, measure)])
    with pytest.raises(checkpoint.NoRoomError) as error:
        trainer.train()
    return str(error.value)


STEP = Span(1, "steps")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, urls: str) -> Path:
    out = tmp_path_factory.mktemp("straight")
    make(out, urls, **EMA).train()
    return out


def saved(out: Path, step: int) -> Path:
    return out / "t" / "checkpoints" / checkpoint.name_of(step)


def weights(path: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(path / kind / pretrained.WEIGHTS_FILE)


def gone_on(source: Path, out: Path) -> Path:
    """A run as it was when step 4 was saved."""
    shutil.copytree(source, out)
    (out / "t" / "metrics.jsonl").unlink()
    shutil.rmtree(saved(out, 8))
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, urls: str) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("two")
    return root, run_processes(by_two, 2, root, urls, seconds=400)


@pytest.mark.slow
def test_each_of_two_holds_half_and_they_learn_as_one(two: tuple[Path, list[dict[str, Any]]], straight: Path) -> None:
    root, held = two
    assert losses(root / "run") == pytest.approx(losses(straight)[:9], abs=1e-5)
    for number, rank in enumerate(held):  # half of the weights, and of both moments
        assert rank["ids"] == (number, 2)
        assert rank["numbers"] < 0.51 * rank["all"]
        assert rank["moments"] < 1.02 * rank["all"] + 200
        torch.testing.assert_close(rank["text"], held[0]["text"], atol=0, rtol=0)


@pytest.mark.slow
def test_saved_by_two_it_goes_on_with_one_two_and_four(
    two: tuple[Path, list[dict[str, Any]]], tmp_path: Path, urls: str, straight: Path
) -> None:
    run = two[0] / "run"
    assert losses(two[0] / "again") == losses(run)[4:6]  # bit for bit
    run_processes(by_four, 4, gone_on(run, tmp_path / "four"), urls, seconds=400)
    trained_until(gone_on(run, tmp_path / "one"), urls, stop=6, **EMA)
    make(gone_on(run, tmp_path / "ddp"), urls, "allow_change=[parallel]", **EMA).train()  # and without cutting
    for out in ("four", "one", "ddp"):
        assert losses(tmp_path / out)[:2] == pytest.approx(losses(run)[4:6], abs=1e-6)
    for kind in ("model", "model_ema"):
        ours, other = weights(saved(tmp_path / "ddp", 10), kind), weights(saved(straight, 10), kind)
        assert ours.keys() == other.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_what_is_saved_is_hashed_and_is_a_model(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(two[0] / "run", out)
    at = saved(out, 8)
    files = checkpoint.read_json(at / checkpoint.MANIFEST)["files"]
    assert {"sharded/shard-00001-model-00001-of-00001.safetensors", "model/open_clip_model.safetensors"} < set(files)
    assert not (at / "optimizer.safetensors").exists()
    assert checkpoint.fault(at) == ""
    shard = at / "sharded" / "shard-00002-model-00001-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "shard-00002-model-00001-of-00001.safetensors does not have the hash" in checkpoint.fault(at)
    dual = trained.load(out / "t")  # what evaluation opens: the newest whole one, step 4
    there = weights(saved(out, 4))
    assert torch.equal(dual.visual.conv1.weight, there["visual.conv1.weight"])


@pytest.mark.slow
def test_gradcache_with_recomputed_blocks(two: tuple[Path, list[dict[str, Any]]], straight: Path) -> None:
    assert losses(two[0] / "cached") == pytest.approx(losses(straight)[:3], rel=2e-4)


@pytest.mark.slow
def test_a_full_disk_of_one_process_stops_all_and_leaves_the_last_checkpoint(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, held = two
    for rank in held:
        assert "step-00000008" in rank["full"]
        assert "process 1: " in rank["full"]
        assert "it needs" in rank["full"]
        assert "are free" in rank["full"]
    assert [path.name for path in (root / "full" / "t" / "checkpoints").iterdir()] == ["step-00000004"]
    assert checkpoint.fault(saved(root / "full", 4)) == ""


@pytest.mark.parametrize(
    ("override", "changes", "reason"),
    [
        ("precision=fp16", {}, "gradient scaler"),
        ("compile=true", {}, "graph would hold weights"),
        ("seed=1", {"companions": ["momentum"]}, "companion momentum"),
        ("seed=1", {"model": {"arch": "resnet-tiny", "image_size": 32}}, "frozen_batchnorm"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, urls: str, override: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"parallel=fsdp2 does not go together with.*{reason}.*parallel=ddp"):
        make(tmp_path, urls, FSDP2, override, **changes)


def test_a_run_of_whole_tensors_is_not_cut(straight: Path, urls: str) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"parallel: ddp in the checkpoint, fsdp2 now"):
        make(straight, urls, FSDP2, **EMA).train()
    with pytest.raises(checkpoint.CheckpointError, match=r"written with parallel=ddp.*model\.pretrained="):
        make(straight, urls, FSDP2, "allow_change=[parallel]", **EMA).train()


def test_one_process_alone_reads_what_it_wrote(tmp_path: Path, urls: str, straight: Path) -> None:
    trained_until(tmp_path, urls, stop=5, **EMA)
    make(tmp_path, urls, FSDP2, **EMA).train()
    assert losses(tmp_path) == losses(straight)
    for kind in ("model", "model_ema"):
        ours, other = weights(saved(tmp_path, 10), kind), weights(saved(straight, 10), kind)
        assert all(torch.equal(tensor, other[name]) for name, tensor in ours.items())
