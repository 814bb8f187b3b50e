"""Alignments against a loop, the sheet and the page, the command, and what a run knows of its model."""

from __future__ import annotations

import base64
import json
import math
import re

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.eval.colours import jpeg
from vlp import checkpoint, cli, trained
from vlp.adapters.task import Task
from vlp.adapters.token_zeroshot import TokenZeroShot
from vlp.embed import Encoder
from vlp.explain import _grid, align
from vlp.explained import refuse_unwritable
from vlp.losses import LOSSES
from vlp.losses.objective import Objective
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.report import alignment, write_report
from vlp.report.heat import heat
from vlp.report.read import Artefacts
from vlp.report.sheet import draw, unseen
from vlp.token_scores import token_scores

SPECS = [{"name": "infonce"}, {"name": "filip"}]
TEXT = "a photosynthesizing red circle"


def saved_run(folder, losses, change=None):
    """A run folder with one checkpoint of a tiny model and its losses' heads, and that model, changed by `change`."""
    torch.manual_seed(0)
    dual = Model(arch="vlp-nano").build()
    dual.heads.update(Objective([LOSSES.build(spec) for spec in losses]).heads(dual))
    if change is not None:
        change(dual)

    def fill(step):
        pretrained.save(dual, step / "model")
        (step / "config.yaml").write_text("name: x\nlosses:\n" + "".join(f"  - {spec}\n" for spec in losses))

    checkpoint.write(folder / "checkpoints", 3, fill)
    return dual.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "filip"
    saved_run(folder, SPECS)
    return folder


@pytest.fixture(scope="module")
def found(run):
    return align(Encoder(trained.load(run), quiet=True), jpeg("red"), TEXT)


def test_an_alignment_is_what_a_loop_makes_of_the_tokens(run, found):
    dual = trained.load(run)
    with torch.no_grad():
        image, patches = dual.encode_image_tokens(dual.transform(jpeg("red"))[None])
        pooled, tokens, mask = dual.encode_text_tokens(dual.tokenizer(TEXT))
    cosine = [[float(t @ p) for p in patches[0]] for t in tokens[0][mask[0]]]
    said = [word.text for word in found.words]
    assert said == ["<start>", "a", "photosynthesizing", "red", "circle", "<end>"]
    ids = dual.tokenizer.encode([TEXT])[0]
    long = slice(2, len(ids) - 3)  # the tokens of the long word
    assert long.stop - long.start > 1
    word = found.words[2]
    want = [sum(row[p] for row in cosine[long]) / len(cosine[long]) for p in range(16)]
    assert word.map.tolist() == pytest.approx(want, abs=2e-3)
    assert word.score == pytest.approx(sum(max(row) for row in cosine[long]) / len(cosine[long]), abs=2e-3)
    assert found.cosine == pytest.approx(float(image[0] @ pooled[0]), abs=1e-5)
    assert found.phrase.tolist() == pytest.approx((patches[0] @ pooled[0]).tolist(), abs=2e-3)
    to_text = sum(max(row[p] for row in cosine) for p in range(16)) / 16
    assert found.image_to_text == pytest.approx(to_text, abs=2e-3)
    assert found.text_to_image == pytest.approx(sum(map(max, cosine)) / len(cosine), abs=2e-3)
    counts = [word.stop - word.start for word in _spans(dual)]
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    assert found.best.tolist() == [owner[max(range(len(cosine)), key=lambda t: cosine[t][p])] for p in range(16)]
    assert (found.grid, found.reduced) == ((4, 4), None)


def _spans(dual):
    from vlp.text.words import words

    return words(dual.tokenizer, TEXT, dual.tokenizer.encode([TEXT])[0])


@pytest.mark.parametrize(
    ("patches", "size", "grid"),
    [(16, (32, 32), (4, 4)), (8, (32, 64), (2, 4)), (6, (96, 64), (3, 2)), (7, (9, 9), (1, 7))],
)
def test_grids(patches, size, grid):
    assert _grid(patches, size) in (grid, grid[::-1] if size[0] == size[1] else grid)


