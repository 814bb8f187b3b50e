"""`teach`: stored features are the teacher's, the crop that training makes is the one they are of, and a run learns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data_tools import TOOLS
from data_tools.__main__ import app
from data_tools.shards import Raw, find_shards, samples
from data_tools.teach import Teach, relative
from data_tools.verify import Verify
from tests.shards import make_shards
from vlp import config
from vlp.data.augment import Augment
from vlp.data.boxes import Box, stored_box
from vlp.data.captions import Captions
from vlp.data.columns import Column
from vlp.data.schema import DataError, read_manifest
from vlp.data.stages import drafted
from vlp.embed import Encoder
from vlp.log import read_steps
from vlp.models import ensemble, pretrained
from vlp.models.model import Model
from vlp.run import Run
from vlp.trainer import Trainer
from vlp.types import Sample

ROOT = Path(__file__).resolve().parents[2]


def saved(folder: Path, *, seed: int = 1, arch: str = "vlp-nano") -> Path:
    torch.manual_seed(seed)
    pretrained.save(Model(arch=arch).build(), folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "model")


def facts(*captions: object) -> dict[str, bytes]:
    return {"json": json.dumps({"captions": list(captions), "es": "hola"}).encode()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 samples of 48 by 48 pixels with one to three captions, and four that cannot be taught."""
    broken = {i: facts(*(f"caption {k} of picture {i}" for k in range(1 + i % 3))) for i in range(24)}
    broken[3] = facts("first", None, "third", " ")
    broken[5] |= {"jpg": b"<html>"}
    broken[7] = {"json": b"{}"}
    broken[8] = {"json": b"not json"}
    broken[9] = {"json": b'{"es": "solo"}'}
    return make_shards(tmp_path_factory.mktemp("shards") / "in", samples=24, shards=3, size=48, broken=broken)


def read(out: Path) -> dict[str, Raw]:
    return {sample.key: sample for shard in find_shards([str(out)]) for sample in samples(shard)}


def arrays(sample: Raw, member: str = "teacher.npz") -> dict[str, Any]:
    return dict(np.load(io.BytesIO(sample.members[member])))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_an_ensemble_teaches_as_one_model(tmp_path: Path, teacher: Path, shards: str) -> None:
    ensemble.save([pretrained.load(teacher)] * 2, tmp_path / "two", names=["a", "b"])
    tool = Teach(checkpoint=str(tmp_path / "two"), views=1)
    tool.run([shards], tmp_path / "out")
    Teach(checkpoint=str(teacher), views=1).run([shards], tmp_path / "one")
    both, one = (read(tmp_path / name) for name in ("out", "one"))
    assert both.keys() == one.keys()
    for key in one:
        wide, single = arrays(both[key]), arrays(one[key])
        assert wide["image"].shape == (1, 128)
        np.testing.assert_allclose(wide["image"], np.tile(single["image"], 2) / 2**0.5, atol=2e-3)


def test_what_is_stored_is_what_the_encoder_gives_for_the_same_crop(tmp_path: Path, teacher: Path, shards: str) -> None:
    before = {key: sample.members for shard in find_shards([shards]) for key, sample in _keyed(shard).items()}
    tool = Teach(checkpoint=str(teacher), views=3, scale=(0.2, 0.9), batch_size=5)
    result = tool.run([shards], tmp_path / "out")
    assert result["inputs"] == 24 == result["samples"] + sum(result["skipped"].values())
    assert result["skipped"] == {"not_image": 1, "no_caption": 2, "bad_json": 1}
    encoder = Encoder(pretrained.load(teacher), quiet=True)
    found = read(tmp_path / "out")
    assert len(found) == 20
    for key, sample in found.items():
        stored, captions = arrays(sample), json.loads(sample.members["json"])["captions"]
        assert {name: members for name, members in sample.members.items() if name != "teacher.npz"} == before[key]
        assert (stored["image"].shape, stored["image"].dtype) == ((3, 64), np.float16)
        assert stored["boxes"].dtype == np.float32
        assert (stored["scale"].shape, stored["scale"].item()) == ((), pytest.approx(encoder.scale))
        assert stored["text"].shape == (len(captions), 64)
        whole = encoder.dual.transform.read(sample.members["jpg"])
        parts = [stored_box(box, *whole.shape[-2:]) for box in stored["boxes"].tolist()]
        assert len(set(parts)) > 1
        crops = [whole[:, b.top : b.top + b.height, b.left : b.left + b.width] for b in parts]
        sized = [encoder.dual.transform.resize(crop, (32, 32)) for crop in crops]
        _near(stored["image"], encoder.images(sized).features)
        real = [i for i, text in enumerate(captions) if isinstance(text, str) and text.strip()]
        _near(stored["text"][real], encoder.texts([captions[i] for i in real]))
        assert not np.delete(stored["text"], real, axis=0).any()


def _keyed(shard: Path) -> dict[str, Raw]:
    return {sample.key: sample for sample in samples(shard)}


