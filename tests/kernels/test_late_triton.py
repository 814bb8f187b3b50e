"""The Triton form without a GPU: run by Triton's interpreter, and compiled for two GPUs.

Both need their own process: Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.test_late import assert_same, inputs, run

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = 99 * 1024  # bytes that a program may have on every GPU since Ampere
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def _alone(what: str, tmp_path: Path, **env: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path), **env}
    command = [sys.executable, "-m", "tests.kernels.test_late_triton", what]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_interpreted_equals_reference(tmp_path):
    _alone("interpreted", tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_compiles_for_gpus_that_are_not_here(tmp_path):
    _alone("compiled", tmp_path)


def interpreted() -> None:
    for case in (values, one, half, nan, recomputed):
        case()


def values() -> None:
    """Kept winners; with ties, a text longer than a tile, and more patches than one tile takes."""
    for integers, pad_max in [(False, "exclude"), (True, "zero")]:
        for shape in [(5, 7, 9, 6, 4), (2, 300, 3, 5, 8), (3, 5, 4, 40, 72)]:
            _compare(inputs(*shape, dtype=torch.float32, integers=integers), pad_max=pad_max)


def recomputed() -> None:
    """Winners made again in the backward, for one image at a time."""
    from vlp.kernels import late_triton

    late_triton.KEEP_BYTES = 100
    for shape in [(5, 7, 9, 6, 4), (2, 300, 3, 5, 8)]:
        _compare(inputs(*shape, dtype=torch.float32), pad_max="exclude")


def one() -> None:
    """One direction, and images without a mask."""
    x, y, x_mask, y_mask = inputs(4, 20, 6, 18, 4, dtype=torch.float32)
    x = torch.nan_to_num(x.detach(), nan=0.2).requires_grad_()
    for want in ("rows", "columns"):
        _compare((x, y, None, y_mask), want=want)
        _compare((x, y, x_mask & False, y_mask), want=want)


def half() -> None:
    """Products of fp16 (the interpreter has no bf16); the weights of the winners are rounded to it too."""
    x, y, x_mask, y_mask = inputs(6, 9, 5, 6, 32, dtype=torch.float16)
    found = run(x, y, x_mask, y_mask, impl="triton")
    same = [side.detach().float().requires_grad_() for side in (x, y)]
    expected = run(*same, x_mask, y_mask, impl="reference")
    assert [part.dtype for part in found] == [torch.float32, torch.float32, torch.float16, torch.float16]
    assert_same(found[:2], expected[:2], atol=1e-5)
    assert_same([grad.float() for grad in found[2:]], expected[2:], atol=5e-3)


def nan() -> None:
    """What is not a number is not hidden by a maximum."""
    x, y, x_mask, y_mask = inputs(dtype=torch.float32)
    y_mask[3, :3] = True
    y = torch.nan_to_num(y.detach(), nan=0.1)
    y[3, 2] = torch.nan
    for part in run(x, y.requires_grad_(), x_mask, y_mask, impl="triton")[:2]:
        assert part[0, 3].isnan()
        assert part[:, [0, 1, 2, *range(4, 9)]].isfinite().all()


def _compare(given, **how) -> None:
    assert_same(run(*given, **how, impl="triton"), run(*given, **how, impl="reference"), atol=1e-5)


def compiled() -> None:
    """The largest tiles that `late_triton` may choose: types agree, which no interpreter checks, and they fit."""
    from vlp.kernels.late_programs import gradients, maxima

    how = {"OVER": True, "ALONG": True, "PRECISION": "tf32x3"}
    for element, width, capability in [("bf16", 64, 90), ("fp32", 32, 80)]:
        tiles = {"TILE": 256, "ITEMS": 4, "SLOTS": 16, "WIDTH": width}
        _compile(maxima, element, {**how, **tiles, "AT": True, "BY": True}, 8, capability)
        for items, slots, others, other_slots, warps in [(1, 128, 4, 16, 8), (4, 16, 1, 64, 4)]:
            tiles = {"ITEMS": items, "SLOTS": slots, "OTHERS": others, "OTHER_SLOTS": other_slots, "WIDTH": 2 * width}
            _compile(gradients, element, {**how, **tiles}, warps, capability)


def _compile(program, element: str, constants: dict, warps: int, capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = dict.fromkeys(("held", "walked", "tokens"), f"*{element}")
    types |= dict.fromkeys(("over", "along", "grad"), "*fp32") | dict.fromkeys(("at", "by"), "*u8")
    types |= dict.fromkeys(("held_real", "walked_real", "walked_width"), "*i32")
    types |= dict.fromkeys(("side_real", "other_real", "other_width"), "*i32")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in program.arg_names}
    source = ASTSource(program, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": 2}
    shared = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared
    assert shared <= SHARED_MEMORY, f"{program.__name__} {element} {constants} needs {shared} bytes of shared memory"


if __name__ == "__main__":
    {"interpreted": interpreted, "compiled": compiled}[sys.argv[1]]()
