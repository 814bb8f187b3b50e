"""Probes on coloured pictures: what they find, what they choose on, and that no test label helps them choose."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from eval import probe
from eval.data import open_data
from eval.few_shot import FewShot
from eval.hits import read_hits
from eval.probe import KNN, LinearProbe
from eval.suite import load_suite, run_suite
from eval.view import View
from tests.eval.colours import COLOURS, ColourDual, colour_shard, jpeg, write_shard
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.models import pretrained

NAMES = tuple(COLOURS)


@pytest.fixture
def data(tmp_path):
    """Where train (6 of each colour), validation (3) and test (2) lie."""
    sizes = {"train": 6, "validation": 3, "test": 2}
    return {kind: str(colour_shard(tmp_path / f"{kind}.tar", per_colour=size)) for kind, size in sizes.items()}


def part(kind, data, **settings):
    defaults = {"max_iter": 60} if kind is not KNN else {"k": (1, 3)}
    return kind(**{"dataset": "d", "data": data["test"], "train": data["train"], "n_boot": 50, **defaults, **settings})


def view_of(benchmark):
    return View(Encoder(ColourDual(), quiet=True), open_data(benchmark.data), dataset=benchmark.dataset)


def measure(kind, data, **settings):
    benchmark = part(kind, data, **settings)
    return benchmark.measure(view_of(benchmark))


def labelled(path, samples):
    """A shard of pictures by (colour, what stands as class)."""
    facts = [{"class": label} if isinstance(label, str) else {} for _, label in samples]
    members = [
        {"jpg": jpeg(colour), "json": json.dumps(fact).encode(), "cls": str(label).encode()}
        for (colour, label), fact in zip(samples, facts)
    ]
    return str(write_shard(path, members))


def test_the_linear_probe_reads_colours_and_says_what_it_chose(data):
    found = measure(LinearProbe, data, max_iter=1000)
    assert found.metrics == {"lp_acc1": 1.0, "lp_mean_per_class_recall": 1.0}
    assert found.ci95["lp_acc1"] == (1.0, 1.0)
    assert found.chance == {"lp_acc1": 0.2, "lp_mean_per_class_recall": 0.2}
    assert found.counts == {"images": 10, "classes": 5, "train_images": 30, "fits_not_converged": 0}
    chosen = found.selection
    assert (chosen["split"], chosen["fraction"], chosen["seed"], chosen["images"]) == ("train", "0.2", 0, 5)
    tried = found.files["linear_probe.json"]["tried"]
    assert chosen["candidates"] == len(tried) > 7
    assert float(chosen["C"]) in [pytest.approx(row["C"], rel=1e-5) for row in tried]
    assert len(chosen["train_hash"]) > 8
    assert "validation_hash" not in chosen


def test_a_test_set_of_other_labels_lowers_the_number_and_not_the_choice(data, tmp_path):
    other = labelled(tmp_path / "other.tar", [("red", 0), ("green", 1), ("blue", 0), ("white", 4)])
    plain, wrong = measure(LinearProbe, data), measure(LinearProbe, {**data, "test": other})
    assert wrong.metrics["lp_acc1"] == 0.75
    assert wrong.ci95["lp_acc1"].low < 0.75 < wrong.ci95["lp_acc1"].high + 1e-9
    assert wrong.selection == plain.selection
    assert wrong.files["linear_probe.json"] == plain.files["linear_probe.json"]


@pytest.mark.parametrize("kind", [LinearProbe, KNN, FewShot])
@pytest.mark.parametrize("own", [False, True])
def test_no_test_label_is_read_before_everything_is_chosen(kind, own, data, monkeypatch):
    settings = {"shots": (1,), "seeds": (1,)} if kind is FewShot else {}
    benchmark = part(kind, data, **({"validation": data["validation"]} if own else {}), **settings)
    view, reads = view_of(benchmark), []

    def watched(inner):
        def call(*arguments, **more):
            reads.append(view.label_reads.total())
            return inner(*arguments, **more)

        return call

    for place, name in ((probe, "choose"), (probe, "fit"), (probe.KNN, "_tried")):
        monkeypatch.setattr(place, name, watched(getattr(place, name)))
    found = benchmark.measure(view)
    assert reads
    assert set(reads) == {0}
    assert dict(view.label_reads) == {"scoring": 1}
    assert found.selection["split"] == ("validation" if own else "train")
    assert ("validation_hash" in found.selection) == own


def test_neighbours_choose_k_and_outvote_wrong_labels(data, tmp_path):
    found = measure(KNN, data, k=(1, 3, 50))
    assert found.metrics["knn_acc1"] == 1.0
    assert (found.selection["k"], found.selection["candidates"]) == (1, 2)  # 50 are more than there are
    assert [row["k"] for row in found.files["knn.json"]["tried"]] == [1, 3]
    noisy = [
        (colour, number if copy else (number + 1) % 5) for copy in range(4) for number, colour in enumerate(COLOURS)
    ]
    bank = {**data, "train": labelled(tmp_path / "noisy.tar", noisy)}
    fixed = measure(KNN, bank, k=(4,))
    assert fixed.metrics["knn_acc1"] == 1.0
    assert {key: fixed.selection[key] for key in ("split", "k")} == {"split": "none", "k": 4}
    with pytest.raises(ValueError, match="21 neighbours of 20 samples"):
        measure(KNN, bank, k=(21,))


def test_a_given_strength_leaves_nothing_to_choose(data):
    found = measure(LinearProbe, data, C=10.0)
    assert found.metrics["lp_acc1"] == 1.0
    assert {key: found.selection[key] for key in ("split", "C")} == {"split": "none", "C": "10"}
    assert found.files["linear_probe.json"]["tried"] == []
    with pytest.raises(ValidationError, match="nothing is chosen: leave out `validation`, or `C`"):
        part(LinearProbe, data, C=10.0, validation=data["validation"])


def test_few_shots_give_mean_and_spread_over_seeds_beside_zero_shot(data):
    found = measure(FewShot, data, shots=(1, 4), seeds=(1, 2), names=NAMES)
    assert set(found.metrics) == {"acc1@1shot", "acc1@1shot_std", "acc1@4shot", "acc1@4shot_std", "acc1_zeroshot"}
    assert found.metrics["acc1@4shot"] == 1.0 == found.metrics["acc1_zeroshot"]
    assert found.metrics["acc1@4shot_std"] == 0.0
    assert set(found.ci95) == set(found.chance) == {"acc1@1shot", "acc1@4shot", "acc1_zeroshot"}
    assert set(found.chance.values()) == {0.2}
    assert found.counts["draws"] == 4
    assert found.selection["C@1shot"].count(",") == 1
    runs = found.files["few_shot.json"]["runs"]
    assert [(run["shots"], run["images"], run["validation_images"]) for run in runs[:2]] == [(1, 5, 5), (4, 20, 10)]
    assert found.templates_hash
    assert found.classes_hash
    alone = measure(FewShot, data, shots=(2,), seeds=(1,), C=1.0)
    assert set(alone.metrics) == {"acc1@2shot"}  # one draw has no spread, and without names there is no zero-shot


def test_draws_are_read_again_and_must_fit(data, tmp_path):
    first = measure(FewShot, data, shots=(2,), seeds=(1, 2), names=NAMES, C=1.0)
    content = first.files["few_shot_draws.json"]
    assert set(content["draws"][0]["train"]) == set(COLOURS)
    path = tmp_path / "draws.json"
    path.write_text(json.dumps(content))
    again = measure(FewShot, data, shots=(2,), seeds=(2,), names=NAMES, C=1.0, draws=str(path))
    assert again.files["few_shot_draws.json"]["draws"] == content["draws"][1:]
    with pytest.raises(
        ValueError, match=r"no draw with seed 1 of 4 shots .*it has seeds and shots \[\(1, 2\), \(2, 2\)\]"
    ):
        measure(FewShot, data, shots=(4,), seeds=(1,), names=NAMES, draws=str(path))
    with pytest.raises(ValueError, match='has no picture of class "0"'):  # these draws say classes by name
        measure(FewShot, data, shots=(2,), seeds=(1,), draws=str(path))


def test_small_classes_are_counted_and_a_choice_needs_pictures(data):
    settings = {"shots": (6, 8), "seeds": (1,)}
    found = measure(FewShot, data, **settings, validation=data["validation"])
    assert found.counts["classes_short@8shot"] == 5
    assert "classes_short@6shot" not in found.counts
    with pytest.raises(DataError, match="d: 6 shots with seed 1 leave no picture to choose C on"):
        measure(FewShot, data, **settings)
    with pytest.raises(ValidationError, match="each number once"):
        part(FewShot, data, shots=(2, 2))


def test_hits_average_to_the_metrics(data, tmp_path):
    other = labelled(tmp_path / "other.tar", [("red", 0), ("green", 1), ("blue", 0), ("white", 4)])
    for kind, metric in ((LinearProbe, "lp_acc1"), (KNN, "knn_acc1"), (FewShot, "acc1@2shot")):
        settings = {"shots": (2,), "seeds": (1, 2)} if kind is FewShot else {}
        found = measure(kind, {**data, "test": other}, **settings)
        (tmp_path / f"{kind.task}_hits.json").write_text(json.dumps(found.files[f"{kind.task}_hits.json"]))
        scores = read_hits(tmp_path, f"{kind.task}/{metric}", head="global")
        assert float(scores.values.mean()) == found.metrics[metric] == 0.75
        assert len(set(scores.keys)) == 4
        assert len(set(zip(scores.keys, scores.items))) == len(scores.items)


def test_pictures_of_unknown_classes_and_unreadable_ones_are_counted(data, tmp_path):
    train = str(colour_shard(tmp_path / "few.tar", per_colour=4, broken=1))
    three = [(colour, number) for number, colour in enumerate(list(COLOURS)[:3])]
    small = labelled(tmp_path / "three.tar", three * 4)
    found = measure(LinearProbe, {**data, "train": small}, validation=data["validation"])
    assert (found.n, found.counts["classes"]) == (6, 3)
    assert found.skips == {"class_not_in_train": 4, "validation_class_not_in_train": 6}
    assert found.chance["lp_acc1"] == pytest.approx(1 / 3)
    found = measure(KNN, {**data, "train": train}, k=(1,))
    assert [reason.startswith("train_") for reason in found.skips] == [True]
    assert sum(found.skips.values()) == 1
    shifted = labelled(tmp_path / "shifted.tar", [("red", 7), ("green", 8)])
    with pytest.raises(DataError, match="no picture is of a class of train"):
        measure(KNN, {**data, "test": shifted}, k=(1,))


def test_labels_by_name_need_the_names(data, tmp_path):
    found = measure(LinearProbe, data, label="class", names=NAMES[::-1])
    assert found.metrics["lp_acc1"] == 1.0
    with pytest.raises(DataError, match="train: d: no picture has a label in class.*give `names`"):
        measure(LinearProbe, data, label="class")
    other = labelled(tmp_path / "other.tar", [("red", "a"), ("blue", "b")])
    with pytest.raises(DataError, match="validation: d: no picture has a label"):
        measure(LinearProbe, data, names=("a", "b"), label="class", validation=data["validation"], train=other)


def test_data_that_cannot_answer_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="d: two of data, train and validation are the same pictures"):
        measure(KNN, {**data, "train": data["test"]})
    with pytest.raises(DataError, match="are the same pictures"):
        measure(KNN, data, validation=data["train"])
    single = labelled(tmp_path / "single.tar", [("red", 0), ("green", 0)])
    with pytest.raises(DataError, match="all pictures of train are of one class"):
        measure(KNN, {**data, "train": single})
    each = labelled(tmp_path / "each.tar", [("red", 0), ("green", 1)])
    with pytest.raises(DataError, match="no class of train has two pictures"):
        measure(KNN, {**data, "train": each})
    for name, words in (("a", NAMES), ("b", NAMES[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classnames.txt").write_text("\n".join(words))
    sizes = (("train", "a", 2), ("test", "b", 1))
    pair = {kind: str(colour_shard(tmp_path / name / "0.tar", per_colour=size)) for kind, name, size in sizes}
    folders = {"train": str(tmp_path / "a"), "test": str(tmp_path / "b")}
    assert measure(KNN, pair, k=(1,)).metrics["knn_acc1"] == 1.0  # single files say nothing of names
    with pytest.raises(DataError, match="do not have the same class names"):
        measure(KNN, folders, k=(1,))


def test_keys_that_repeat_are_told_apart_by_their_shard(data, tmp_path):
    for number in range(2):
        colour_shard(tmp_path / "shards" / f"{number}.tar", per_colour=2 + number)
    found = measure(FewShot, {**data, "train": str(tmp_path / "shards")}, shots=(2,), seeds=(1,), C=1.0)
    keys = [key for own in found.files["few_shot_draws.json"]["draws"][0]["train"].values() for key in own]
    assert len(set(keys)) == 10
    assert all(".tar:" in key for key in keys)


SUITE = """
name: probes
data: sets
benchmarks:
  - {name: linear_probe, dataset: colours, data: test.tar, train: train.tar, max_iter: 60}
  - {name: knn, dataset: colours, data: test.tar, train: train.tar, k: [1, 3]}
  - {name: few_shot, dataset: colours, data: test.tar, train: train.tar, shots: [2], seeds: [1], C: 1.0}
