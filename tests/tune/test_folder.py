"""Folders of features: what is read, and what each fault says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tune.doubles import NAMES, arrays, folder, write
from vlp.adapters.classifier import LinearClassifier
from vlp.tune.folder import read_folder

__all__ = ["folder"]


def test_a_folder_is_read_normalised_with_its_labels_shut(folder):
    stock = read_folder(folder)
    assert (stock.dataset, stock.names, stock.encoder.scale) == ("features", NAMES, 100.0)
    assert stock.text.shape == (6, 1, 8)
    for part in (stock.train.image, stock.validation.image, stock.test.pictures.image, stock.text):
        torch.testing.assert_close(part.norm(dim=-1), torch.ones(part.shape[:-1]))
    assert stock.test.pictures.label is None
    assert stock.train.known.tolist() == sorted(list(range(6)) * 10)
    assert set(stock.hashes) == {"train", "validation", "test", "classes"}
    assert stock.unlabelled is None


def test_everything_that_may_be_there_is_read(tmp_path):
    found = arrays()
    rng = np.random.default_rng(1)
    found["train"] |= {"keys": np.arange(60), "views": rng.normal(size=(60, 3, 8))}
    found["unlabeled"] = {"image": rng.normal(size=(7, 8))}
    found["classes"] |= {"text": rng.normal(size=(6, 4, 8)), "logit_scale": 50.0, "weights_hash": np.array("abc")}
    stock = read_folder(write(tmp_path, found))
    assert (stock.train.keys[:2], stock.train.views.shape) == (("0", "1"), (60, 3, 8))
    assert (len(stock.unlabelled), stock.text.shape) == (7, (6, 4, 8))
    assert (stock.encoder.scale, stock.encoder.weights_hash) == (50.0, "abc")
    weight = torch.nn.functional.normalize(stock.text.mean(dim=1), dim=1)
    assert LinearClassifier(weight, names=stock.names)(stock.train.image).shape == (60, 6)


def put(file, name, value):
    def change(found):
        found[file] = {**found.get(file, {"image": IMAGE}), name: value}

    return change


def without(file, name=None):
    def change(found):
        found.pop(file) if name is None else found[file].pop(name)

    return change


IMAGE = np.ones((60, 8), dtype="f4")
FAULTS = [
    (without("test"), r"test\.npz is missing"),
    (without("classes"), r"classes\.npz is missing"),
    (without("train", "image"), r"train\.npz: image: no such array"),
    (without("test", "label"), r"test\.npz: label: no such array"),
    (without("classes", "names"), r"classes\.npz: names: no such array"),
    (put("train", "image", IMAGE[0]), r"train\.npz: image: float32 of shape \[8\]; wanted floats of shape \[n, D\]"),
    (put("train", "image", IMAGE.astype(int)), r"train\.npz: image: int64 of shape"),
    (put("train", "image", IMAGE * np.nan), r"train\.npz: image: 60 of 60 rows are not finite numbers, first \[0\]"),
    (put("train", "image", np.eye(60, 8)), r"train\.npz: image: 52 of 60 rows are zero, .* first \[8\]"),
    (put("train", "image", np.ones((60, 4))), r"train\.npz: image: 4 numbers a row, but text .* has 8"),
    (put("train", "label", np.full(60, 6)), r"train\.npz: label: row 0 has 6 .* labels are 0 to 5"),
    (put("val", "label", np.full(24, -1)), r"val\.npz: label: row 0 has -1"),
    (put("train", "label", np.zeros(60)), r"train\.npz: label: float64 .* wanted integers of shape \[60\]"),
    (put("train", "label", np.zeros(3, dtype=int)), r"train\.npz: label: int64 of shape \[3\]"),
    (put("train", "keys", np.array(["a"] * 60)), r'train\.npz: keys: several pictures are called "a"'),
    (put("train", "keys", np.array(["a"])), r"train\.npz: keys: 1 keys for 60"),
    (put("test", "label", np.zeros(3, dtype=int)), r"test\.npz: label: int64 of shape \[3\]; wanted .* \[30\]"),
    (put("test", "label", np.zeros(30)), r"test\.npz: label: float64 of shape"),
    (put("classes", "names", np.array([b"\xff\xfe"] * 6)), r"classes\.npz: names: bytes b'\\xff\\xfe' are not UTF-8"),
    (put("unlabeled", "label", np.full(60, 77)), r"unlabeled\.npz: label: row 0 has 77 .* labels are -1 to 5"),
    (put("unlabeled", "label", np.zeros(3, dtype=int)), r"unlabeled\.npz: label: int64 of shape \[3\]"),
    (put("train", "views", np.ones((60, 8))), r"train\.npz: views: .* wanted floats of shape \[n, V, D\]"),
    (put("train", "views", np.ones((60, 2, 4))), r"train\.npz: views: shape \[60, 2, 4\]"),
    (put("classes", "names", np.array(list(NAMES), dtype=object)), r"classes\.npz: names: has dtype object"),
    (put("classes", "names", np.arange(6)), r"classes\.npz: names: int64 .* wanted texts"),
    (put("classes", "names", np.array(["a", "a", *NAMES[2:]])), r'class name "a" stands already'),
    (put("classes", "names", np.array(NAMES[:5])), r"classes\.npz: text: 6 classes, but names has 5"),
    (put("classes", "logit_scale", -1.0), r"classes\.npz: logit_scale: .* one number above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_every_fault_names_file_and_array(tmp_path, change, said):
    found = arrays()
    change(found)
    with pytest.raises(ValueError, match=said):
        read_folder(write(tmp_path, found))


def test_a_label_of_test_is_checked_when_it_is_scored(tmp_path):
    found = arrays()
    found["test"]["label"][3] = 9
    stock = read_folder(write(tmp_path, found))
    with stock.test.fitting():
        pass
    with pytest.raises(ValueError, match=r"test\.npz: label: row 3 has 9"):
        stock.test.label("scoring")


def test_files_that_are_none_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    (folder / "train.npz").write_bytes(b"PK torn")
    with pytest.raises(ValueError, match=r"train\.npz: not an \.npz file"):
        read_folder(folder)
    np.save(folder / "train.npy", np.ones(3))
    (folder / "train.npy").rename(folder / "train.npz")
    with pytest.raises(ValueError, match="it holds a single array"):
        read_folder(folder)


def test_misspelt_files_and_arrays_are_said(tmp_path, capsys):
    found = arrays()
    found["unlabelled"] = {"image": IMAGE}
    found["train"]["key"] = np.arange(60)
    read_folder(write(tmp_path, found))
    said = capsys.readouterr().err
    assert 'unlabelled.npz is not read; did you mean "unlabeled.npz"?' in said
    assert 'key is not read; did you mean "keys"?' in said


def test_train_pictures_that_are_measured_are_refused(tmp_path):
    found = arrays()
    found["test"] = found["val"]
    with pytest.raises(ValueError, match="validation and test are the same pictures"):
        read_folder(write(tmp_path, found))


def test_only_unlabelled_pictures_will_do_and_so_will_none_where_nothing_is_learned(tmp_path):
    found = arrays()
    found.pop("train")
    assert read_folder(write(tmp_path, found)).train is None
    found["unlabeled"] = {"image": IMAGE}
    assert len(read_folder(write(tmp_path, found)).unlabelled) == 60


def test_a_file_that_is_missing_is_not_taken_for_one_that_has_its_own_name(tmp_path):
    found = arrays()
    found["tests"] = found.pop("test")
    with pytest.raises(ValueError, match=r'test\.npz is missing; did you mean "tests.npz"\?'):
        read_folder(write(tmp_path / "near", found))
    found.pop("tests")
    with pytest.raises(ValueError, match=r"test\.npz is missing\n"):
        read_folder(write(tmp_path / "far", found))


@pytest.mark.parametrize(
    ("factor", "kind"), [(1e-15, "f4"), (1e-20, "f8"), (1e20, "f4"), (1e200, "f8"), (1e-300, "f8"), (3e4, "f2")]
)
def test_rows_of_any_size_have_unit_norm(tmp_path, factor, kind):
    found = arrays()
    rows = found["train"]["image"].astype("f8")
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    found["train"]["image"] = (rows * factor).astype(kind)
    own = read_folder(write(tmp_path, found)).train.image
    torch.testing.assert_close(own.norm(dim=1), torch.ones(60))
    want = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1).float()
    torch.testing.assert_close(own, want, atol=1e-3 if kind == "f2" else 1e-6, rtol=0)


def test_one_number_that_is_none_is_not_finite(tmp_path):
    found = arrays()
    found["train"]["image"][7, 2] = np.inf
    with pytest.raises(ValueError, match=r"1 of 60 rows are not finite numbers, first \[7\]"):
        read_folder(write(tmp_path, found))
