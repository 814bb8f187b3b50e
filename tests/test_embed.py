"""The encode pass: order, deduplication, lengths, skips, modes, cache, workers, processes."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import nn

from tests.eval.colours import COLOURS, ColourDual, colour_shard, jpeg
from vlp.data import open_records
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.types import Sample


@pytest.fixture
def records(tmp_path):
    return open_records(str(colour_shard(tmp_path / "c.tar", per_colour=3, broken=2)))


def expected(colour):
    return nn.functional.normalize(torch.tensor(COLOURS[colour]) / 255 + 0.01, dim=0)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_pictures_come_back_in_order_and_bad_ones_are_counted(records, batch_size):
    found = Encoder(ColourDual(), batch_size=batch_size).images(records)
    assert found.kept == list(range(15))
    assert len(found.skips) == 2
    assert sum(found.reasons().values()) == 2
    assert {skip.shard for skip in found.skips} == {"c.tar"}
    assert {skip.key for skip in found.skips} == {"s0000015", "s0000016"}
    want = torch.stack([expected(colour) for colour in COLOURS for _ in range(3)])
    assert torch.allclose(found.features, want, atol=0.02)
    assert found.features.dtype == torch.float32
    assert torch.allclose(found.features.norm(dim=1), torch.ones(15))


def test_workers_change_nothing(records):
    alone, helped = (Encoder(ColourDual(), batch_size=4, workers=n).images(records) for n in (0, 2))
    assert torch.equal(alone.features, helped.features)
    assert alone[1:] == helped[1:]


def test_a_bad_picture_in_the_middle_leaves_the_others_in_place():
    found = Encoder(ColourDual(), batch_size=2).images([jpeg("red"), b"no picture", jpeg("blue")])
    assert found.kept == [0, 2]
    assert torch.allclose(found.features[1], expected("blue"), atol=0.02)


def test_paths_bytes_and_pil_give_the_same(tmp_path):
    path = tmp_path / "red.jpg"
    path.write_bytes(jpeg("red"))
    given = [path, str(path), jpeg("red"), Image.open(io.BytesIO(jpeg("red")))]
    features = Encoder(ColourDual()).images(given).features
    assert torch.equal(features, features[:1].expand(4, -1))
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        Encoder(ColourDual()).images([tmp_path / "missing.png"])


def test_texts_keep_their_order_and_equal_ones_are_encoded_once():
    dual = ColourDual()
    texts = ["red red red red red red red red red green", "blue", "red", "blue", "blue"]
    features = Encoder(dual, batch_size=64).texts(texts)
    assert sum(shape[0] for _, shape in dual.calls) == 3
    assert torch.equal(features[1], features[3])
    for row, text in enumerate(texts):
        assert torch.allclose(features[row], Encoder(ColourDual()).texts([text])[0], atol=1e-6)


def test_texts_run_at_natural_length_in_batches_of_equal_memory():
    dual = ColourDual()
    Encoder(dual, batch_size=2).texts([f"red {'green ' * n}" for n in range(14)] + [f"word{n} blue" for n in range(9)])
    shapes = [shape for _, shape in dual.calls]
    assert {width for _, width in shapes} == {8, 16}
    assert all(rows * width <= 2 * 16 for rows, width in shapes)
    assert sum(rows for rows, _ in shapes) == 23


def test_a_tower_that_does_not_trim_gets_no_more_texts_than_pictures():
    dual = ColourDual()
    dual.trims = False
    Encoder(dual, batch_size=2).texts([f"word{n} blue" for n in range(9)])
    assert max(rows for _, (rows, _) in dual.calls) == 2


def test_modes_come_back_module_by_module_and_features_can_be_trained_on():
    dual = ColourDual().train()
    dual.frozen = nn.BatchNorm1d(3).eval()
    features = Encoder(dual).texts(["red"])
    assert dual.training
    assert dual.dropout.training
    assert not dual.frozen.training
    assert not features.is_inference()
    assert not features.requires_grad
    assert torch.equal(features, Encoder(dual).texts(["red"]))  # no dropout
    (nn.Linear(3, 1)(features)).sum().backward()


def test_features_that_are_not_numbers_are_an_error():
    dual = ColourDual()
    dual.table.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        Encoder(dual).texts(["red"])


def test_nothing_in_nothing_out():
    encoder = Encoder(ColourDual())
    assert len(encoder.texts([])) == 0
    with pytest.raises(TypeError, match="list of texts"):
        encoder.texts("red")
    assert encoder.images([]).kept == []
    assert encoder.images([b"no picture"]).kept == []
    with pytest.raises(ValueError, match="batch_size"):
        Encoder(ColourDual(), batch_size=0)


@pytest.fixture
def hashed(monkeypatch):
    """The hash of whatever module, since the model here is not a Dual."""
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: str(dual.table.sum().item()))


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0.0), ("fp16", 1e-3)])
def test_cache_gives_back_what_was_encoded_without_the_model(records, tmp_path, hashed, dtype, error):
    dual = ColourDual()
    encoder = Encoder(dual, cache=tmp_path / "cache", cache_dtype=dtype)
    first, text = encoder.images(records), encoder.texts(["red", "blue"])
    calls = len(dual.calls)
    again, text_again = encoder.images(records), encoder.texts(["red", "blue"])
    assert len(dual.calls) == calls
    assert again[1:] == first[1:]
    assert (again.features - first.features).abs().max() <= error
    assert (text_again - text).abs().max() <= error
    encoder.texts(["blue", "red"])
    assert len(dual.calls) == calls + 1  # other texts


def test_cache_knows_the_weights_the_transform_and_the_precision(tmp_path, hashed):
    pictures = [jpeg("red")]
    encode = lambda dual, **more: Encoder(dual, cache=tmp_path, **more).images(pictures)  # noqa: E731
    encode(ColourDual())
    for change in ("weights", "transform", "precision"):
        dual = ColourDual()
        if change == "weights":
            dual.table += 1
        if change == "transform":
            dual.transform = dual.transform.model_copy(update={"resize_mode": "squash"})
        encode(dual, **({"precision": "bf16"} if change == "precision" else {}))
        assert dual.calls, change
    dual = ColourDual()
    encode(dual)
    assert not dual.calls


def test_a_sample_without_a_picture_is_left_out_with_a_cache_too(tmp_path, hashed):
    given = [Sample("a", {"txt": b"words"}, "s.tar", 0), Sample("b", {"jpg": jpeg("red")}, "s.tar", 1)]
    for _ in range(2):
        found = Encoder(ColourDual(), cache=tmp_path).images(given)
        assert (found.kept, found.reasons()) == ([1], {"no_image": 1})


def test_a_damaged_entry_is_made_again(tmp_path, hashed):
    encoder = Encoder(ColourDual(), cache=tmp_path)
    first = encoder.texts(["red"])
    (entry,) = tmp_path.glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:40])
    assert torch.equal(encoder.texts(["red"]), first)
    assert not list(tmp_path.glob("*.tmp"))


def test_bf16_is_near_fp32():
    plain, half = (Encoder(ColourDual(), precision=p).texts(["red green", "blue"]) for p in ("fp32", "bf16"))
    assert torch.allclose(plain, half, atol=0.01)
    assert half.dtype == torch.float32


def encode_in_a_process(rank, world, shard):
    torch.manual_seed(rank)
    encoder = Encoder(ColourDual(), batch_size=2, quiet=True)
    found = encoder.images(open_records(shard))
    return found.features, found.kept, len(found.skips), encoder.texts(["red", "blue green", "red", "white"])


@pytest.mark.slow
def test_two_processes_share_the_work_and_both_get_the_whole(spawn, tmp_path):
    shard = str(colour_shard(tmp_path / "c.tar", per_colour=3, broken=2))
    alone = encode_in_a_process(0, 1, shard)
    for found in spawn(encode_in_a_process, 2, shard):
        assert torch.equal(found[0], alone[0])
        assert found[1:3] == alone[1:3]
        assert torch.equal(found[3], alone[3])