def test_the_sheet_and_the_page_show_every_word_with_its_scale(found):
    pair, picture = found.to_json(), Image.fromarray(found.picture.permute(1, 2, 0).numpy())
    shown = list(alignment.panels(pair, picture, side=64))
    assert [panel.title for panel in shown] == [
        "the picture", "whole caption", "best word of a patch", "a", "photosynthesizing", "red", "circle"
    ]  # fmt: skip
    assert all(max(panel.picture.size) == 64 for panel in shown)
    assert re.fullmatch(r"-?0\.\d{3} to -?0\.\d{3}", shown[-1].note)
    assert shown[-1].score == f"{found.words[4].score:.3f}"
    sheet = draw(pair, picture, trained="Trained with tokens: filip.")
    assert sheet.width > 5 * 150
    assert len(sheet.getcolors(1 << 20)) > 100
    page = alignment.page(pair, picture, trained="Trained.")
    assert page.count("data:image/jpeg;base64") == 7
    assert "photosynthesizing" in page
    assert alignment.grids(Artefacts("d", None, alignment={"pairs": []})) == ""


def test_heat_is_lightest_where_the_value_is_highest_and_flat_maps_are_dark():
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    drawn = heat(grey, [0.0, 0.1, 0.2, 0.9], (2, 2), side=40).convert("L")
    corners = [drawn.getpixel(at) for at in ((10, 10), (30, 10), (10, 30), (30, 30))]
    assert corners == sorted(corners)
    assert corners[0] < corners[3] - 60
    assert len(heat(grey, [0.3] * 4, (2, 2), side=40).getcolors()) == 1


def test_what_the_font_lacks_is_known():
    assert unseen("red Ä ж") == set()
    assert unseen("红 red") == {"红"}


def explain(*words):
    return CliRunner().invoke(cli.app, ["explain", *map(str, words)], catch_exceptions=False)


def test_the_command_writes_the_sheet_and_says_how_the_model_was_trained(run, tmp_path):
    (tmp_path / "red.jpg").write_bytes(jpeg("red", size=50))
    result = explain(run, tmp_path / "red.jpg", TEXT, "--out", tmp_path / "new" / "sheet.png", "--html")
    assert result.exit_code == 0
    assert "photosynthesizing" in result.output
    assert "Trained with tokens: filip compared patches with words" in result.output.replace("\n", " ")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 800
    assert "filip" in (tmp_path / "new" / "sheet.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"no picture format ends in \"\.txt\""):
        explain(run, tmp_path / "red.jpg", TEXT, "--out", tmp_path / "sheet.txt")
    for ending, name in ((".psd", "PSD"), (".xbm", "XBM"), (".hdf", "HDF5")):  # only read; without colours; no library
        with pytest.raises(ValueError, match=f"Pillow writes no RGB picture as {name}"):
            explain(run, tmp_path / "red.jpg", TEXT, "--out", tmp_path / f"sheet{ending}")
    refuse_unwritable(tmp_path / "sheet.JPG")
    with pytest.raises(ValueError, match="caption is empty"):
        explain(run, tmp_path / "red.jpg", "  ")


def test_a_model_without_token_losses_and_one_without_a_run_say_so(tmp_path):
    (tmp_path / "red.jpg").write_bytes(jpeg("red"))
    saved_run(tmp_path / "clip", SPECS[:1])
    words = [tmp_path / "red.jpg", "红 circle", "--out", tmp_path / "x.png"]
    result = explain(tmp_path / "clip", *words)
    assert "only with infonce" in result.output
    assert "lacks 红" in result.output
    torch.manual_seed(0)
    pretrained.save(Model(arch="vlp-nano").build(), tmp_path / "alone")
    assert trained.losses_of("no/such/place") == ()
    assert "not known" in explain(tmp_path / "alone", *words).output


def test_each_loss_on_tokens_says_what_it_compared():
    """Word maps are what was compared only where patches and words both come from the model as they are."""
    named = [name for name in LOSSES.names() if name != "matryoshka" and LOSSES.resolve(name).needs & trained.TOKENS]
    assert sorted(named) == sorted(trained.COMPARED)
    assert [name for name in named if LOSSES.resolve(name).needs >= trained.TOKENS] == ["filip"]
    for name, said in trained.COMPARED.items():
        assert ("patches with words, as the words' maps do" in said) == (name == "filip")
    cut = LOSSES.build({"name": "matryoshka", "of": "filip", "widths": [8]})
    said = trained.compared((cut, LOSSES.build("infonce"), LOSSES.build("dreamlip")))
    assert said == (trained.COMPARED["filip"], trained.COMPARED["dreamlip"])


