"""Collectives against what one process would compute."""

from __future__ import annotations

import pytest
import torch

from vlp import dist


def _rows(rank: int) -> torch.Tensor:
    return torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * rank


def _gather_gradient(rank: int, world: int) -> torch.Tensor:
    x = _rows(rank).requires_grad_()
    everyone = dist.gather(x)
    assert torch.equal(everyone, torch.cat([_rows(r) for r in range(world)]))
    # the gradient that comes in is a transposed view: torch.distributed.nn's gather scrambles it on gloo
    weight = (torch.arange(6.0 * world, dtype=torch.float64) * (rank + 1)).reshape(3, 2 * world)
    (everyone.T * weight).sum().backward()
    seen = torch.autograd.grad((dist.gather(x).T * weight).sum(), x)[0]
    assert torch.equal(seen, x.grad)
    return x.grad


def test_gather_gradient_is_summed_over_ranks_and_right_for_transposed_gradients(spawn):
    found = torch.cat(spawn(_gather_gradient, 2))
    weight = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) * (1 + 2)
    assert torch.equal(found, weight.T)


def _non_contiguous(rank: int, world: int) -> bool:
    x = torch.zeros(2, 3, requires_grad=True)
    incoming = torch.arange(12.0).reshape(3, 4).T * (rank + 1)
    incoming = incoming.contiguous() if rank == 0 else incoming
    assert incoming.is_contiguous() == (rank == 0)
    dist.gather(x).backward(incoming)
    return torch.equal(x.grad, 3 * torch.arange(12.0).reshape(3, 4).T[2 * rank : 2 * rank + 2])


def test_gather_takes_gradients_of_another_layout_on_each_rank(spawn):
    assert spawn(_non_contiguous, 2) == [True, True]


def _gather_leaves_the_incoming_gradient_alone(rank: int, world: int) -> torch.Tensor:
    x = torch.ones(1, 2, requires_grad=True)
    incoming = torch.full((world, 2), float(rank + 1))
    dist.gather(x).backward(incoming)
    return incoming


def test_gather_does_not_write_into_the_incoming_gradient(spawn):
    first, second = spawn(_gather_leaves_the_incoming_gradient_alone, 2)
    assert torch.equal(first, torch.full((2, 2), 1.0))
    assert torch.equal(second, torch.full((2, 2), 2.0))


def _constants(rank: int, world: int) -> None:
    assert dist.gather_const(torch.tensor([rank == 0, True])).tolist() == [True, True, False, True]
    assert dist.gather_const(torch.tensor([1 << 40]) + rank).tolist() == [1 << 40, (1 << 40) + 1]
    assert not dist.gather_const(torch.ones(1, requires_grad=True)).requires_grad
    assert dist.total(torch.tensor([True, rank == 0]).sum()).item() == 3
    counted = torch.tensor([2.0])
    assert dist.total(counted).item() == 4
    assert counted.item() == 2  # not in place
    assert dist.agree(rank == 1)
    assert not dist.agree(False)
    assert dist.gather_object({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert dist.broadcast_object(f"from {rank}") == "from 0"
    assert dist.is_main() == (rank == 0)
    dist.barrier()
    dist.expect(2)
    with pytest.raises(RuntimeError, match="expected 3 processes, found 2"):
        dist.expect(3)


def test_collectives_without_gradient(spawn):
    spawn(_constants, 2)


def _padded(rank: int, world: int) -> torch.Tensor:
    x = torch.ones(2, 1 + rank, 3 - rank, 2, requires_grad=True)
    everyone = dist.gather_padded(x)
    assert everyone.shape == (4, 2, 3, 2)
    assert everyone[:2, 1].sum() == 0
    assert everyone[2:, :, 2].sum() == 0
    assert everyone.sum() == 2 * 1 * 3 * 2 + 2 * 2 * 2 * 2
    (everyone.permute(3, 2, 1, 0) * (rank + 1)).sum().backward()
    mask = dist.gather_padded(torch.ones(2, 1 + rank, 3 - rank, dtype=torch.bool))
    assert torch.equal(mask, everyone[..., 0] > 0)
    return x.grad


def test_gather_padded_pads_to_the_largest_and_cuts_the_gradient_back(spawn):
    first, second = spawn(_padded, 2)
    assert torch.equal(first, torch.full((2, 1, 3, 2), 3.0))
    assert torch.equal(second, torch.full((2, 2, 2, 2), 3.0))


def test_one_process_is_the_identity():
    x = torch.ones(2, 3, requires_grad=True)
    assert dist.gather(x) is x
    assert dist.gather_padded(x, dims=(1,)) is x
    assert not dist.gather_const(x).requires_grad
    assert (dist.rank(), dist.world(), dist.is_main(), dist.active()) == (0, 1, True, False)
    assert dist.agree(True)
    assert not dist.agree(False)
    assert dist.total(torch.tensor(3)).item() == 3
    assert dist.gather_object(1) == [1]
    assert dist.broadcast_object(1) == 1
    dist.barrier()
    dist.expect(1)
    with pytest.raises(RuntimeError, match="torchrun"):
        dist.expect(2)


def _fails_on_one(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("the reason")
    dist.barrier()  # would wait for ever


def test_spawn_raises_the_first_error_while_others_wait(spawn):
    with pytest.raises(AssertionError, match=r"rank 1 of 2 failed(.|\n)*the reason"):
        spawn(_fails_on_one, 2)
