"""A path of something else is said to be what it is, wherever a user may give it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.shards import find_shards
from data_tools.tables import open_table
from eval.__main__ import compare_app
from eval.compare import compare, parse_arms
from eval.words import sort_words
from tests.data.tars import picture, write_shards
from vlp import config, paths
from vlp.adapters import saved
from vlp.data.schema import DataError
from vlp.data.urls import resolve
from vlp.explained import write_explanation
from vlp.models import pretrained
from vlp.pictures import read_picture
from vlp.report.read import read_run
from vlp.run import Run
from vlp.search import Index, SearchError
from vlp.search.build import as_spec

URL = "https://example.com/a.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `vlp train` leaves, as far as these messages look."""
    folder = tmp_path / "demo"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: demo\n")
    return folder


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    (folder / "red").mkdir(parents=True)
    (folder / "red" / "1.JPG").write_bytes(picture(1))
    return folder


def said(fault: type[Exception], call: object, *given: object) -> str:
    with pytest.raises(fault) as caught:
        call(*given)  # type: ignore[operator]
    return str(caught.value)


def test_kinds_of_what_lies_there(tmp_path: Path, run: Path, pics: Path) -> None:
    write_shards(tmp_path / "shards", [1])
    (tmp_path / "empty").mkdir()
    assert paths.kind_of(run) == "a run"
    assert paths.kind_of(pics) == "a folder of pictures"
    assert paths.kind_of(pics / "red" / "1.JPG") == "a picture"
    assert paths.kind_of(run / "config.yaml") == "a file"
    assert paths.kind_of(tmp_path / "shards") == "a folder of shards"
    assert paths.kind_of(tmp_path / "empty") == "an empty folder"
    assert paths.kind_of(tmp_path) == "a folder of pictures", "below it"
    assert paths.kind_of(tmp_path / "none") == "not there"
    assert paths.listed(list("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"


def test_a_folder_in_place_of_a_configuration(tmp_path: Path, run: Path) -> None:
    assert said(config.ConfigError, config.load, Run, run) == f"{run} is a run; its file: {run / 'config.yaml'}"
    (tmp_path / "empty").mkdir()
    assert "empty is an empty folder (in" in said(config.ConfigError, config.load, Run, tmp_path / "empty")
    (tmp_path / "empty" / "b.yml").write_text("")
    (tmp_path / "empty" / "a.yaml").write_text("")
    assert said(config.ConfigError, config.load, Run, tmp_path / "empty").endswith("in it: a.yaml, b.yml")


def test_a_url_is_refused_before_it_becomes_a_path(tmp_path: Path) -> None:
    wanted = f"{URL}: URLs are not read here; download it first: curl -LO {URL}"
    for given in (URL, Path(URL)):  # pathlib takes one of the slashes away
        assert said(config.ConfigError, config.load, Run, given) == wanted
        assert said(ValueError, read_picture, given) == wanted
        assert said(SearchError, Index.open, given) == wanted
    assert said(ValueError, saved.read_about, Path(URL)) == wanted
    assert said(ValueError, read_run, Path(URL)) == wanted
    assert said(ValueError, pretrained.load, URL) == wanted
    assert said(ValueError, sort_words, ["demo", URL, "s.yaml"]) == wanted
    assert said(DataError, find_shards, [URL]) == wanted
    explained = ("model", Path(URL), "red", tmp_path / "out.png")
    assert said(ValueError, write_explanation, *explained) == wanted, "before a model is looked for"
    with pytest.raises(DataError, match="URLs are not read here"):
        open_table(URL, split="train", quoting=None)
    assert "curl -LO 'https://x.org/a?b=1&c=2'" in said(ValueError, paths.refuse_url, "https://x.org/a?b=1&c=2")
    for fine in ("a.yaml", "C:/a.yaml", "data.sources.0.urls=https://x.org/0.tar", "a/b:/c"):
        paths.refuse_url(fine)


def test_the_index_of_a_run_is_named(run: Path, tmp_path: Path) -> None:
    assert said(SearchError, Index.open, run).endswith(f"vlp embed {run} DATA --out {run / 'index'}")
    for name, ending in (
        ("index", f"{run} is a run; its index: {run / 'index'}"),
        ("other", "its indexes: index, other; give one"),
    ):
        (run / name).mkdir()
        (run / name / "index.json").write_text("{}")
        assert said(SearchError, Index.open, run).endswith(ending)
    (tmp_path / "else").mkdir()
    assert f"--out {tmp_path / 'else'}" in said(SearchError, Index.open, tmp_path / "else")
    (tmp_path / "else" / "x.txt").write_text("")
    assert said(SearchError, Index.open, tmp_path / "else").endswith(
        "make one elsewhere: vlp embed MODEL DATA --out OTHER"
    )


def test_adapters_of_several_seeds_are_named(tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "adapter.json").write_text("{}")
    wanted = f"{tmp_path} holds seed-1, seed-2: give one, such as {tmp_path / 'seed-1'}"
    assert said(ValueError, saved.read_about, tmp_path) == wanted
    assert "holds no fitted adapter" in said(ValueError, saved.read_about, tmp_path / "none")


@pytest.mark.parametrize("read", [resolve, lambda path: find_shards([path])])
def test_pictures_in_place_of_shards(read: object, pics: Path, tmp_path: Path) -> None:
    assert said(DataError, read, str(pics)) == f"{pics}: a folder of pictures, not shards: vlp data build {pics} OUT"
    one = str(pics / "red" / "1.JPG")
    assert f"{one} is a picture, no shard" in said(DataError, read, one)
    write_shards(tmp_path / "sets" / "train", [1])
    assert "sets holds folders of shards: train; give one" in said(DataError, read, str(tmp_path / "sets"))


def test_a_picture_is_not_embedded_as_a_shard(pics: Path) -> None:
    one = pics / "red" / "1.JPG"
    assert said(SearchError, as_spec, one) == f"{one} is a picture; vlp embed takes a folder, shards or a table"
    assert as_spec(pics) == {"name": "folder", "path": str(pics)}


def test_a_folder_without_pictures_is_told_from_a_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("")
    text = said(ValueError, sort_words, [str(run), str(tmp_path / "other")])
    assert text.endswith("other: a folder: neither a model nor pictures in it or in folders in it; it holds x.txt")
    assert "no suite was given" in said(ValueError, sort_words, [str(run)])


def test_the_first_arm_is_the_baseline(tmp_path: Path) -> None:
    for name, ranks in (("one", [0, 20]), ("two", [0, 0])):
        (tmp_path / name / "eval" / "d").mkdir(parents=True)
        found = {"keys": ["0", "1"], "caption_image": [0, 1], "image_to_text": ranks, "text_to_image": ranks}
        (tmp_path / name / "eval" / "d" / "ranks.json").write_text(json.dumps(found))
    arms = parse_arms([f"b={tmp_path}/one", f"a={tmp_path}/two"])
    rows = {row.arm: row.verdict for row in compare(arms, dataset="d", n_boot=10)}
    assert rows["b"] == "baseline" != rows["a"]
    told = CliRunner().invoke(compare_app, ["d", f"b={tmp_path}/one", f"a={tmp_path}/two", "--n-boot", "10"])
    assert "| b | 50.00 | 50.00 | 0.00 | - | baseline |" in told.output
    assert {row.arm: row.verdict for row in compare(arms, baseline="a", dataset="d", n_boot=10)}["a"] == "baseline"
