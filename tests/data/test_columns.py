from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.data.tars import npy, npz
from vlp.data.captions import Captions, Drawn
from vlp.data.columns import Column, read_columns
from vlp.data.fields import Fields
from vlp.data.shards import Shards
from vlp.types import BadSampleError, Sample

ROWS = np.arange(12, dtype=np.float64).reshape(4, 3)
DRAWN = Drawn(["b", "d"], [1, 3], 4)


def fields(record: Any = None, **members: bytes) -> Fields:
    members = {name.replace("__", "."): content for name, content in members.items()}
    return Fields(Sample("k", {"json": json.dumps(record or {}).encode(), **members}, "s.tar", 0))


def read(column: Column, of: Fields, *, seed: int | None = 0, slots: int = 2) -> torch.Tensor:
    rng = None if seed is None else np.random.default_rng(seed)
    return read_columns({"c": column}, of, DRAWN, rng, slots=slots)["c"]


def reason(column: Column, of: Fields, **options: Any) -> str:
    with pytest.raises(BadSampleError) as error:
        read(column, of, **options)
    assert len(error.value.detail) < 200
    return error.value.reason


@pytest.mark.parametrize(
    ("field", "of"),
    [
        ("t.npy", fields(t__npy=npy(ROWS))),
        ("t.npy", fields(t__npy=npy(np.asfortranarray(ROWS)))),
        ("t.npy", fields(t__npy=npy(ROWS.astype(">f2")))),
        ("npz:b", fields(npz=npz(a=np.zeros(2), b=ROWS))),
        ("rows", fields({"rows": ROWS.tolist()})),
        ("json:a.b", fields({"a": {"b": ROWS.astype(int).tolist()}})),
    ],
)
def test_arrays_and_lists(field: str, of: Fields) -> None:
    found = read(Column(field=field, shape=(4, 3)), of)
    assert found.dtype == torch.float32
    assert found.tolist() == ROWS.tolist()
    assert read(Column(field=field, shape=(3,), choose="first"), of).tolist() == [0, 1, 2]
    assert read(Column(field=field, shape=(4, 3), dtype="int64"), of).dtype == torch.int64
    assert read(Column(field="n"), fields({"n": 3})).shape == ()


def test_choices() -> None:
    column, of = Column(field="t.npy", shape=(3,), choose="random"), fields(t__npy=npy(ROWS))
    counts = Counter(int(read(column, of, seed=seed)[0]) for seed in range(400))
    assert set(counts) == {0, 3, 6, 9}
    assert all(65 < n < 140 for n in counts.values())
    assert read(column, of, seed=None).tolist() == [0, 1, 2]
    captions = Column(field="t.npy", shape=(3,), choose="captions")
    assert read(captions, of, slots=3).tolist() == [[3, 4, 5], [9, 10, 11], [0, 0, 0]]
    assert read(captions, of, slots=1).tolist() == [[3, 4, 5]], "captions beyond K are left out"
    assert captions.zeros(3).shape == (3, 3)


def test_columns_of_one_group_take_the_same_row() -> None:
    of = fields({"crops": (ROWS / 100).tolist()}, t__npy=npy(ROWS), u__npy=npy(ROWS), short__npy=npy(ROWS[:2]))
    pair = {"choose": "random", "shape": (3,)}
    columns = {
        "teacher": Column(field="t.npy", group="view", **pair),
        "crop": Column(field="crops", group="view", **pair),
        "alone": Column(field="u.npy", **pair),
    }
    differ = 0
    for seed in range(40):
        found = read_columns(columns, of, DRAWN, np.random.default_rng(seed), slots=1)
        assert torch.allclose(found["teacher"], found["crop"] * 100)
        differ += not torch.equal(found["teacher"], found["alone"])
    assert 20 < differ < 38
    columns["crop"] = Column(field="short.npy", group="view", **pair)
    with pytest.raises(BadSampleError, match="has 4 rows, another column of group view has 2"):
        read_columns(columns, of, DRAWN, np.random.default_rng(0), slots=1)


