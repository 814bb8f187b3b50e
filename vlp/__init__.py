"""Contrastive vision-language pretraining and what its users do next, in one house."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp.api import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`vlp.load` without importing torch for those who only want a submodule."""
    if name == "load":
        from vlp.api import load

        return load
    raise AttributeError(f"module 'vlp' has no attribute '{name}'")