"""


def test_a_suite_encodes_train_once_and_records_the_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "0" * 16)
    for kind, size in (("train", 6), ("test", 2)):
        colour_shard(tmp_path / "sets" / f"{kind}.tar", per_colour=size)
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite, dual = load_suite(tmp_path / "suite.yaml"), ColourDual()
    records = run_suite(dual, suite, out=tmp_path / "out")
    assert [record.task for record in records] == ["linear_probe", "knn", "few_shot"]
    assert sum(shape[0] for kind, shape in dual.calls if kind == "image") == 30 + 10
    assert [record.test_label_reads for record in records] == [1, 1, 1]
    assert [record.selection["split"] for record in records] == ["train", "train", "none"]
    assert (tmp_path / "out/eval/colours/few_shot_draws.json").is_file()
    run_suite(dual, suite, out=tmp_path / "out", again=False)
    assert sum(shape[0] for kind, shape in dual.calls if kind == "image") == 40  # measured before
    colour_shard(tmp_path / "sets" / "train.tar", per_colour=7)
    assert run_suite(dual, suite, out=tmp_path / "out", again=False)[0].counts["train_images"] == 35  # other pictures
    (tmp_path / "suite.yaml").write_text(SUITE.replace("train: train.tar", "train: gone.tar"))
    with pytest.raises(DataError, match=r'no data at "gone\.tar"'):
        run_suite(dual, load_suite(tmp_path / "suite.yaml"), out=tmp_path / "out")
    assert sum(shape[0] for kind, shape in dual.calls if kind == "image") == 85  # nothing more was encoded
