"""The catalogue of evaluation sets: counts against what the projects publish, names, and that suites keep to it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from eval import catalog
from eval.catalog import KnownSet, find, of
from eval.suite import load_suite
from vlp.text.templates import template_set

ROOT = Path(__file__).parents[2]
ENTRIES = list(catalog.catalog().values())
PUBLISHED = {  # CLIP_benchmark's lists and collections, DataComp's tasklist, and the sets' own papers
    "clip_benchmark": 39,
    "webdatasets": 41,
    "vtab": 19,
    "vtab+": 36,
    "retrieval": 3,
    "imagenet_robustness": 5,
    "datacomp": 40,
    "coop": 11,
    "sugar_crepe": 7,
    "aro": 4,
    "genecis": 4,
    "composed": 6,
    "long_captions": 6,
    "segmentation": 5,
    "anomaly": 2,
}
SUITES = {
    "vtab": "vtab",
    "imagenet_robustness": "imagenet_robustness",
    "retrieval": "retrieval",
    "coop": "coop",
    "long_captions": "long_captions",
    "vtab+": "vtab+",
    "datacomp": "datacomp",
}
NOT_MEASURED = {  # by these suites: an association game, and two that have no score
    "winogavil",
    "fairness/fairface",
    "fairness/utkface",
}


@pytest.mark.parametrize(("group", "count"), PUBLISHED.items())
def test_a_group_has_as_many_sets_as_is_published(group, count):
    assert len(of(group)) == count


def test_datacomp_scores_38_tasks_of_40_and_agrees_on_their_sizes():
    tasks = [entry for entry in ENTRIES if entry.datacomp]
    assert {entry.name for entry in tasks} == {entry.name for entry in of("datacomp")}
    assert sum(entry.datacomp.scored for entry in tasks) == 38
    sizes = {entry.name: (entry.test or entry.items, entry.datacomp.size) for entry in tasks}
    assert [name for name, (ours, theirs) in sizes.items() if ours != theirs] == []
    vtab = [entry for entry in tasks if any(tag.startswith("vtab_") for tag in entry.datacomp.tags)]
    assert len(vtab) == 13  # DataComp's VTAB


def test_sugar_crepe_is_the_sum_of_its_kinds():
    assert sum(entry.items for entry in of("sugar_crepe")) == find("sugar_crepe").items == 7511
    kinds = {file: digest for entry in of("sugar_crepe") for file, digest in entry.files.items()}
    assert kinds == find("sugar_crepe").files


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_says_how_to_get_it_and_what_it_is(entry):
    assert entry.fetch("data") or entry.page or entry.needs
    assert entry.license
    if entry.task == "zeroshot_classification" and entry.layout in ("clip_benchmark", "coop"):
        assert entry.test
        assert entry.classes or not entry.datacomp.scored
    if entry.templates:
        assert template_set(entry.templates)
    if entry.layout in ("pictures", "coop"):
        assert entry.pictures
    assert all(line.isprintable() for line in entry.fetch("data"))
    assert all("{" not in line for line in entry.fetch("data"))
    assert {len(digest) for digest in entry.files.values() if digest} <= {64}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", "mnist"),
        ("vtab/pets", "vtab/pets"),
        ("pets", "vtab/pets"),
        ("OxfordPets", "coop/oxford_pets"),
        ("oxford_pets", "coop/oxford_pets"),
        ("caltech-101", "coop/caltech101"),
        ("cifar10", "vtab/cifar10"),
        ("CIFAR10ZeroShot", "vtab/cifar10"),
        ("retrieval/flickr_1k_test_image_text_retrieval", "flickr30k"),
        ("XM3600T2IRetrieval", "crossmodal3600"),
    ],
)
def test_a_set_is_found_by_every_projects_name(name, expected):
    assert find(name).name == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vtab/pest", 'did you mean "vtab/pets"'), ("MNIST", 'did you mean "mnist"'), ("qqqqqq", "groups: anomaly, aro")],
)
def test_an_unknown_name_gets_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        find(name)
    with pytest.raises(ValueError, match='did you mean "vtab"'):
        of("vtba")


def test_a_name_is_given_once(monkeypatch):
    one = KnownSet(name="one", title="", task="zeroshot_classification", metric="acc1", layout="own")
    other = one.model_copy(update={"name": "other", "aliases": {"mieb": "one"}})
    monkeypatch.setattr(catalog, "_entries", lambda: iter([one, other]))
    with pytest.raises(ValueError, match='"one" is a name of one and of other'):
        catalog.catalog.__wrapped__()


def test_the_command_puts_it_where_it_is_found():
    entry = find("vtab/pets")
    assert entry.dataset == "clip-benchmark/wds_vtab-pets"
    (line,) = entry.fetch("sets")
    assert line.startswith(
        "hf download clip-benchmark/wds_vtab-pets --repo-type dataset --local-dir sets/wds_vtab-pets"
    )
    assert line.endswith('--exclude "train/*"')
    for entry in ENTRIES:
        assert entry.home() in entry.folders()
    assert {"vtab/pets", "wds_vtab-pets", "vtab-pets", "pets"} <= set(find("vtab/pets").folders())
    assert "wds_dollar_street_test" in find("fairness/dollar_street").folders()


def test_every_data_file_is_read_and_every_set_stands_in_the_page():
    files = [file.name for file in resources.files("eval").joinpath("sets").iterdir()]
    assert sorted(files) == sorted(file.name for file in (ROOT / "eval" / "sets").glob("*.yaml"))
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert [entry.name for entry in ENTRIES if f"`{entry.name}`" not in page] == []
    assert [group for group in catalog.groups() if f"`{group}`" not in page] == []


@pytest.mark.parametrize(("suite", "group"), SUITES.items())
def test_a_suite_has_the_sets_of_its_group(suite, group):
    asked = {part.data.set for part in load_suite(ROOT / "configs" / "eval" / f"{suite}.yaml").benchmarks}
    assert {entry.name for entry in of(group)} - NOT_MEASURED <= asked


def test_languages_of_a_suite_are_those_of_its_sets():
    asked = load_suite(ROOT / "configs" / "eval" / "multilingual_retrieval.yaml").benchmarks
    for name in ("xtd10", "crossmodal3600"):
        assert {part.language for part in asked if part.data.set == name} == set(find(name).languages)
        assert all(part.captions.language == part.language for part in asked)
