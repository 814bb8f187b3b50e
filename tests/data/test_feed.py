from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.data.tars import Letters, add, picture, samples, write_shards, write_tar
from vlp.data import Data, Feed
from vlp.data.feed import of_death
from vlp.data.schema import DataError
from vlp.data.serve import CLASS_STRIDE, EMPTY_LABELS, SAMPLE_STRIDE
from vlp.data.transforms import Preprocess
from vlp.types import UNLABELLED, Batch

SIZE = 16


def feed(sources: Any, *, seed: int = 0, rank: int = 0, world: int = 1, **settings: Any) -> Feed:
    sources = [{"name": "shards", "urls": str(sources)}] if isinstance(sources, Path) else sources
    data = Data.model_validate({"sources": sources, "workers": 0, "window": 2, **settings})
    return Feed(
        data,
        tokenizer=Letters(),
        preprocess=Preprocess(size=SIZE),
        seed=seed,
        rank=rank,
        world=world,
    )


def same(first: Batch, second: Batch) -> bool:
    tensors = all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("image", "text", "token_mask", "caption_mask", "valid", "label", "source")
    )
    return tensors and first.keys == second.keys and first.skips == second.skips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", [9, 14, 5, 11])  # 39 samples
    return tmp_path / "set"


def test_every_key_once_an_epoch_and_epochs_end_inside_batches(folder: Path) -> None:
    it = feed(folder, batch_size=8)
    assert (it.num_samples, it.streams, it.steps_per_epoch) == (39, 8, 5.0)
    for epoch in range(3):
        keys = [key for step in range(5 * epoch, 5 * epoch + 5) for key in it.batch(step).keys]
        assert keys.count("") == 1
        assert Counter(key for key in keys if key).most_common(1)[0][1] == 1
        assert len(set(keys)) == 40


def test_an_epoch_may_end_in_the_middle_of_a_batch(folder: Path) -> None:
    it = feed(folder, batch_size=16, streams=4)  # 10 places a stream, 4 a step
    seen = Counter(key for step in range(5) for key in it.batch(step).keys if key)
    assert set(seen.values()) == {2}
    assert len(seen) == 39


