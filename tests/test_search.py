from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import normalize
from typer.testing import CliRunner

from vlp.api import VLP, load
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.search import Hit, Index, Query, SearchError, build_index, contact_sheet
from vlp.search.build import as_spec
from vlp.search.index import combine, exact_top
from vlp.search_cli import app

EVIL = "<script>alert(1)</script>"
COUNT = 12


def draw(number: int) -> bytes:
    picture = Image.new("RGB", (200, 120), ((37 * number) % 256, (91 * number) % 256, (53 * number) % 256))
    ImageDraw.Draw(picture).ellipse((8 * number, 10, 8 * number + 60, 90), fill=(255 - 20 * number, 20 * number, 128))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights, a second one of others, and a shard with one broken picture."""
    folder = tmp_path_factory.mktemp("search")
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        pretrained.save(Model(arch="vlp-nano").build(), folder / name)
    with tarfile.open(folder / "pairs-000.tar", "w") as tar:
        for number in range(COUNT):
            add(tar, f"{number:03d}.png", draw(number) if number != 5 else draw(5)[:40])
            caption = EVIL if number == 0 else f"picture {number}"
            add(tar, f"{number:03d}.json", json.dumps({"caption": caption}).encode())
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> VLP:
    return load(place / "model", device="cpu")


@pytest.fixture(scope="module")
def index(place: Path, model: VLP) -> Index:
    return build_index(model, str(place / "pairs-*.tar"), place / "index", quiet=True)


def brute(features: Tensor, query: Tensor, top: int) -> list[tuple[float, int]]:
    """Every score in a loop, highest first, the earlier row first where equal."""
    scores = [(float((row.float() * query.float()).sum()), number) for number, row in enumerate(features)]
    return sorted(scores, key=lambda pair: (-pair[0], pair[1]))[:top]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("top", [1, 10, 300])
def test_blocked_search_is_exact(block: int, top: int) -> None:
    torch.manual_seed(3)
    features = normalize(torch.randn(257, 24), dim=-1)
    query = normalize(torch.randn(24), dim=0)
    scores, rows = exact_top(features, query, top=top, block=block)
    expected = brute(features, query, top)
    assert rows.tolist() == [row for _, row in expected]
    assert scores.tolist() == pytest.approx([score for score, _ in expected], abs=1e-6)


def test_equal_scores_come_in_order_of_the_index() -> None:
    features = torch.eye(4).repeat(5, 1)  # rows 2, 6, 10, 14, 18 are equal
    for block in (1, 3, 20):
        _, rows = exact_top(features, torch.eye(4)[2], top=7, block=block)
        assert rows.tolist() == [2, 6, 10, 14, 18, 0, 1]


def test_half_precision_index_is_searched_in_single_precision() -> None:
    torch.manual_seed(0)
    features = normalize(torch.randn(100, 16), dim=-1).half()
    query = normalize(torch.randn(16), dim=0)
    _, rows = exact_top(features, query, top=5, block=32)
    assert rows.tolist() == [row for _, row in brute(features, query, 5)]


def test_combine_is_the_normalised_weighted_sum() -> None:
    text, image = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])  # their lengths do not count
    assert combine([text, image], (1.0, 1.0)).tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert combine([text, image], (3.0, 4.0)).tolist() == pytest.approx([0.6, 0.8])
    assert combine([text, image], (1.0, 0.0)).tolist() == pytest.approx([1.0, 0.0])
    with pytest.raises(SearchError, match="nothing is left"):
        combine([text, text], (1.0, -1.0))


def test_query_with_both_uses_both(index: Index, model: VLP) -> None:
    text, image = model.embed_texts("a red ball")[0], model.embed_images(draw(3))[0]
    expected = normalize(2 * text + 0.5 * image, dim=-1)
    assert torch.allclose(Query("a red ball", draw(3), (2.0, 0.5)).feature(model), expected, atol=1e-6)
    assert torch.allclose(Query("a red ball", None, (-1.0, 9.0)).feature(model), text, atol=1e-6)
    hits = index.search("a red ball", draw(3), weights=(2.0, 0.5), top=4)
    assert [hit.score for hit in hits] == pytest.approx([s for s, _ in brute(index.features, expected, 4)], abs=1e-5)
    for empty in (Query(), Query("  ")):
        with pytest.raises(SearchError, match="empty query"):
            empty.feature(model)


def test_index_holds_what_could_be_read(index: Index, model: VLP) -> None:
    assert len(index) == COUNT - 1
    assert sum(index.about.skips.values()) == 1
    assert index.about.weights_hash == model.weights_hash
    assert index.about.model == "../model"
    expected = model.embed_images([draw(number) for number in range(COUNT) if number != 5])
    assert torch.allclose(index.features, expected, atol=1e-5)


def test_a_picture_finds_itself(index: Index) -> None:
    for number in (0, 4, 6, 11):  # around the one that was left out: rows and items must not shift
        hit = index.search(image=draw(number), top=1)[0]
        assert hit.key == f"{number:03d}"
        assert hit.caption == (EVIL if number == 0 else f"picture {number}")
        assert hit.score == pytest.approx(1.0, abs=1e-4)
        shown = Image.open(io.BytesIO(hit.thumbnail)).convert("RGB")
        assert max(shown.size) == 160
        corner = shown.getpixel((158, 90))
        truth = Image.open(io.BytesIO(draw(number))).convert("RGB").getpixel((198, 112))
        assert isinstance(corner, tuple)
        assert isinstance(truth, tuple)
        assert all(abs(a - b) <= 12 for a, b in zip(corner, truth, strict=True))


def test_the_model_is_found_from_the_index(
    index: Index, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()  # "../model" as seen from here is another one
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    opened = Index.open(place / "index")
    assert [hit.key for hit in opened.search("a ball", top=3)] == [hit.key for hit in index.search("a ball", top=3)]


def test_a_model_that_is_gone_is_said(place: Path, model: VLP, tmp_path: Path) -> None:
    made = build_index(model, str(place / "pairs-*.tar"), tmp_path / "i", quiet=True)
    about = json.loads((made.folder / "index.json").read_text())
    (made.folder / "index.json").write_text(json.dumps({**about, "model": "../gone"}))
    with pytest.raises(SearchError, match=r"\.\./gone cannot be loaded .*--model"):
        Index.open(made.folder).search("x")


def test_other_weights_are_refused(index: Index, place: Path) -> None:
    with pytest.raises(SearchError, match=r"weights .*features do not compare.*vlp embed"):
        Index.open(index.folder, model=load(place / "other", device="cpu"))


def test_half_index_and_replacement(place: Path, model: VLP, tmp_path: Path) -> None:
    first = build_index(model, str(place / "pairs-*.tar"), tmp_path / "i", quiet=True, dtype="fp16")
    assert first.features.dtype == torch.float16
    assert len(build_index(model, str(place / "pairs-*.tar"), tmp_path / "i", quiet=True)) == COUNT - 1
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear to me")
    with pytest.raises(SearchError, match="not an index"):
        build_index(model, str(place / "pairs-*.tar"), tmp_path / "mine", quiet=True)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_what_is_no_index_is_said(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"no index at .*vlp embed MODEL DATA --out"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text((index.folder / "index.json").read_text())
    with pytest.raises(SearchError, match=r"not whole: features\.safetensors"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(SearchError, match="not an index of schema"):
        Index.open(tmp_path)
    with pytest.raises(SearchError, match="at least 1"):
        index.search("x", top=0)


def test_what_a_path_means(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").touch()
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    (tmp_path / "pictures" / "deep" / "a.JPG").touch()
    assert as_spec(tmp_path / "shards") == str(tmp_path / "shards")
    assert as_spec(tmp_path / "pictures") == {"name": "folder", "path": str(tmp_path / "pictures")}
    assert as_spec("pairs.csv") == {"name": "csv", "path": "pairs.csv"}
    assert as_spec("a-{000..003}.tar") == "a-{000..003}.tar"


def test_contact_sheet_is_whole_and_escaped(index: Index, tmp_path: Path) -> None:
    hits = index.search(f"words {EVIL}", draw(2), top=5)
    out = contact_sheet(hits, Query(f"words {EVIL}", draw(2)), tmp_path / "deep" / "sheet.html")
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "words &lt;script&gt;" in page
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) == 6  # the query and five hits
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert all(f"{hit.score:.3f}" in page for hit in hits)
    bare = contact_sheet([Hit("k", 0.5, "c", b"")], "words", tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "no picture" in bare


def test_commands(place: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = tmp_path / "index"
    made = run.invoke(app, ["embed", str(place / "model"), str(place / "pairs-*.tar"), "--out", str(out), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["count"] == COUNT - 1

    (tmp_path / "q.png").write_bytes(draw(7))
    found = run.invoke(app, ["search", str(out), "--image", str(tmp_path / "q.png"), "--top", "3", "--json"])
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert len(answer["hits"]) == 3
    assert answer["hits"][0]["key"] == "007"
    assert (out / "search.html").is_file()

    shown = run.invoke(app, ["search", str(out), "a ball", "--top", "2", "--out", str(tmp_path / "s.html")])
    assert shown.exit_code == 0, shown.output
    assert "rank" in shown.stdout
    assert (tmp_path / "s.html").is_file()

    arguments = ["classify", str(tmp_path / "q.png"), "--names", "cat, dog,car", "--model", str(place / "model")]
    classes = run.invoke(app, [*arguments, "--json"])
    assert classes.exit_code == 0, classes.output
    (row,) = json.loads(classes.stdout)
    assert set(row["classes"]) == {"cat", "dog", "car"}
    assert sum(row["classes"].values()) == pytest.approx(1.0)
    table = run.invoke(app, [*arguments, "--templates", "a drawing of {}"])
    assert "probability" in table.stdout


def test_commands_say_what_is_wrong(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    monkeypatch.delenv("VLP_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "out" / "demo" / "checkpoints").mkdir(parents=True)
    missing = run.invoke(app, ["search", str(tmp_path / "none"), "words"])
    assert isinstance(missing.exception, SearchError)
    assert "no index at" in str(missing.exception)
    empty = run.invoke(app, ["search", str(tmp_path)])
    assert empty.exit_code == 2
    assert "--image" in empty.output
    nameless = run.invoke(app, ["classify", "x.png", "--names", "a,b"])
    assert nameless.exit_code == 2
    assert "runs/out/demo" in nameless.output
    (tmp_path / "text.png").write_text("no picture")
    unreadable = run.invoke(app, ["classify", "text.png", "--names", "a,b", "--model", str(place / "model")])
    assert unreadable.exit_code == 1
    assert unreadable.stderr.startswith("text.png: not_image: ")
    assert unreadable.stdout == ""


def test_pictures_beside_a_bad_one_are_classified_and_folders_taken(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(draw(1))
    (tmp_path / "a" / "1.mask.png").write_bytes(draw(2))
    (tmp_path / "b" / "bad.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    how = ["--names", "cat,dog", "--model", str(place / "model"), "--json"]
    images = [str(tmp_path / name) for name in ("none.png", "a", "b", "empty")]
    found = CliRunner().invoke(app, ["classify", *images, *how])
    assert found.exit_code == 1
    assert [row["image"] for row in json.loads(found.stdout)] == [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"]
    masks, none, empty, bad, count = found.stderr.splitlines()
    assert masks.startswith(f"{tmp_path}/a: 1 mask_of_picture (")
    assert "none.png: no such picture (in " in none
    assert empty.endswith("empty: a folder without pictures")
    assert bad.startswith(f"{tmp_path}/b/bad.jpg: not_image: ")
    assert count == "3 of 5 pictures could not be classified"
    table = CliRunner().invoke(app, ["classify", str(tmp_path / "a" / "1.png"), *how[:-1]])
    assert (table.exit_code, table.stderr) == (0, "")
    assert "1.png" in table.stdout


def test_a_table_is_embedded_with_the_captions_it_has(place: Path, model: VLP, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(draw(1))
    (tmp_path / "t.tsv").write_text("filepath\ttitle\n1.png\ta red ball\n")
    (tmp_path / "t.jsonl").write_text('{"filepath": "1.png", "title": "a red ball"}\n')
    for name in ("t.tsv", "t.jsonl"):
        made = build_index(model, tmp_path / name, tmp_path / "index", quiet=True)
        assert [hit.caption for hit in made.search("x", top=1)] == ["a red ball"]
