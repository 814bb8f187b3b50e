"""Whole runs: in half precision, compiled, told to leave with all their processes, and read by others."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.shards import make_shards
from tests.test_trainer import ROOT, _span, final_weights, losses, make, run_file, settings, stop_at
from vlp import checkpoint, config
from vlp.doctor import examine
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.run import Run


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.slow
def test_bf16_is_near_fp32_and_resumes_bit_for_bit(tmp_path: Path, urls: str) -> None:
    make(tmp_path / "full", urls).train()
    seen: list[torch.dtype] = []
    trainer = make(tmp_path / "half", urls, precision="bf16")
    trainer.model.register_forward_hook(lambda *args: seen.extend(x.dtype for x in args[2][:3]))
    inner: list[torch.dtype] = []
    trainer.dual.image_blocks[0].mlp.register_forward_hook(lambda *args: inner.append(args[2].dtype))
    trainer.train()
    assert set(seen) == {torch.float32}
    assert set(inner) == {torch.bfloat16}
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=5e-2)
    assert losses(tmp_path / "half") != losses(tmp_path / "full")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", urls, precision="bf16", evaluators=[_span(stop_at(5))]).train()
    make(tmp_path / "cut", urls, precision="bf16").train()
    assert losses(tmp_path / "cut") == losses(tmp_path / "half")
    left, right = final_weights(tmp_path / "cut"), final_weights(tmp_path / "half")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert {tensor.dtype for tensor in left.values()} == {torch.float32}


def test_bf16_gradcache_is_near_the_whole_batch(tmp_path: Path, urls: str) -> None:
    make(tmp_path / "whole", urls, "duration=4steps", precision="bf16").train()
    make(tmp_path / "parts", urls, "duration=4steps", "micro_batch=3", precision="bf16").train()
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-2)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile on CPU needs C++")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it on whatever a block is given
def test_compiled_equals_plain_without_a_new_graph_for_every_batch(tmp_path: Path, urls: str) -> None:
    from torch._dynamo.utils import counters

    make(tmp_path / "plain", urls, "duration=8steps").train()
    torch._dynamo.reset()
    counters.clear()
    make(tmp_path / "compiled", urls, "duration=3steps", compile=True).train()
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 4  # pictures, texts, a single text, a dummy text
    assert not counters["graph_break"]
    make(tmp_path / "same", urls, "duration=8steps", compile=True).train()
    assert counters["stats"]["unique_graphs"] <= 4
    assert losses(tmp_path / "same") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert not any("_orig_mod" in name for name in final_weights(tmp_path / "compiled"))
    torch._dynamo.reset()


def processes_of(pid: int) -> Iterator[int]:
    """`pid` and all that it started, whatever session they are in."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from processes_of(int(child))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the run's processes through /proc")