def lying_header() -> bytes:
    """A few bytes that say they are 80 GB."""
    honest = npy(np.zeros(4))
    lying = honest.replace(b"(4,), }" + b" " * 10, b"(10000000000,), }")
    assert len(lying) == len(honest)
    assert lying != honest
    return lying


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2 << 20))
    return stream.getvalue()


def test_what_cannot_be_used_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlp.data.columns.MAX_BYTES", 1 << 20)
    three = Column(field="t.npy", shape=(3,))
    assert reason(three, fields()) == "no_column"
    assert reason(Column(field="a.b", shape=(3,)), fields({"a": None})) == "no_column"
    assert reason(Column(field="npz:x"), fields(npz=npz(a=ROWS))) == "no_column"
    for content in (b"", b"\x93NUMPY", b"not one", npy(ROWS), npy(ROWS[0])[:-1], npy(ROWS[0]) + b"x", lying_header()):
        assert reason(three, fields(t__npy=content)) == "bad_column"
    for array in (np.array(["a", "b", "c"]), np.array([1j, 2, 3]), np.array([1, np.nan, 2]), np.array([1, np.inf, 2])):
        assert reason(three, fields(t__npy=npy(array))) == "bad_column"
    assert reason(Column(field="t.npy", choose="first"), fields(t__npy=npy(np.zeros((0,))))) == "bad_column"
    assert reason(Column(field="t.npy", choose="first"), fields(t__npy=npy(3.0))) == "bad_column"
    assert reason(Column(field="v", shape=(2,)), fields({"v": [1, [2]]})) == "bad_column"
    assert reason(Column(field="v", shape=(2,)), fields({"v": ["1", "2"]})) == "bad_column"
    assert reason(Column(field="v", shape=(2,)), fields({"v": {"a": 1}})) == "bad_column"
    assert reason(Column(field="v", shape=(1,)), fields({"v": [10**30]})) == "bad_column"
    assert reason(Column(field="v", shape=(1,), dtype="uint8"), fields({"v": [256]})) == "bad_column"
    assert reason(Column(field="v", shape=(1,), dtype="int64"), fields({"v": [0.5]})) == "bad_column"
    assert reason(Column(field="v", shape=(1,), dtype="float16"), fields({"v": [1e6]})) == "bad_column"
    assert reason(Column(field="npz:a"), fields(npz=bomb())) == "bad_column"
    for content in (b"PK\x03\x04 nothing", npz(a=ROWS)[:-30], b""):
        assert reason(Column(field="npz:a"), fields(npz=content)) == "bad_column"
    captions = Column(field="t.npy", shape=(3,), choose="captions")
    assert reason(captions, fields(t__npy=npy(ROWS[:3]))) == "bad_column"


def test_nothing_is_unpickled() -> None:
    hostile = np.array([{"a": 1}, None, print], dtype=object)
    stream = io.BytesIO()
    np.save(stream, hostile, allow_pickle=True)
    assert reason(Column(field="t.npy", shape=(3,)), fields(t__npy=stream.getvalue())) == "bad_column"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"views": {"field": "x"}}}, "choose another name"),
        ({"columns": {"x": {"field": "x", "group": "g"}}}, "group is for choose: random"),
        ({"columns": {"x": {"field": "x", "choose": "captions"}}}, "the one field whose rows"),
        ({"columns": {"x": {"field": "x", "choose": "captions"}}, "captions": {"pick": "sentences"}}, "needs captions"),
        ({"columns": {"x": {"field": "x", "choose": "captions"}}, "kind": "label"}, "needs captions"),
        ({"crop": "x"}, 'no column "x"'),
        ({"crop": "x", "columns": {"x": {"field": "x", "shape": [3]}}}, "crop needs shape"),
        ({"columns": {"x": {"field": ""}}}, "at least 1 character"),
    ],
)
def test_settings_that_cannot_be_served(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Shards.model_validate({"urls": "a.tar", **settings})
    one = {"columns": {"x": {"field": "x", "choose": "captions"}}, "captions": Captions(fields=("captions",))}
    Shards.model_validate({"urls": "a.tar", **one})
