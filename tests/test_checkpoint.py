"""Checkpoints are whole or not there."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch

from vlp import checkpoint
from vlp.optim import Optim
from vlp.optim_state import load_optimizer, optimizer_tensors


def fill(value: float):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        checkpoint.save_tensors(folder / "model" / "w.safetensors", {"w": torch.full((3,), value)})

    return write


def test_newest_valid_is_found_and_others_are_named(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.write(tmp_path, step, fill(step), keep=0)
    weights = tmp_path / "step-00000004" / "model" / "w.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    found = checkpoint.newest(tmp_path)
    assert found.path == tmp_path / "step-00000002"
    reasons = {path.name: reason for path, reason in found.rejected}
    assert "hash" in reasons["step-00000004"]
    assert "did not finish" in reasons["step-00000003"]


def test_old_ones_go_only_after_the_new_one_is_there(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, fill(1), keep=1)

    def fails(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))  # a disk that takes 4 KiB
        try:
            checkpoint.save_tensors(folder / "big.safetensors", {"w": torch.zeros(1 << 16)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(checkpoint.CheckpointError, match=r"step-00000002: .*File too large.* bytes .* are free"):
            checkpoint.write(tmp_path, 2, fails, keep=1)
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000001"]
    checkpoint.write(tmp_path, 2, fill(2), keep=1)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002"]


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, fill(1), keep=2)
    leftover = tmp_path / ".step-00000002.tmp"
    leftover.mkdir()
    (leftover / "part").write_bytes(b"x")
    assert checkpoint.newest(tmp_path).path == tmp_path / "step-00000001"
    checkpoint.write(tmp_path, 3, fill(3), keep=2)
    assert not leftover.exists()


def test_optimizer_state_goes_by_name_and_comes_back_exactly(tmp_path: Path) -> None:
    def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = Optim().build(model, depths={})
        for _ in range(steps):
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    model, optimizer = trained(3)
    checkpoint.save_tensors(tmp_path / "o.safetensors", optimizer_tensors(optimizer))
    other, fresh = trained(0)
    other.load_state_dict(model.state_dict())
    load_optimizer(fresh, checkpoint.load_tensors(tmp_path / "o.safetensors"))
    for m, o in ((model, optimizer), (other, fresh)):
        m(torch.ones(1, 3)).square().sum().backward()
        o.step()
    assert torch.equal(model.weight, other.weight)
    with pytest.raises(checkpoint.CheckpointError, match="no state for"):
        load_optimizer(fresh, {"exp_avg/other": torch.ones(1)})


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(checkpoint.CheckpointError, match=r"x\.safetensors is not readable"):
        checkpoint.load_tensors(tmp_path / "x.safetensors")


def test_what_a_killed_writer_left_takes_no_room_from_the_next_save(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000002.tmp"
    leftover.mkdir(parents=True)
    checkpoint.begin(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == [".step-00000005.tmp"]


def test_a_run_that_another_process_went_on_with_is_refused(tmp_path: Path) -> None:
    found = checkpoint.newest(tmp_path)
    checkpoint.refuse_moved_on(tmp_path, found)
    first = checkpoint.write(tmp_path, 1, fill(1), keep=2)
    with pytest.raises(checkpoint.CheckpointError, match="wrote step-00000001; start again"):
        checkpoint.refuse_moved_on(tmp_path, found)
    found = checkpoint.newest(tmp_path)
    checkpoint.refuse_moved_on(tmp_path, found)
    first.rename(tmp_path / "gone")
    with pytest.raises(checkpoint.CheckpointError, match="another process went on"):
        checkpoint.refuse_moved_on(tmp_path, found)
