from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from vlp.data.words import CaptionTexts, train_from_shards

COLOURS = ["red", "green", "blue", "yellow", "purple"]
SHAPES = ["circle", "square", "triangle", "star", "hexagon"]


@pytest.fixture
def shard(tmp_path: Path) -> str:
    path = tmp_path / "a-000000.tar"
    captions = [f"a {a} {s} beside the {b} {t}" for a in COLOURS for b in COLOURS for s in SHAPES for t in SHAPES]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, caption in enumerate([*captions, " "]):
            for name, content in (("jpg", b"x"), ("json", json.dumps({"caption": caption}).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_all_captions_and_the_reasons_of_the_rest(shard: str) -> None:
    texts = CaptionTexts(shard, fields=["caption"])
    assert len(list(texts)) == 625
    assert texts.skipped == {"empty_caption": 1}
    some = list(CaptionTexts(shard, fields=["caption"], limit=10))
    assert len(some) == 10
    assert some != list(texts)[:10]  # from all over the source


def test_a_tokenizer_from_shards(shard: str, tmp_path: Path) -> None:
    part = train_from_shards(shard, tmp_path / "words.model", vocab_size=288, context=16)
    tokenizer = part.build()
    assert tokenizer.vocab_size == 288
    assert tokenizer.decode(tokenizer.encode(["a red star beside"])[0]) == "a red star beside"
    with pytest.raises(ValueError, match="no_caption"):
        train_from_shards(shard, tmp_path / "other.model", vocab_size=288, fields=["title"])
