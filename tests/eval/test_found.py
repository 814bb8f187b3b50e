"""Known sets opened from the folders that people have: webdatasets, CoOp's folders, pictures with files beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.catalog import find
from eval.classify import Classification
from eval.coop import read_list
from eval.data import Data, open_data
from eval.found import find_set, form_of
from eval.retrieve import Retrieval
from tests.eval.colours import COLOURS, ColourDual, jpeg, write_shard
from vlp.data.fields import Fields
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.text.templates import openai_imagenet


def layout(root: Path, samples: list[dict[str, bytes]], *, names: tuple[str, ...] = (), split: str = "test") -> Path:
    """One shard in CLIP_benchmark's layout."""
    write_shard(root / split / "0.tar", samples)
    (root / split / "nshards.txt").write_text("1\n")
    if names:
        (root / "classnames.txt").write_text("\n".join(names) + "\n")
    return root


def coloured() -> list[dict[str, bytes]]:
    return [{"jpg": jpeg(colour), "cls": str(i).encode()} for i, colour in enumerate(COLOURS)]


@pytest.mark.parametrize("folder", ["imagenet-a", "wds_imagenet-a", "wds_imagenet-a_test"])
def test_a_webdataset_is_found_by_its_spellings_and_measured(tmp_path, folder):
    layout(tmp_path / folder, coloured(), names=tuple(COLOURS))
    data = Data(set="imagenet-a")
    opened = open_data(data, folders=[tmp_path / "elsewhere", tmp_path])
    assert opened.names == tuple(COLOURS)
    assert opened.templates == openai_imagenet()  # the folder brings none, so the catalogue's
    part = Classification(dataset="a", data=data, templates=("{}",))
    (tmp_path / folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    assert open_data(data, folders=[tmp_path]).templates == ("{c}",)
    path = data.model_copy(update={"set": None, "path": str(tmp_path / folder)})
    found = part.model_copy(update={"data": path}).run(Encoder(ColourDual(), quiet=True))
    assert found["acc1"] == 1.0


def test_an_empty_class_name_of_the_published_set_stays(tmp_path):
    names = ("very nearby", "nearby", "near", "", "distant", "very distant")
    layout(tmp_path / "wds_vtab-clevr_closest_object_distance", coloured(), names=names)
    assert open_data(Data(set="vtab/clevr_closest_object_distance"), folders=[tmp_path]).names == names


def test_a_retrieval_set_has_a_caption_a_line(tmp_path):
    samples = [{"jpg": jpeg(colour), "txt": f"{colour} a\n{colour} b\n".encode()} for colour in COLOURS]
    root = layout(tmp_path / "wds_flickr8k", samples)
    assert len(open_data(Data(set="flickr8k"), folders=[tmp_path]).records) == 5
    part = Retrieval(dataset="f", data=Data(path=str(root)), k=(1,))
    assert part.captions.texts(Fields(open_data(part.data).records[0])) == ["red a\nred b"]
    (root / "dataset_type.txt").write_text("retrieval\n")
    for data in (part.data, Data(set="flickr8k")):
        records = open_data(data, folders=[tmp_path]).records
        assert part.captions.texts(Fields(records[0])) == ["red a", "red b"]
        assert set(records.read(0, {"jpg"}).members) == {"jpg"}
        assert records.name(2) == ("0.tar", "s0000002")
    assert part.run(Encoder(ColourDual(), quiet=True))["image_retrieval_recall@1"] == 1.0


def coop(root: Path) -> Path:
    """CoOp's folder of textures with three splits, and a picture of each colour."""
    items = []
    for label, colour in enumerate(COLOURS):
        (root / "images" / colour).mkdir(parents=True)
        (root / "images" / colour / "one.jpg").write_bytes(jpeg(colour))
        items.append([f"{colour}/one.jpg", label, f"very_{colour}"])
    content = {"train": items[:2], "val": items[2:3], "test": items}
    (root / "split_zhou_DescribableTextures.json").write_text(json.dumps(content))
    return root


def test_coops_split_is_read(tmp_path):
    coop(tmp_path / "dtd")
    opened = open_data(Data(set="coop/dtd"), folders=[tmp_path])
    assert opened.names == tuple(f"very {colour}" for colour in COLOURS)
    assert opened.templates == ("{} texture.",)
    assert len(open_data(Data(set="coop/dtd", split="train"), folders=[tmp_path]).records) == 2
    assert Fields(opened.records[3]).find("cls") == 3
    assert opened.records[3].members["jpg"] == jpeg("yellow")
    with pytest.raises(DataError, match='no split "all"; it has train, val, test'):
        open_data(Data(set="coop/dtd", split="all"), folders=[tmp_path])


def test_a_set_with_another_split_is_not_taken_for_it(tmp_path):
    coop(tmp_path / "dtd")
    with pytest.raises(
        DataError, match=r"dtd is there, but not in a form that can be read(.|\n)*hf download clip-bench"
    ):
        open_data(Data(set="vtab/dtd"), folders=[tmp_path])


def test_coops_aircraft_and_imagenet_have_lists_of_their_own(tmp_path):
    root = tmp_path / "fgvc_aircraft"
    (root / "images").mkdir(parents=True)
    (root / "images" / "0034309.jpg").write_bytes(jpeg("red"))
    (root / "variants.txt").write_text("707-320\n727-200\n")
    (root / "images_variant_test.txt").write_text("0034309 727-200\n")
    opened = open_data(Data(set="coop/fgvc_aircraft"), folders=[tmp_path])
    assert (opened.names, Fields(opened.records[0]).find("cls")) == (("707-320", "727-200"), 1)
    (root / "images_variant_test.txt").write_text("0034309 737-200\n")
    with pytest.raises(DataError, match="variants that variants.txt does not have: 737-200"):
        read_list(root, "test")
    root = tmp_path / "imagenet"
    for folder, colour in (("n02", "green"), ("n01", "red")):
        (root / "images" / "val" / folder).mkdir(parents=True)
        (root / "images" / "val" / folder / "a.JPEG").write_bytes(jpeg(colour))
    (root / "classnames.txt").write_text("n02 green lizard\nn01 red fish\n")
    opened = open_data(Data(set="coop/imagenet"), folders=[tmp_path])
    assert opened.names == ("red fish", "green lizard")
    assert Fields(opened.records[1]).find("cls") == "1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "wanted lists of"),
        ({"test": [["a.jpg", 0]]}, "wanted lists of"),
        ({"test": [["a.jpg", 0, "x"], ["b.jpg", 2, "y"]]}, "labels are not 0 to 1"),
    ],
)
def test_a_torn_split_file_is_refused(tmp_path, content, message):
    (tmp_path / "split_zhou_X.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_list(tmp_path, "test")


def test_pictures_with_files_beside_them_and_tables_of_captions(tmp_path):
    (tmp_path / "sugar_crepe" / "val2017").mkdir(parents=True)
    assert form_of(find("sugar_crepe"), tmp_path / "sugar_crepe", "test") is None
    (tmp_path / "sugar_crepe" / "val2017" / "000000000139.jpg").write_bytes(jpeg("red"))
    opened = open_data(Data(set="sugar_crepe/swap_obj"), folders=[tmp_path])
    assert opened.records.name(0)[1] == "000000000139"
    root = tmp_path / "xtd10"
    root.mkdir()
    (root / "a.jpg").write_bytes(jpeg("blue"))
    (root / "captions.jsonl").write_text(json.dumps({"file_name": "a.jpg", "captions": {"de": "blau", "en": "blue"}}))
    record = open_data(Data(set="xtd10"), folders=[tmp_path]).records[0]
    part = Retrieval(dataset="x", data=Data(set="xtd10"), captions={"fields": ["captions"], "language": "de"})
    assert part.captions.texts(Fields(record)) == ["blau"]


def test_what_is_missing_says_where_it_was_looked_for_and_how_it_is_got(tmp_path):
    with pytest.raises(DataError) as caught:
        find_set("coop/stanford_cars", folders=[tmp_path])
    said = str(caught.value)
    assert f"  {tmp_path}/{{coop/stanford_cars,wds_coop-stanford_cars," in said
    assert f"gdown 1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT -O {tmp_path}/stanford_cars/split_zhou_StanfordCars.json" in said
    assert "by hand: the pictures (cars_train and cars_test)" in said
    assert 'another place with "data=FOLDER"' in said


def test_data_names_one_place_and_a_known_set():
    assert Data(set="pets").set == "vtab/pets"
    with pytest.raises(ValueError, match='did you mean "mnist"'):
        Data(set="mnits")
    with pytest.raises(ValueError, match='give one of "path", "set"'):
        Data(set="mnist", path="mnist")
