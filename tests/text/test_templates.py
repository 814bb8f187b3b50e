from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from vlp.text import templates
from vlp.text.templates import checked, fill, read_names, read_templates, template_set


def test_the_sets_of_open_clip() -> None:
    assert len(templates.OPENAI_IMAGENET) == 80
    assert [fill(t, "x {y}") for t in templates.OPENAI_IMAGENET] == [
        make("x {y}") for make in OPENAI_IMAGENET_TEMPLATES
    ]
    assert [fill(t, "cat") for t in templates.SIMPLE] == [make("cat") for make in SIMPLE_IMAGENET_TEMPLATES]
    assert template_set("openai_imagenet") == templates.OPENAI_IMAGENET
    assert template_set("coop_dtd") == ("{} texture.",)
    for text in templates.COOP.values():
        assert checked([text])


def test_unknown_set_and_unknown_attribute() -> None:
    with pytest.raises(ValueError, match='unknown template set "simpel"; did you mean "simple"'):
        template_set("simpel")
    with pytest.raises(AttributeError):
        templates.NOTHING  # noqa: B018


@given(st.text(max_size=30))
def test_names_are_taken_literally(name: str) -> None:
    assert fill("a {} and a {c}.", name) == "a " + name + " and a " + name + "."


@pytest.mark.parametrize("bad", ["{0.__init__.__globals__[SECRET]}", "a {x} {}", "{} }", "{{}}", "{c!r} {}"])
def test_other_braces_are_refused_with_their_line(bad: str) -> None:
    with pytest.raises(ValueError, match="templates:2: "):
        checked(["a {}", bad])


def test_a_template_without_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="templates:1: no slot"):
        checked(["a photo"])
    with pytest.raises(ValueError, match="no template"):
        checked([])


def test_templates_file(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("# comment\n\na {}.\n  {c} there \n", encoding="utf-8")
    assert read_templates(file) == ("a {}.", "{c} there")
    file.write_text("a {}\n\n# x\nno slot\nfoo {0}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"t\.txt:4: no slot(.|\n)*t\.txt:5: no slot"):
        read_templates(file)
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no template"):
        read_templates(file)
    (tmp_path / "t.json").write_text(json.dumps(["{} x"]))
    assert read_templates(tmp_path / "t.json") == ("{} x",)


def test_names_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\n hot dog \n", encoding="utf-8")
    assert read_names(file) == ("cat", "hot dog")
    file.write_text("cat\n\ndog\ncat\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r'names\.txt:2: empty(.|\n)*names\.txt:4: class name "cat" .* line 1'):
        read_names(file)
    (tmp_path / "n.json").write_text(json.dumps({"names": ["a", "b"], "coarse": ["c"]}))
    assert read_names(tmp_path / "n.json") == ("a", "b")
    assert read_names(tmp_path / "n.json", key="coarse") == ("c",)
    with pytest.raises(ValueError, match='did you mean "names"'):
        read_names(tmp_path / "n.json", key="name")
    with pytest.raises(ValueError, match=r'no file .*did you mean "names\.txt"'):
        read_names(tmp_path / "name.txt")