def _near(stored: Any, features: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(stored).float(), features, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("shrink", [0.0, 1.5])
def test_training_cuts_the_part_that_the_features_are_of(tmp_path: Path, teacher: Path, shrink: float) -> None:
    """At the teacher's size the very pixels, and its features of them are those stored; also of large JPEGs."""
    broken = {i: facts("one", "two") for i in range(4)}
    shards = make_shards(tmp_path / "in", samples=4, shards=1, size=500, broken=broken)
    Teach(checkpoint=str(teacher), views=4, scale=(0.1, 0.9)).run([shards], tmp_path / "out")
    encoder = Encoder(pretrained.load(teacher), quiet=True)
    columns = {
        "box": Column(field="teacher.npz:boxes", shape=(4,), choose="random", group="view"),
        "image": Column(field="teacher.npz:image", shape=(64,), choose="random", group="view"),
        "text": Column(field="teacher.npz:text", shape=(64,), choose="captions"),
    }
    seen = set()
    for number, (key, raw) in enumerate(read(tmp_path / "out").items()):
        item = drafted(
            Sample(key, raw.members, "", number),
            captions=Captions(fields=("captions",), pick="random"),
            preprocess=encoder.dual.transform,
            augment=Augment(scale=(0.01, 0.02), shrink=shrink),
            columns=columns,
            crop="box",
            rng=np.random.Generator(np.random.Philox(key=number)),
        ).finished()
        row = arrays(raw)["boxes"].tolist().index(item.extra["box"].tolist())
        seen.add(row)
        assert item.extra["image"].tolist() == arrays(raw)["image"][row].tolist()
        features = encoder.images([item.image]).features[0]
        similarity = features @ torch.from_numpy(arrays(raw)["image"]).float().T
        assert similarity.argmax() == row
        assert similarity[row] > 0.999
        if not shrink:
            _near(item.extra["image"].numpy(), features)
        _near(item.extra["text"][0].numpy(), encoder.texts(item.captions)[0])
    assert len(seen) > 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 1000), (4001, 2999), (8191, 8190)])
