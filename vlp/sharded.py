"""Training with the tensors of the model cut over the processes (FSDP2), and its checkpoints.

Each process keeps 1 / W of the weights, gradients, optimizer state and averages; a block's weights are gathered while
it runs (Zhao et al., PyTorch FSDP, arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`). Checkpoints are written by
`torch.distributed.checkpoint` in its safetensors format, one file a process: they are read at any number of processes,
and nothing in them can run, which its default format, pickled, could not promise.
"""

from __future__ import annotations

import copy
import errno
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_cut
from torch.distributed.checkpoint.state_dict_saver import save as save_cut
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vlp import checkpoint, dist
from vlp.models.companions import Ema
from vlp.models.dual import Dual
from vlp.room import is_full


class Shards:
    """A model that is cut over the processes, in place; alone in the world it stays as it is."""

    def __init__(self, dual: Dual) -> None:
        self.dual = self._blank = dual
        if dist.world() == 1:
            return
        self._blank = _without_weights(dual)
        mesh = init_device_mesh(dual.logit_scale.device.type, (dist.world(),))
        for block in [*dual.image_blocks, *dual.text_blocks]:
            fully_shard(block, mesh=mesh)
        fully_shard(dual, mesh=mesh)
        # it warns of losses that would change features in place; losses here are pure functions
        warnings.filterwarnings(
            "ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning
        )

    def reshard(self) -> None:
        """Cut again what a forward without a backward left whole: the root, which FSDP2 keeps for its backward."""
        if dist.world() > 1:
            self.dual.reshard()  # type: ignore[operator]  # fully_shard gave it

    @contextmanager
    def assembled(self, *, on_all: bool = True) -> Iterator[Dual]:
        """The whole model with the weights of now, a copy on each process, or on the first only (the others get theirs
        without weights). Every process has to open it.
        """
        if dist.world() == 1:
            yield self.dual
            return
        here = on_all or dist.is_main()
        blank = {name: tensor.to("meta") for name, tensor in self._blank.state_dict().items()}
        now: dict[str, Tensor] = {}
        for name, tensor in self.dual.state_dict().items():
            value = whole(tensor.detach())  # gathered on every process, one tensor at a time
            if here:
                now[name] = value.clone() if on_all else value.to("cpu", copy=True)
        self._blank.load_state_dict(now or blank, assign=True)
        self._blank.train(self.dual.training)
        try:
            yield self._blank
        finally:
            self._blank.load_state_dict(blank, assign=True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is cut over the processes, which all have to ask; another one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def refuse_unshardable(dual: Dual, *, companions: Mapping[str, Any], precision: str, compiled: bool) -> None:
    """ValueError for what parallel=fsdp2 does not go together with, each with the reason."""
    live = [m for m in dual.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    others = [name for name, part in companions.items() if not isinstance(part, Ema)]
    reasons = {
        "precision=fp16 (its gradient scaler has to agree over the processes; take bf16)": precision == "fp16",
        "compile=true (a block's graph would hold weights that are gone when it has run)": compiled,
        "model.prefix (a prefix without captions loses its gradient, which is cut over the processes)": (
            dual.prefix is not None
        ),
        "BatchNorm that takes statistics (they are no part of what is cut; set model.frozen_batchnorm=true)": bool(
            live
        ),
        f"the companion {', '.join(others)} (it runs a copy of the towers, or reads their weights)": bool(others),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(f"parallel=fsdp2 does not go together with {'; nor with '.join(found)}; or use parallel=ddp")


def save(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Write the tensors, every process its part; returns the manifest's entries of the files of all, by file name.

    The same error on all processes if one of them could not write: OSError for a full disk, else CheckpointError.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_in_silence():
            save_cut({name: _flat(tensor) for name, tensor in tensors.items()}, storage_writer=writer)
    except CheckpointException as error:  # of torch; a BaseException
        raise _reason(folder, error) from error
    own = checkpoint.together(lambda: {p.name: checkpoint.entry(p) for p in folder.glob(f"shard-{_number()}-*")})
    return {name: entry for part in dist.gather_object(own) for name, entry in part.items()}


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder that `save` wrote, by name, as shapes and types without content."""
    found = checkpoint.together(lambda: HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in (found or {}).items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill the tensors in place, whole or cut, from a folder that `save` wrote at any number of processes.

    CheckpointError naming tensors that are not there, or have another shape.
    """
    there = stored(folder)
    missing = [name for name, tensor in tensors.items() if name not in there or there[name].shape != _shape(tensor)]
    if missing:
        raise checkpoint.CheckpointError(
            f"{folder}: {len(missing)} tensors are not there, or of another shape: {', '.join(missing[:4])}"
        )
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with _alone_in_silence():
            load_cut({name: _flat(tensor) for name, tensor in tensors.items()}, storage_reader=reader)
    except CheckpointException as error:
        raise _reason(folder, error) from error


def _without_weights(dual: Dual) -> Dual:
    """The same model once more, whose parameters have no memory yet; tokenizer shared."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in dual.parameters()
    }
    memo[id(dual.tokenizer_source)] = dual.tokenizer_source
    result: Dual = copy.deepcopy(dual, memo)
    return result


def _flat(tensor: Tensor) -> Tensor:
    """The same memory with a dimension at least: the format cuts along dimensions."""
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def _shape(tensor: Tensor) -> torch.Size:
    return tensor.shape or torch.Size([1])


def _number() -> str:
    """How this process's files are numbered."""
    return f"{dist.rank() + 1:05d}"


@contextmanager
def _alone_in_silence() -> Iterator[None]:
    """One process alone is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _reason(folder: Path, error: CheckpointException) -> Exception:
    """The first failure as an error of ours, the same on all processes."""
    rank, (cause, _) = min(error.failures.items())
    text = f"{folder}: process {rank}: {type(cause).__name__}: {cause}"
    if isinstance(cause, OSError | SafetensorError) and is_full(cause):
        return OSError(errno.ENOSPC, text)
    return checkpoint.CheckpointError(text)
