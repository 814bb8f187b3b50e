"""Zero-shot classification: names and templates from the suite or the folder, labels by index or name."""

from __future__ import annotations

import pytest

from eval.classify import Classification
from eval.data import Data, open_data
from eval.layout import read_layout
from eval.view import View
from tests.eval.colours import COLOURS, ColourDual, colour_shard
from vlp.data.schema import DataError
from vlp.embed import Encoder


def layout(root, shards=1):
    """A folder as CLIP_benchmark's webdatasets are."""
    for number in range(shards):
        colour_shard(root / "test" / f"{number}.tar")
    (root / "test" / "nshards.txt").write_text(f"{shards}\n")
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


def measure(part, dual=None):
    view = View(Encoder(dual or ColourDual(), quiet=True), open_data(part.data), dataset=part.dataset)
    return part.measure(view)


def test_a_clip_benchmark_folder_needs_nothing_else(tmp_path):
    found = measure(Classification(dataset="d", data=str(layout(tmp_path, shards=2))))
    assert found.metrics["acc1"] == 1.0
    assert found.n == 20
    assert found.counts["templates"] == 1


def test_what_the_suite_says_wins_over_the_folder(tmp_path):
    root = layout(tmp_path)
    plain = measure(Classification(dataset="d", data=str(root)))
    other = measure(Classification(dataset="d", data=str(root), templates="simple"))
    assert other.counts["templates"] == 7
    assert other.templates_hash != plain.templates_hash
    turned = measure(Classification(dataset="d", data=str(root), names=("green", "red", "blue", "yellow", "white")))
    assert turned.metrics["acc1"] == pytest.approx(0.6)
    assert turned.classes_hash != plain.classes_hash


def test_names_and_templates_from_files_and_labels_by_name(tmp_path):
    shard = colour_shard(tmp_path / "c.tar")
    (tmp_path / "names.txt").write_text("\n".join(reversed(COLOURS)))
    (tmp_path / "templates.txt").write_text("# ours\na {} thing\n{}\n")
    words = {"names": str(tmp_path / "names.txt"), "templates": str(tmp_path / "templates.txt")}
    found = measure(Classification(dataset="d", data=str(shard), label="class", **words))
    assert found.metrics["acc1"] == 1.0
    assert found.counts["templates"] == 2
    by_index = measure(Classification(dataset="d", data=str(shard), **words))  # indices of another order
    assert by_index.metrics["acc1"] == pytest.approx(0.2)


def test_class_names_beside_plain_shards_are_found(tmp_path):
    colour_shard(tmp_path / "0.tar")
    (tmp_path / "classnames.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    assert measure(Classification(dataset="d", data=str(tmp_path))).metrics["acc1"] == 1.0


def test_repeated_names_are_two_classes_that_tie(tmp_path):
    root = layout(tmp_path)
    (root / "classnames.txt").write_text("red\nred\nblue\nyellow\nwhite\n")
    found = measure(Classification(dataset="d", data=str(root)))
    assert found.metrics["acc1"] == pytest.approx(0.6)


def test_missing_words_and_labels_say_so(tmp_path):
    shard = colour_shard(tmp_path / "c.tar")
    with pytest.raises(ValueError, match="d: no class names"):
        measure(Classification(dataset="d", data=str(shard)))
    with pytest.raises(DataError, match=r"no picture has a label in kind: \{'no_label': 10\}"):
        measure(Classification(dataset="d", data=str(shard), names=tuple(COLOURS), label="kind"))
    with pytest.raises(ValueError, match='unknown template set "simpel"; did you mean "simple"'):
        measure(Classification(dataset="d", data=str(shard), names=tuple(COLOURS), templates="simpel"))
    with pytest.raises(DataError, match=r"names\.txt"):
        measure(Classification(dataset="d", data=str(shard), names="names.txt"))


def test_a_layout_with_a_missing_shard_or_an_empty_name_is_refused(tmp_path):
    root = layout(tmp_path)
    (root / "test" / "nshards.txt").write_text("3")
    with pytest.raises(DataError, match=r"3 shards, but 2 are missing: 1\.tar, 2\.tar"):
        read_layout(root, "test")
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("red\n\nblue\n")
    with pytest.raises(DataError, match="lines 2"):
        open_data(Data(path=str(root)))
