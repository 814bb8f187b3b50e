"""Settings that name files are other settings once the files say something else."""

from __future__ import annotations

import os

from vlp.tune.content import content_hashes


def changed(file, text):
    """Written anew, and later than before also where the clock of the disk is coarse."""
    file.write_text(text)
    later = file.stat().st_mtime_ns + 1_000_000
    os.utime(file, ns=(later, later))


def test_a_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "names.json"
    file.write_text("[1]")
    settings = {"name": "x", "of": [{"file": str(file), "gone": "nowhere.json"}]}
    before = content_hashes(settings)
    assert list(before) == [str(file)]
    changed(file, "[2]")
    assert content_hashes(settings) != before


def test_a_fitted_adapter_or_a_run_that_is_written_anew_is_another(tmp_path):
    for inside in ("adapter", "run/checkpoints/step-1/model"):
        folder = tmp_path / inside
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_text("one")
        settings = {"folder": str(tmp_path / inside.split("/")[0])}
        before = content_hashes(settings)
        assert list(before) == [str(folder / "weights.safetensors")]
        changed(folder / "weights.safetensors", "two")
        assert content_hashes(settings) != before


def test_a_folder_without_weights_is_only_a_word(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    assert content_hashes({"words": str(tmp_path), "number": 1, "nothing": None}) == {}
