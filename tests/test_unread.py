"""What a batch holds and nothing reads is told of once, with what makes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny import make_batch
from tests.shards import make_shards
from tests.test_trainer import make
from vlp.unread import Watch, Watched

VIEWS = [{"scale": [0.5, 1.0]}] * 2
MOMENTUM = [{"name": "momentum"}, {"name": "queue", "size": 16}]


def columns() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1) for name in ("teacher/image", "teacher/text", "views", "box")}


def test_looking_is_not_reading() -> None:
    found = Watched(columns())
    assert "views" in found
    assert "momentum/image" not in found
    assert len(found) == 4
    assert found.read == set()
    assert found["views"] is found.columns["views"]
    assert found.read == {"views"}
    with pytest.raises(KeyError):
        found["momentum/image"]
    assert dict(found).keys() == found.columns.keys() == found.read


def test_a_maker_of_whose_columns_none_was_read_is_told_of_once() -> None:
    watch, batch = Watch(), replace(make_batch(), extra=columns())
    assert watch.told(batch) is None  # not watched yet
    seen = watch(batch)
    seen.extra["teacher/text"]
    said = watch.told(seen)
    assert said is not None
    assert said.startswith("nothing reads views of the batch")
    assert "teacher" not in said
    assert "box" not in said  # numbers stored with the samples cost nothing
    assert watch.told(seen) is None
    assert watch(batch) is batch


@pytest.mark.parametrize(
    ("losses", "data", "companions", "said"),
    [
        (["infonce"], {}, [], None),
        (["infonce"], {"views": VIEWS}, [], "nothing reads views of the batch"),
        (["infonce", "simclr"], {"views": VIEWS}, [], None),
        (["infonce"], {}, MOMENTUM, "nothing reads queue/... of the batch"),  # the queue itself reads the copy
        (["infonce", "momentum_contrast"], {}, MOMENTUM, None),
    ],
)
def test_a_run_says_what_it_makes_for_nothing(
    tmp_path: Path, capsys: Any, losses: Any, data: Any, companions: Any, said: str | None
) -> None:
    urls = make_shards(tmp_path / "shards", shards=1, samples=16)
    settings = make_data(urls) | data
    make(tmp_path, urls, losses=losses, companions=companions, duration="3steps", data=settings).train()
    heard = " ".join(capsys.readouterr().err.split())
    assert heard.count("nothing reads") == (said is not None)
    assert said is None or said in heard


def make_data(urls: str) -> dict[str, Any]:
    return {"batch_size": 8, "streams": 2, "workers": 0, "sources": [{"name": "shards", "urls": urls}]}