@pytest.mark.parametrize("world", [2, 3, 6])
def test_any_world_serves_the_same_global_batches(folder: Path, world: int) -> None:
    whole = feed(folder, batch_size=12)
    ranks = [feed(folder, batch_size=12, rank=rank, world=world) for rank in range(world)]
    for step in (0, 1, 5):
        batch, parts = whole.batch(step), [rank.batch(step) for rank in ranks]
        assert tuple(key for part in parts for key in part.keys) == batch.keys
        for name in ("image", "valid", "source"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        labels = torch.cat([part.label for part in parts])
        assert torch.equal(labels[batch.valid], batch.label[batch.valid])


def test_a_world_that_does_not_divide_the_streams(folder: Path) -> None:
    with pytest.raises(DataError, match="run on 1, 2, 3, 4, 6, 12 processes"):
        feed(folder, batch_size=12, world=5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(folder: Path, workers: int) -> None:
    alone, many = feed(folder, batch_size=8), feed(folder, batch_size=8, workers=workers, prefetch=2)
    before = torch.get_rng_state()
    made = list(many.batches(3, 14))
    assert torch.equal(torch.get_rng_state(), before), "the loader draws nothing from the run's generator"
    assert len(made) == 11
    assert all(same(batch, alone.batch(step)) for step, batch in zip(range(3, 14), made))


def test_seeds_and_epochs_differ_in_order_and_pixels(folder: Path) -> None:
    first, other = feed(folder, batch_size=8), feed(folder, batch_size=8, seed=1)
    assert first.batch(0).keys != other.batch(0).keys
    pixels = [picture_of(first, "shard-001.tar:000012", range(5 * e, 5 * e + 5)) for e in range(2)]
    assert not torch.equal(*pixels), "augmentation is keyed by the epoch"
    plain = feed(folder, batch_size=8, augment=None)
    assert torch.equal(*[picture_of(plain, "shard-001.tar:000012", range(5 * e, 5 * e + 5)) for e in range(2)])


def picture_of(it: Feed, key: str, steps: range) -> torch.Tensor:
    for step in steps:
        batch = it.batch(step)
        if key in batch.keys:
            return batch.image[batch.keys.index(key)]
    raise AssertionError(f"{key} not in {steps}")


def test_a_sample_looks_the_same_in_any_batch_size(folder: Path) -> None:
    key = "shard-003.tar:000030"
    big = picture_of(feed(folder, batch_size=12), key, range(4))
    assert torch.equal(picture_of(feed(folder, batch_size=4), key, range(10)), big)


BAD = {
    3: ("png", b"\x89PNG not really"),
    7: ("json", b'{"book": "x"}'),
    11: ("json", b"{"),
    20: ("json", b'{"caption": " "}'),
}


def bad_set(folder: Path) -> Path:
    """20 shards' worth of faults: pictures and captions that cannot be used."""
    members = []
    for name, content in samples(0, 24):
        number, end = int(name[:6]), name.rpartition(".")[2]
        fault = BAD.get(number)
        members.append((name, fault[1] if fault and fault[0] == end else content))
    write_tar(folder / "shard-000.tar", members)
    return folder


def test_bad_samples_leave_slots_and_are_named(tmp_path: Path) -> None:
    it = feed(bad_set(tmp_path), batch_size=8)
    batches = [it.batch(step) for step in range(3)]
    skips = {skip.key: skip for batch in batches for skip in batch.skips}
    assert {int(key) for key in skips} == set(BAD)
    assert {skip.reason for skip in skips.values()} == {
        "no_caption",
        "bad_json",
        "empty_caption",
        skips["000003"].reason,
    }
    assert {(skip.source, skip.shard) for skip in skips.values()} == {(it.source_names[0], "shard-000.tar")}
    for batch in batches:
        bad = {key for key, valid in zip(batch.keys, batch.valid.tolist()) if not valid}
        assert bad == {f"{skip.shard}:{skip.key}" for skip in batch.skips}
        assert not batch.caption_mask[~batch.valid].any()
        assert len(set(batch.label.tolist())) == 8
    good = feed(bad_set(tmp_path), batch_size=8)
    assert [same(batch, good.batch(step)) for step, batch in enumerate(batches)] == [True] * 3


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sources = [{"name": "shards", "urls": str(bad_set(tmp_path / name / "train"))} for name in ("a", "b")]
    it = feed(sources, batch_size=48, streams=1)
    assert it.source_names == ("train", "train (1)")
    found = {(skip.source, skip.shard, skip.key) for step in range(2) for skip in it.batch(step).skips}
    assert Counter(source for source, _, _ in found) == {"train": 4, "train (1)": 4}


def test_a_shard_that_goes_away_is_skips_not_a_crash(folder: Path) -> None:
    it = feed(folder, batch_size=39, streams=1)
    (folder / "shard-001.tar").write_bytes(b"")
    batch = it.batch(0)
    assert Counter(skip.reason for skip in batch.skips) == {"unreadable": 14}
    assert int(batch.valid.sum()) == 25


@pytest.fixture
def mixed(tmp_path: Path) -> list[dict[str, Any]]:
    write_shards(tmp_path / "pairs", [12])
    for number in range(6):
        path = tmp_path / "classes" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return [
        {"name": "shards", "urls": str(tmp_path / "pairs"), "weight": 3},
        {"name": "folder", "path": str(tmp_path / "classes"), "kind": "label", "weight": 1},
    ]


def test_mixtures_have_exact_shares_and_own_labels(mixed: list[dict[str, Any]]) -> None:
    it = feed(mixed, batch_size=16, streams=2, mixture_block=4)
    batches = [it.batch(step) for step in range(4)]
    sources = torch.cat([batch.source for batch in batches])
    assert torch.bincount(sources).tolist() == [48, 16]
    labels = torch.cat([batch.label for batch in batches])
    valid = torch.cat([batch.valid for batch in batches])
    assert set(labels[valid & (sources == 1)].tolist()) == {CLASS_STRIDE, CLASS_STRIDE + 1}
    assert set(labels[valid & (sources == 0)].tolist()) == {UNLABELLED + i for i in range(12)}
    assert it.kinds == ("caption", "label")
    texts = {caption for step in range(4) for slot in it.slot_captions(step) for caption in slot}
    assert {text for text in texts if "cat" in text}


def test_one_source_a_batch(mixed: list[dict[str, Any]]) -> None:
    it = feed(mixed, batch_size=8, streams=4, single_source=True, mixture_block=8)
    used = [set(it.batch(step).source.tolist()) for step in range(8)]
    assert sorted(map(tuple, used)) == [(0,)] * 6 + [(1,)] * 2


def test_labels_of_slots(folder: Path) -> None:
    batch = feed([{"name": "shards", "urls": str(folder)}] * 2, batch_size=16).batch(4)
    for source, label, key in zip(batch.source.tolist(), batch.label.tolist(), batch.keys):
        if not key:
            assert label >= EMPTY_LABELS
        else:
            assert UNLABELLED + source * SAMPLE_STRIDE <= label < UNLABELLED + (source + 1) * SAMPLE_STRIDE


def test_equal_captions_may_be_positives(tmp_path: Path) -> None:
    texts = ["A cat", "a  cat", "a dog", "a cat "]
    members = [m for i, t in enumerate(texts) for m in ((f"{i}.png", picture(i)), (f"{i}.txt", t.encode()))]
    write_tar(tmp_path / "a.tar", members)
    batch = feed(tmp_path, batch_size=4, same_caption_same_label=True).batch(0)
    label = {key[-1]: value for key, value in zip(batch.keys, batch.label.tolist())}
    assert label["0"] == label["1"] == label["3"] != label["2"]
    assert len(set(feed(tmp_path, batch_size=4).batch(0).label.tolist())) == 4


def test_several_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", picture(0)), ("0.json", b'{"captions": ["a", "b", "c"]}')])
    source = {"name": "shards", "urls": str(tmp_path), "captions": {"pick": "all", "count": 2}}
    batch = feed([source], batch_size=2, captions=2).batch(0)
    assert batch.text.shape[:2] == (2, 2)
    assert batch.caption_mask[batch.valid].tolist() == [[True, True]]


def test_resume_far_ahead_takes_no_time(folder: Path) -> None:
    it = feed(folder, batch_size=8)
    started = time.perf_counter()
    batch = it.batch(10**7)
    assert time.perf_counter() - started < 2
    assert len(batch) == 8


def test_fingerprint_and_description(folder: Path, mixed: list[dict[str, Any]]) -> None:
    assert feed(folder, batch_size=8).fingerprint == feed(folder, batch_size=4, seed=3).fingerprint
    assert feed(mixed, batch_size=8).fingerprint != feed(folder, batch_size=8).fingerprint
    facts = feed(mixed, batch_size=8).describe()
    assert facts["pairs"]["samples"] == 12
    assert facts["pairs"]["share"] == 0.75
    assert facts["classes"]["kind"] == "label"
    assert "8 streams x 1" in facts["batch"]


def test_the_number_of_a_faulty_source_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.sources.1 .*no shard matches"):
        feed([{"name": "shards", "urls": str(folder)}, {"name": "shards", "urls": f"{folder}/x*.tar"}])


def test_a_stream_in_a_mixture(folder: Path) -> None:
    stream = {"name": "webdataset", "urls": f"{folder}/shard-00{{0..3}}.tar", "samples_per_epoch": 39, "shuffle": 5}
    it = feed([{"name": "shards", "urls": str(folder)}, stream], batch_size=8, workers=2)
    batches = list(it.batches(0, 6))
    assert torch.bincount(torch.cat([batch.source for batch in batches])).tolist()[1] > 10
    for batch in batches:
        assert batch.valid.float().mean() > 0.7
        assert len(set(batch.label.tolist())) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_a_stream_cannot_read_are_skips_of_the_batch(workers: int, folder: Path) -> None:
    damaged = folder / "shard-001.tar"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    urls = [str(folder / f"shard-00{number}.tar") for number in (0, 1, 7)]
    source = {"name": "webdataset", "urls": urls, "samples_per_epoch": 10, "shuffle": 0}
    batches = list(feed([source], batch_size=6, workers=workers).batches(0, 4))
    skips = [skip for batch in batches for skip in batch.skips]
    assert {(skip.reason, skip.source, skip.shard, skip.key) for skip in skips} == {
        ("unreadable_shard", "webdataset", urls[1], ""),
        ("unreadable_shard", "webdataset", urls[2], ""),
    }
    assert all("Error" in skip.detail for skip in skips)
    assert 2 <= len(skips) <= 6, "each failure once, not once a batch"
    assert all(bool(batch.valid.all()) for batch in batches)


class Stuck(Letters):
    """A tokenizer that dies or hangs in a worker."""

    def __init__(self, main: int, how: str) -> None:
        self.main, self.how = main, how

    def encode(self, texts: Any) -> list[list[int]]:
        if os.getpid() != self.main:
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return super().encode(texts)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "words"), [("dies", "DataLoader worker (pid"), ("hangs", "timed out after 3")])
def test_a_dead_or_hanging_worker_is_an_error_with_names(how: str, words: str, folder: Path) -> None:
    it = feed(folder, batch_size=8, workers=1, timeout=3)
    it.server.tokenizer = Stuck(os.getpid(), how)  # type: ignore[assignment]
    with pytest.raises(RuntimeError) as error:
        list(it.batches(0, 4))
    assert words in str(error.value)
    assert "batch of step 0" in str(error.value)
    assert "shard-00" in str(error.value)


