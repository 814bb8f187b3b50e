"""Where the data of a benchmark are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.data import Data, open_data
from tests.shards import make_shards
from vlp.data.schema import DataError


def test_a_source_is_looked_for_where_paths_are(tmp_path: Path) -> None:
    make_shards(tmp_path / "set", samples=40, shards=2)
    halves = []
    for split in ("train", "validation"):
        source = {"name": "shards", "urls": "set/*.tar", "split": split, "validation_fraction": 0.25}
        halves.append(open_data(Data(source=source), folders=(tmp_path,)).records)
    keys = [{records.name(i)[1] for i in range(len(records))} for records in halves]
    assert len(keys[0] | keys[1]) == 40
    assert not keys[0] & keys[1]
    assert keys[1]


def test_what_is_missing_is_named_with_every_place(tmp_path: Path) -> None:
    source = {"name": "shards", "urls": "nowhere/*.tar"}
    with pytest.raises(DataError, match=r"nowhere/\*\.tar(.|\n)*make it with: magic"):
        open_data(Data(source=source, made_by="magic"), folders=(tmp_path,))
