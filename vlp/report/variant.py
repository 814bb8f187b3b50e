"""How a result by an adapter is called beside others on the same data set: in names of files, tables and titles."""

from __future__ import annotations

PLAIN = ("zeroshot", "token_zeroshot")  # told apart by the head already


def variant(adapter: str | None, settings: str | None) -> str:
    """The adapter, with the first 6 digits of its settings' hash unless they are the defaults; "" for zero-shot."""
    if adapter is None or (adapter in PLAIN and not settings):
        return ""
    return f"{adapter}-{settings[:6]}" if settings else adapter
