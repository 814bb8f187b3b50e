"""Exact search over pictures: an index is a folder, a query is a text, a picture, or both."""

from __future__ import annotations

from vlp.search.build import build_index
from vlp.search.index import Hit, Index, Query, SearchError
from vlp.search.sheet import contact_sheet

__all__ = ["Hit", "Index", "Query", "SearchError", "build_index", "contact_sheet"]