def test_boxes_come_back_exact_to_the_pixel(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    boxes = []
    for _ in range(200):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        boxes.append(Box(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w))
    found = relative(boxes, height, width).tolist()
    assert [stored_box(box, height, width) for box in found] == boxes


def test_interrupted_resumed_and_cut_into_ranges(
    tmp_path: Path, teacher: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Teach(checkpoint=str(teacher), views=2)
    whole, cut, ranges = (tmp_path / name / "taught" for name in ("whole", "cut", "ranges"))
    tool.run([shards], whole)
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            tool.run([shards], cut)
    assert sorted(contents(cut)) == ["00000.tar", "00000.tar.index"]
    stamp = (cut / "00000.tar").stat().st_mtime_ns
    result = tool.run([shards], cut)
    assert (result["kept"], result["shards"]) == (1, 3)
    assert (cut / "00000.tar").stat().st_mtime_ns == stamp
    assert tool.run([shards], cut)["kept"] == 3
    for part in (0, 1):
        ranged = tool.model_copy(update={"shard_range": (part, 2)}).run([shards], ranges)
        assert ranged["complete"] == bool(part)
    assert contents(cut) == contents(ranges) == contents(whole)
    assert Verify(deep=True).run([str(whole)])["ok"]
    manifest = read_manifest(whole)
    assert manifest is not None
    assert manifest.samples == 20
    assert "teacher.npz" in manifest.fields
    assert manifest.made_by["teacher"]["dim"] == 64
    assert manifest.made_by["settings"]["views"] == 2
    lines = [json.loads(line) for line in (whole / "skips.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["key"], line["reason"]) for line in lines] == [
        ("00000.tar", "000005", "not_image"),
        ("00000.tar", "000007", "no_caption"),
        ("00001.tar", "000008", "bad_json"),
        ("00001.tar", "000009", "no_caption"),
    ]


def _stop_after(patch: pytest.MonkeyPatch, shards: int) -> None:
    import data_tools.teach as module

    inner, started = module.samples, []

    def stopping(shard: Path) -> Any:
        started.append(shard)
        if len(started) > shards:
            raise KeyboardInterrupt
        return inner(shard)

    patch.setattr(module, "samples", stopping)


def test_other_settings_or_weights_are_refused(tmp_path: Path, shards: str) -> None:
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    Teach(checkpoint=str(model), views=1).run([shards], out)
    with pytest.raises(DataError, match="other settings"):
        Teach(checkpoint=str(model), views=2).run([shards], out)
    before = arrays(read(out)["000000"])
    saved(model, seed=2)
    with pytest.raises(DataError, match="other settings"):
        Teach(checkpoint=str(model), views=1).run([shards], out)
    Teach(checkpoint=str(model), views=1, overwrite=True).run([shards], out)
    after = arrays(read(out)["000000"])
    assert np.array_equal(before["boxes"], after["boxes"])
    assert not np.array_equal(before["image"], after["image"])


def test_the_shards_that_are_read_are_never_touched(tmp_path: Path, teacher: Path) -> None:
    make_shards(tmp_path / "in", samples=4, shards=1)
    make_shards(tmp_path / "same", samples=4, shards=1)
    before = contents(tmp_path / "in")
    tool = Teach(checkpoint=str(teacher), captions=("caption",), overwrite=True)
    with pytest.raises(DataError, match="never changed"):
        tool.run([tmp_path / "in"], tmp_path / "in")
    with pytest.raises(DataError, match=r"two of the shards are called 00000\.tar"):
        tool.run([tmp_path / "in", tmp_path / "same"], tmp_path / "out")
    with pytest.raises(DataError, match="teacher: "):
        tool.model_copy(update={"checkpoint": str(tmp_path / "none")}).run([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(DataError, match=r"no sample could be taught: \{'no_caption': 4\}"):
        tool.model_copy(update={"captions": ("nothing",)}).run([tmp_path / "in"], tmp_path / "out")
    assert contents(tmp_path / "in") == before


def test_a_second_teacher_sees_the_same_crops(tmp_path: Path, teacher: Path, shards: str) -> None:
    Teach(checkpoint=str(teacher), views=2).run([shards], tmp_path / "one")
    other = Teach(
        checkpoint=str(saved(tmp_path / "other", seed=2)), views=2, member="other.npz", captions=("es", "captions")
    )
    other.run([tmp_path / "one"], tmp_path / "both")
    found = read(tmp_path / "both")
    assert len(found) == 20
    for sample in found.values():
        first, second = arrays(sample), arrays(sample, "other.npz")
        assert np.array_equal(first["boxes"], second["boxes"])
        assert second["text"].shape == (1, 64)
        assert second["text/captions"].shape == first["text"].shape
    Teach(checkpoint=str(teacher), views=2, captions=()).run([shards], tmp_path / "pictures")
    assert sorted(arrays(read(tmp_path / "pictures")["000007"])) == ["boxes", "image", "scale"]


@pytest.mark.slow
def test_several_processes_give_the_same_features(tmp_path: Path, teacher: Path, shards: str) -> None:
    tool = Teach(checkpoint=str(teacher), views=2)
    tool.run([shards], tmp_path / "one")
    tool.model_copy(update={"workers": 2}).run([shards], tmp_path / "two")
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert list(one) == list(two)
    for key in one:
        _near(arrays(one[key])["image"], torch.from_numpy(arrays(two[key])["image"]).float())


def test_the_configuration_of_stored_distillation_trains_on_it(tmp_path: Path) -> None:
    """configs/train/distill_stored.yaml, but for paths and the length of the run."""
    shards = make_shards(
        tmp_path / "in", samples=24, shards=2, size=64, broken={i: facts(f"a {i}", f"b {i}") for i in range(24)}
    )
    model = saved(tmp_path / "demo", arch="vlp-conv-64")
    words = ["teach", model, shards, "--out", tmp_path / "taught", "--views", 3, "--captions", "captions"]
    told = CliRunner().invoke(app, [str(word) for word in words])
    assert told.exit_code == 0, told.output
    assert "dim: 256" in told.output
    changes = [f"data.sources.0.urls={tmp_path}/taught/*.tar", f"out={tmp_path}", "device=cpu", "threads=1"]
    changes += ["data.batch_size=8", "data.workers=0", "duration=4steps", "save.every=4steps", "log.every=1steps"]
    run = config.load(Run, ROOT / "configs/train/distill_stored.yaml", [*changes, "evals=[]"])
    Trainer(run).train()
    steps = list(read_steps(tmp_path / "distill_stored" / "metrics.jsonl"))
    assert len(steps) == 4
    assert all(np.isfinite(record["loss"]) for record in steps)
    assert (
        not (tmp_path / "distill_stored" / "skips.jsonl").exists()
        or not (tmp_path / "distill_stored" / "skips.jsonl").read_text()
    )


def test_options(tmp_path: Path, teacher: Path) -> None:
    assert TOOLS.resolve("teach") is Teach
    shards = make_shards(tmp_path / "in", samples=2, shards=1)
    words = ["teach", str(teacher), shards, "--out", str(tmp_path / "out"), "--captions", "caption"]
    told = CliRunner().invoke(app, [*words, "--scale", "0.5", "0.7"])
    assert told.exit_code == 0, told.output
    assert "samples: 2" in told.output
    boxes = arrays(read(tmp_path / "out")["000000"])["boxes"]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert (areas > 0.4).all()
    assert (areas < 0.8).all()
    assert CliRunner().invoke(app, [*words, "--views", "0"]).exit_code == 2
    assert (
        "teacher: " in CliRunner().invoke(app, ["teach", str(tmp_path / "no"), shards, "--out", str(tmp_path)]).output
    )
