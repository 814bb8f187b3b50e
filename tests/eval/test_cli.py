"""`python -m eval`: a saved model, a suite, records on disk; faults as messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from eval.__main__ import app, default_out
from eval.suite import load_suite
from tests.eval.colours import colour_shard
from vlp.models.model import Model
from vlp.models.pretrained import save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "nano"
    save(Model(arch="vlp-nano").build(), folder)
    return folder


def test_measures_a_saved_model_and_the_cache_repeats_it(checkpoint, tmp_path):
    colour_shard(tmp_path / "data" / "one.tar", per_colour=4)
    suite = tmp_path / "s.yaml"
    lines = [f"  - {{name: {name}, dataset: d, data: one.tar}}" for name in ("retrieval", "health")]
    suite.write_text("\n".join(["name: s", "data: none", "benchmarks:", *lines]))
    words = [str(checkpoint), str(suite), f"data={tmp_path / 'data'}", "--set", "benchmarks.0.k=[1, 3]"]
    words += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    for more in ([], [], ["--again"]):
        result = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        assert result.exit_code == 0
        assert (tmp_path / "out" / "report.html").is_file()
    first, health, again, _ = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert first["model"] == "nano"
    assert "image_retrieval_recall@3" in first["metrics"]
    assert len(first["weights_hash"]) >= 16
    assert again["metrics"] == first["metrics"]
    assert health["metrics"]["rankme_image"] >= 1
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_other_pixels_or_another_precision_are_measured_anew(checkpoint, tmp_path):
    colour_shard(tmp_path / "data" / "one.tar", per_colour=4)
    (tmp_path / "s.yaml").write_text("name: s\nbenchmarks: [{name: health, dataset: d, data: data/one.tar}]")
    words = [str(checkpoint), str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--no-cache", "--device", "cpu"]
    for more in ([], ["--resizer", "torch"], ["--resizer", "pillow"], ["--precision", "bf16"]):
        assert CliRunner().invoke(app, [*words, *more], catch_exceptions=False).exit_code == 0
    rows = list(map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()))
    assert len({row["settings_hash"] for row in rows}) == len(rows) == 3
    with pytest.raises(ValueError, match='--resizer "pilow"; known: torch, pillow'):
        CliRunner().invoke(app, [*words, "--resizer", "pilow"], catch_exceptions=False)


def test_records_go_into_the_run_they_measure(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert default_out(str(tmp_path), "x") == tmp_path
    assert default_out("ViT-B-32", "ViT-B-32") == Path("runs/out/eval/ViT-B-32")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_of_the_repository_loads(path):
    suite = load_suite(path)
    assert suite.benchmarks
    assert load_suite(path, ["data=elsewhere"]).data == "elsewhere"