def test_a_pipe_that_breaks_with_its_worker_is_the_workers_death() -> None:
    dead = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    dead.start()
    batches = SimpleNamespace(_workers=[dead])
    found = of_death(ConnectionResetError("[Errno 104] Connection reset by peer"), batches)
    assert str(found).startswith(f"DataLoader worker (pid(s) {dead.pid}) exited unexpectedly: [Errno 104]")
    met = OSError("Caught OSError in DataLoader worker process 0.\nOSError: Stale file handle")
    assert of_death(met, batches) is met
    alone = EOFError()
    assert of_death(alone, SimpleNamespace(_workers=[])) is alone


def test_the_server_travels_to_other_processes(folder: Path) -> None:
    it = feed(folder, batch_size=8)
    again = pickle.loads(pickle.dumps(it.server))
    assert same(again[2], it.batch(2))


def test_a_batch_travels_between_processes_as_it_is(folder: Path) -> None:
    sent = feed(folder, batch_size=8).batch(0)
    large = {"views": torch.rand(8, 3, 64, 64), "half": torch.rand(8, 5).bfloat16(), "learned": torch.ones(8, 1)}
    sent = sent.plus(
        {**large, "none": torch.empty(8, 0)}, {"queue": torch.arange(6.0).view(2, 3), "one": torch.tensor(2.5)}
    )
    sent.extra["learned"].requires_grad_()
    came = pickle.loads(pickle.dumps(sent))
    assert same(came, sent)
    for name in ("extra", "memory"):
        ours, theirs = getattr(came, name), getattr(sent, name)
        assert list(ours) == list(theirs)
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype
            assert ours[key].shape == theirs[key].shape
            assert torch.equal(ours[key], theirs[key])
    assert (came.keys, came.skips, came.notes) == (sent.keys, sent.skips, sent.notes)
    came.label.add_(1)  # its memory may be written


def test_workers_end_when_the_reader_stops_early(folder: Path) -> None:
    batches: Iterator[Batch] = feed(folder, batch_size=8, workers=2).batches(0, 50)
    next(batches)
    started = time.perf_counter()
    batches.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - started < 5


def test_hostile_members_never_reach_a_batch(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        add(tar, "a.png", picture(0))
        add(tar, "a.txt", b"fine")
        add(tar, "a.pyd", b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
        add(tar, "b.pkl", b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    batch = feed(tmp_path, batch_size=2).batch(0)
    assert int(batch.valid.sum()) == 1
    assert [skip.reason for skip in batch.skips] == ["no_caption"]
