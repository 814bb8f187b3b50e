"""Processes talking to each other. Every function is the identity when there is only one process.

W is the number of processes. A loss calls the same collectives in the same order on every rank, whatever its data are:
a rank that leaves one out makes the others wait until the time limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.nn.functional import pad


def rank() -> int:
    """Number of this process, 0-based."""
    return torch_dist.get_rank() if active() else 0


def world() -> int:
    """Number of processes W."""
    return torch_dist.get_world_size() if active() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def active() -> bool:
    """Whether a process group was started."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def start(*, rank: int, world: int, rendezvous: str, backend: str = "gloo", seconds: float = 1800) -> None:
    """Join the process group at `rendezvous` ("file:///PATH", "tcp://host:port", "env://") and check its size."""
    with named_rendezvous(rank=rank, world=world, where=rendezvous):
        torch_dist.init_process_group(
            backend, init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
        )
    expect(world)


@contextmanager
def named_rendezvous(*, rank: object, world: object, where: str) -> Iterator[None]:
    """Around what starts the process group: RuntimeError with what to do when a port is taken or ranks stay out."""
    try:
        yield
    except torch_dist.DistError as error:
        said = str(error).partition("\n")[0]
        if "EADDRINUSE" in said or "address already in use" in said:
            advice = (
                "another run, or what is left of an ended one, holds this port. Let torchrun find a free one "
                "(--standalone, or --rdzv-endpoint HOST:0), or give another (--master-port, MASTER_PORT)"
            )
        else:
            advice = (
                "not every rank came, or the address is wrong. Start as many as WORLD_SIZE says, each with its own "
                "RANK, on hosts that reach this address and port; end the processes of an earlier start first"
            )
        raise RuntimeError(f"rank {rank} of {world} could not meet the others at {where}: {advice} ({said})") from error


def stop() -> None:
    """Leave the process group if there is one."""
    if active():
        torch_dist.destroy_process_group()


def expect(num_processes: int) -> None:
    """RuntimeError unless W is `num_processes`: some launchers start one process and say nothing."""
    if world() != num_processes:
        raise RuntimeError(
            f"expected {num_processes} processes, found {world()}; start them with "
            f"`torchrun --nproc-per-node {num_processes} train.py ...` "
            "(`accelerate launch --cpu --num_processes N` starts only one)"
        )


def barrier() -> None:
    """Wait until every process is here."""
    if active():
        torch_dist.barrier()


def gather(x: Tensor) -> Tensor:
    """[B, ...] of every rank as [W*B, ...]; the gradient of a slice is the sum over all ranks.

    B and the other sizes are the same on every rank. If one rank runs backward through it, all must.
    """
    if world() == 1:
        return x
    if x.requires_grad and torch.is_grad_enabled():
        return _Gather.apply(x)  # type: ignore[no-any-return]
    return gather_const(x)


def gather_const(x: Tensor) -> Tensor:
    """[B, ...] of every rank as [W*B, ...] without gradient; any dtype."""
    if world() == 1:
        return x.detach()
    plain = x.detach().contiguous()
    wire = plain.view(torch.uint8) if plain.dtype is torch.bool else plain
    out = wire.new_empty((world() * wire.shape[0], *wire.shape[1:]))
    torch_dist.all_gather_into_tensor(out, wire)
    return out.view(plain.dtype)


def gather_padded(x: Tensor, *, dims: Sequence[int] = (1, 2)) -> Tensor:
    """Like `gather`, of tensors whose `dims` may differ between ranks: all are padded at the end to the largest.

    Padding is zero (False). Sizes are exchanged first, in one small collective.
    """
    if world() == 1:
        return x
    sizes = gather_const(torch.tensor([[x.shape[d] for d in dims]], device=x.device))
    widths = [0] * (2 * x.ndim)  # torch's pad counts from the last dimension, (before, after) each
    for d, largest in zip(dims, sizes.amax(0).tolist(), strict=True):
        widths[2 * (x.ndim - 1 - d % x.ndim) + 1] = largest - x.shape[d]
    return gather(pad(x, widths))


def total(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient; counts of bool come back as long."""
    result = x.detach().clone()
    if result.dtype is torch.bool:
        result = result.long()
    if world() > 1:
        torch_dist.all_reduce(result)
    return result


def agree(flag: bool) -> bool:
    """Whether `flag` is true on any rank."""
    if world() == 1:
        return flag
    return bool(total(torch.tensor(int(flag), device=_device())).item())


def gather_object(obj: Any) -> list[Any]:
    """`obj` of every rank, in order of rank."""
    if world() == 1:
        return [obj]
    result: list[Any] = [None] * world()
    torch_dist.all_gather_object(result, obj)
    return result


def broadcast_object(obj: Any) -> Any:
    """`obj` of rank 0, on every rank."""
    if world() == 1:
        return obj
    box = [obj]
    torch_dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def _device() -> torch.device:
    """Where small tensors must lie for the backend in use."""
    return torch.device("cuda") if torch_dist.get_backend() == "nccl" else torch.device("cpu")


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is right for every layout of the incoming gradient.

    torch.distributed.nn's form gives wrong gradients on gloo when the incoming gradient is not contiguous.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_const(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.shape[0] // world()
        if torch_dist.get_backend() == "nccl":
            result = grad.new_empty((own, *grad.shape[1:]))
            torch_dist.reduce_scatter_tensor(result, grad.contiguous())
            return result
        # a copy, since all_reduce writes in place and autograd may share the gradient; gloo has no reduce_scatter
        whole = grad.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(whole)
        return whole[rank() * own : (rank() + 1) * own]
