"""Data: position is the only state. Sources of samples by name, and the finite access that evaluation uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlp.registry import Table, locate

if TYPE_CHECKING:
    from vlp.data.feed import Feed
    from vlp.data.settings import Data
    from vlp.data.sources import open_records

SOURCES = Table(
    "source",
    {
        "shards": "vlp.data.shards:Shards",
        "folder": "vlp.data.folder:Folder",
        "csv": "vlp.data.table:Csv",
        "huggingface": "vlp.data.hub:HuggingFace",
        "webdataset": "vlp.data.stream:WebDataset",
    },
)

__all__ = ["SOURCES", "Data", "Feed", "open_records"]

_HOMES = {
    "Data": "vlp.data.settings:Data",
    "Feed": "vlp.data.feed:Feed",
    "open_records": "vlp.data.sources:open_records",
}


def __getattr__(name: str) -> Any:
    """Data, Feed and open_records, imported when first asked for: this module itself loads nothing."""
    if name in _HOMES:
        return locate(_HOMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