@pytest.mark.parametrize("told", ["launcher", "everyone"])
def test_two_processes_told_to_leave_save_and_go_on(tmp_path: Path, urls: str, told: str) -> None:
    """By a service manager only the launcher is told; by a batch system every process of the job, loaders included."""
    steps = "60steps"
    make(tmp_path / "straight", urls, duration=steps).train()
    pace = {"data": {**settings(tmp_path, urls)["data"], "workers": 1}, "save": {"every": "100%", "keep": 2}}
    path = run_file(tmp_path / "cut", urls, duration=steps, **pace)
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = subprocess.Popen(
        [*head, "train.py", str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(losses(tmp_path / "cut")) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in list(processes_of(child.pid))[: 1 if told == "launcher" else None]:
            os.kill(pid, signal.SIGTERM)
        _, stderr = child.communicate(timeout=90)
    finally:
        child.kill()
    assert child.returncode != 0, "it was done before it was told"
    assert "requeue me" in stderr, stderr[-3000:]
    done = checkpoint.newest(tmp_path / "cut" / "t" / "checkpoints").path
    assert done is not None
    assert 3 <= checkpoint.step_of(done) == len(losses(tmp_path / "cut")) < 60
    again = subprocess.run(
        [*head, "train.py", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "straight"), abs=1e-4)


def test_an_absent_tracker_is_refused(tmp_path: Path, urls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else real(name, *a))
    with pytest.raises(ValueError, match=r"log\.trackers: tensorboard is not installed.*\.\[tracking\]"):
        make(tmp_path, urls, log={"every": "1steps", "trackers": ["tensorboard"]})


def test_open_clip_reads_the_checkpoint_of_a_run(tmp_path: Path, urls: str) -> None:
    import open_clip

    make(tmp_path, urls, "duration=3steps", losses=["infonce", {"name": "sigmoid", "weight": 0.1}]).train()
    folder = tmp_path / "t" / "checkpoints" / "step-00000003" / "model"
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    ours, model = pretrained.load(tmp_path / "t"), model.eval()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = torch.stack([transform(Image.fromarray(picture.permute(1, 2, 0).numpy())) for picture in pixels])
    texts = ["a red square", "nothing of the kind, and said with far more words than any caption of the shards had"]
    ids = tokenizer(texts)
    assert torch.equal(ids, ours.tokenizer(texts))
    with torch.no_grad():
        expected = model.encode_image(pictures, normalize=True), model.encode_text(ids, normalize=True)
        torch.testing.assert_close(ours.encode_image(pixels), expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_text(ids), expected[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.logit_scale.reshape(1), ours.logit_scale)
    assert ours.logit_bias is not None
    torch.testing.assert_close(model.logit_bias.reshape(1), ours.logit_bias)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system gives a process all cores")
def test_threads_follow_the_environment_and_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config.validate(Run, settings(Path("out"), "x.tar", threads=None), where="test")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [run.torch_threads(world) for world in (1, 2, 4, 8)] == [6, 3, 1, 1]
    for value, threads in (("3", 3), ("4,2", 4), ("0", 6), ("many", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert run.torch_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
    assert run.torch_threads(2) == 3
    assert run.model_copy(update={"threads": 5}).torch_threads() == 5


def doctor(out: Path, urls: str, **data: Any) -> tuple[bool, str]:
    """The verdict on a run and what is shown of it."""
    values = settings(out, urls)
    values["data"] |= data
    shown = io.StringIO()
    verdict = examine(config.validate(Run, values, where="test"), console=Console(file=shown, width=160))
    return verdict, shown.getvalue()


def row(shown: str, what: str) -> str:
    """The mark of a finding, and its text."""
    (line,) = [line for line in shown.splitlines() if f" {what} " in line]
    return " ".join(line.replace("│", " ").replace("┃", " ").split())


def test_doctor_on_two_captions_a_picture(tmp_path: Path, urls: str) -> None:
    captions = {"fields": ["caption", "captions"], "pick": "all", "count": 2}
    broken = {i: {"json": b'{"captions": ["one of two %d", "two of two %d"]}' % (i, i)} for i in range(48)}
    both = make_shards(tmp_path / "two", broken=broken)
    source = {"name": "shards", "urls": both, "captions": captions}
    verdict, shown = doctor(tmp_path, urls, sources=[source], captions=2)
    assert verdict, shown
    assert row(shown, "unreadable").startswith("ok")
    assert row(shown, "first loss").startswith("ok")
    with Image.open(tmp_path / "t" / "doctor.png") as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 10


def test_doctor_on_labels(tmp_path: Path, urls: str) -> None:
    labelled = make_shards(tmp_path / "labels", broken={i: {"cls": b"%d" % (i % 4)} for i in range(48)})
    labels = {"classes": ["red", "green", "blue", "yellow"]}
    source = {"name": "shards", "urls": labelled, "kind": "label", "labels": labels}
    verdict, shown = doctor(tmp_path, urls, sources=[source])
    assert verdict, shown
    assert row(shown, "equal captions").startswith("ok")
    assert (tmp_path / "t" / "doctor.png").is_file()


def test_doctor_brings_companions_along(tmp_path: Path, urls: str) -> None:
    """What a teacher, a momentum copy, a queue and an average add to the batch is there, and is counted."""
    torch.manual_seed(1)
    pretrained.save(Model(arch="vlp-nano").build(), tmp_path / "teacher")
    values = settings(tmp_path, urls, micro_batch=4, precision="bf16")
    values["data"]["views"] = [{"scale": [0.5, 1.0]}] * 2
    values["losses"] = ["infonce", "distill", "momentum_contrast", {"name": "mmc", "hidden": 16}]
    values["companions"] = [
        {"name": "teacher", "pretrained": str(tmp_path / "teacher")},
        {"name": "momentum", "outputs": ["image", "text", "view_image", "view_tokens"]},
        {"name": "queue", "size": 1 << 16},
        {"name": "ema"},
    ]
    shown = io.StringIO()
    with_all = examine(config.validate(Run, values, where="test"), console=Console(file=shown, width=200))
    assert with_all, shown.getvalue()
    first = row(shown.getvalue(), "first loss")
    assert first.startswith("ok")
    assert all(name in first for name in ("distill", "momentum_contrast", "mmc/masked"))
    alone = doctor(tmp_path, urls)[1]
    more = _mebibytes(row(shown.getvalue(), "disk")) - _mebibytes(row(alone, "disk"))
    assert more > 4 * 2 * 64 * (1 << 16) * 4 / 2**20, "the queue's pictures and captions in each of four checkpoints"
    assert not any((tmp_path / "t" / name).exists() for name in ("checkpoints", "metrics.jsonl"))


def _mebibytes(text: str) -> float:
    found = re.search(r"(\d+) MiB for checkpoints", text)
    assert found, text
    return float(found[1])


def test_doctor_looks_at_unreadable_pictures(tmp_path: Path) -> None:
    urls = make_shards(tmp_path / "data", broken={i: {"jpg": b"<html>404</html>"} for i in range(0, 48, 3)})
    verdict, shown = doctor(tmp_path, urls)
    assert verdict, shown
    assert row(shown, "unreadable").startswith("look")
    assert "not_image" in shown