@pytest.mark.parametrize(
    ("specs", "scale"),
    [
        ([{"name": "infonce"}], None),
        ([{"name": "filip"}, {"name": "dreamlip"}], None),  # tokens were compared with the model's scale
        ([{"name": "infonce"}, {"name": "filip", "own_scale": True}], 30.0),
        ([{"name": "filip", "temperature": 0.02}], 50.0),
        ([{"name": "wukong", "tokens": 3, "own_scale": True}], 30.0),
        ([{"name": "wukong", "tokens": 3, "temperature": 0.02}], 50.0),
        ([{"name": "infonce"}, {"name": "dreamlip"}], 30.0),
        ([{"name": "infonce"}, {"name": "dreamlip", "temperature": 0.02}], 50.0),
        ([{"name": "matryoshka", "of": {"name": "filip", "temperature": 0.02}, "widths": [8]}], 50.0),
    ],
)
def test_tokens_keep_the_scale_of_their_loss(tmp_path, specs, scale):
    def learned(dual):
        for name in dual.heads:
            if name.endswith("_scale") or name == "dreamlip":
                for parameter in dual.heads[name].parameters():
                    parameter.data.fill_(math.log(30.0))

    dual = saved_run(tmp_path / "run", specs, change=learned)
    dual.set_needs(Objective([LOSSES.build(spec) for spec in specs]).needs)
    after = Encoder(trained.load(tmp_path / "run"), quiet=True)
    for encoder in (Encoder(dual, quiet=True), after):  # in the run, and when it is over
        assert encoder.token_scale == pytest.approx(encoder.scale if scale is None else scale, rel=1e-5)
        assert encoder.scale == pytest.approx(1 / 0.07)
    task = Task(("red", "blue"), ("{}",))
    tokens, pooled, half = (TokenZeroShot(blend=blend).fit(after, task) for blend in (0.0, 1.0, 0.25))
    pictures = after.image_tokens([jpeg("red"), jpeg("blue")])
    prompts = after.text_tokens(["red", "blue"])
    late = token_scores(pictures.tokens, prompts.tokens, prompts.mask, want="rows")
    torch.testing.assert_close(tokens(pictures), after.token_scale * late, atol=1e-4, rtol=0)
    torch.testing.assert_close(half(pictures), 0.75 * tokens(pictures) + 0.25 * pooled(pictures), atol=1e-4, rtol=0)


def test_a_wukong_run_comes_back_with_its_reducer(tmp_path):
    dual = saved_run(tmp_path / "w", [{"name": "wukong", "tokens": 3}])
    again = trained.load(tmp_path / "w")
    assert trained.knows_tokens(again)
    assert not trained.knows_tokens(pretrained.load(tmp_path / "w"))
    (tmp_path / "red.jpg").write_bytes(jpeg("red"))
    pictures = [str(tmp_path / "red.jpg")]
    want, got = (Encoder(d, quiet=True).image_tokens(pictures).tokens for d in (dual, again))
    assert torch.equal(want, got)
    assert got.shape[1] == 3
    found = align(Encoder(again, quiet=True), jpeg("red"), TEXT)
    assert (found.reduced, len(found.phrase)) == (3, 16)
    assert "over 3 tokens made of the patches" in alignment.summary(found.to_json())


def test_the_report_draws_the_stored_pairs_and_tells_the_heads_apart(run, found, tmp_path):
    folder = tmp_path / "run"
    artefacts = folder / "eval" / "d"
    artefacts.mkdir(parents=True)
    pair = {"image": 0, "caption": 0, "picture": base64.b64encode(jpeg("red")).decode(), **found.to_json()}
    (artefacts / "alignment.json").write_text(json.dumps({"schema": 1, "pairs": [pair, pair]}))
    (artefacts / "items.json").write_text(json.dumps({"dataset": "scenes"}))
    query = {"caption": 0, "text": TEXT, "image": 0, "rank": 1, "found": [0], "scores": [0.5], "correct": [True]}
    for name in ("retrieval", "retrieval_tokens"):
        shown = {"num_images": 1, "num_texts": 1, "text_to_image": [query], "image_to_text": []}
        (artefacts / f"{name}.json").write_text(json.dumps(shown))
    record = {"dataset": "scenes", "task": "zeroshot_retrieval", "metrics": {"image_retrieval_recall@1": 0.5}}
    records = [record, {**record, "head": "global"}, {**record, "head": "tokens"}]
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    page = write_report(folder).read_text(encoding="utf-8")
    for said in ("What words look at: scenes", "photosynthesizing", "What queries find: scenes, by tokens"):
        assert said in page
    assert page.count('class="tile"') == 2  # the older record has no head, but is of the pooled one
    assert "zero-shot retrieval, by tokens" in page
    assert len(page) < 300_000
