"""Deep prompts: learned vectors among the tokens at the input of chosen blocks, by hooks that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


@contextmanager
def changed_inputs(blocks: Sequence[nn.Module], changes: Mapping[int, Change]) -> Iterator[None]:
    """While open, block i gets changes[i](x) in place of its input x [n, T, width]; nothing else changes.

    Hooks and torch.compile do not mix: use a tower that is not compiled.
    """
    handles = []
    try:
        for depth, change in changes.items():
            handles.append(blocks[depth].register_forward_pre_hook(_hook(change), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def deep_prompts(blocks: Sequence[nn.Module], prompts: Tensor | Sequence[Tensor], *, at: int) -> Any:
    """Context in which block i sees prompts[i] [p, width] in place of its tokens at..at+p.

    The tokens must be there: appended (VPT) or put behind the start token (`encode_text(prefix=...)`) before block 0.
    Negative `at` counts from the end of the sequence.
    """
    if len(prompts) > len(blocks):
        raise ValueError(f"{len(prompts)} deep prompts for a tower of {len(blocks)} blocks")
    return changed_inputs(blocks, {depth: _replace(prompt, at) for depth, prompt in enumerate(prompts)})


def appended(prompt: Tensor) -> Change:
    """A change that puts `prompt` [p, width] behind the tokens: what block 0 needs for VPT."""
    return lambda x: torch.cat([x, prompt.to(x.dtype).expand(len(x), -1, -1)], dim=1)


def _replace(prompt: Tensor, at: int) -> Change:
    def change(x: Tensor) -> Tensor:
        start = at if at >= 0 else x.shape[1] + at
        stop = start + len(prompt)
        return torch.cat([x[:, :start], prompt.to(x.dtype).expand(len(x), -1, -1), x[:, stop:]], dim=1)

    return change


def _hook(change: Change) -> Any:
    """Blocks take their tokens as the first argument, some encoders by name."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook
