"""Data tools by name; `python -m data_tools NAME` and `vlp data NAME` are their command lines."""

from __future__ import annotations

from vlp.registry import Table

TOOLS = Table(
    "data tool",
    {
        "scenes": "data_tools.scenes.tool:Scenes",
        "build": "data_tools.build:Build",
        "index": "data_tools.indexing:Index",
        "verify": "data_tools.verify:Verify",
        "stats": "data_tools.stats:Stats",
        "teach": "data_tools.teach:Teach",
        "gloss": "data_tools.gloss:Gloss",
        "contamination": "data_tools.contamination:Contamination",
    },
)

__all__ = ["TOOLS"]
