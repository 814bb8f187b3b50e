"""Bad samples, one by one and 137 among 10,000: each is counted under one reason, with its shard and key."""

from __future__ import annotations

import io
import json
import random
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools import TOOLS
from tests.data.tars import Letters, describe, write_tar
from tests.faults.damage import SAMPLE_FAULTS, SampleFault, flipped
from tests.shards import picture
from vlp.data import Data, Feed
from vlp.data.decode import decode
from vlp.data.reasons import REMEDIES
from vlp.data.transforms import Preprocess
from vlp.guards import refuse_bad_data
from vlp.log import SkipLedger, read_lines
from vlp.text.captions import CLEANERS, main_script
from vlp.text.clip_bpe import ClipBPE

ROWS = {fault.row for fault in SAMPLE_FAULTS} | {12, 21, 22, 24, 30}
BOMBS = (23, 28, 29, 32)
SKIPPED = [fault for fault in SAMPLE_FAULTS if fault.reason]


def feed(source: Any, **settings: Any) -> Feed:
    source = {"name": "shards", "urls": str(source)} if isinstance(source, Path) else source
    given = {"workers": 0, "batch_size": 4, "augment": None, **settings}
    data = Data.model_validate({"sources": [source], **given})
    return Feed(data, tokenizer=Letters(), preprocess=Preprocess(size=16), seed=0)


def members_of(number: int, fault: SampleFault | None = None) -> list[tuple[str, bytes]]:
    jpg, caption = picture(number % 50)
    members = {"jpg": jpg, "json": json.dumps({"caption": f"{caption} of {number}"}).encode()}
    changed = {**members, **(fault.members if fault else {})}
    return [(f"{number:06d}.{end}", raw) for end, raw in changed.items() if raw is not None]


def verify(folder: Path, out: Path | None = None) -> dict[str, Any]:
    return TOOLS.build({"name": "verify", "deep": True}).run([str(folder)], out)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fault", SAMPLE_FAULTS, ids=lambda fault: fault.name)
def test_a_bad_sample(fault: SampleFault, tmp_path: Path) -> None:
    for name, bad in (("good", None), ("bad", fault)):
        write_tar(tmp_path / name / "0.tar", [m for i in range(8) for m in members_of(i, bad if i == 3 else None)])
    good, it = feed(tmp_path / "good"), feed(tmp_path / "bad")
    skips, notes = [], Counter[str]()
    for step in (0, 1):
        want, found = good.batch(step), it.batch(step)
        assert found.keys == want.keys, "the order does not shift"
        others = torch.tensor([key != "0.tar:000003" for key in found.keys])
        assert torch.equal(found.image[others], want.image[others])
        assert found.valid[others].all()
        assert found.valid[~others].all() or fault.reason
        skips += found.skips
        notes.update(found.notes)
    assert [(skip.reason, skip.shard, skip.key) for skip in skips] == (
        [(fault.reason, "0.tar", "000003")] if fault.reason else []
    )
    assert all(skip.detail for skip in skips)
    assert notes == Counter({fault.note: 1} if fault.note else {})
    found = verify(tmp_path / "bad", tmp_path / "out")
    said = [line for line in read_lines(tmp_path / "out" / "findings.jsonl") if line["reason"] != "no_manifest"]
    expected = fault.reason or fault.verified
    assert [(line["reason"], line["key"]) for line in said] == ([(expected, "000003")] if expected else [])
    assert set(found["reasons"]) <= REMEDIES.keys()
    assert found["readable"] == 8


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fault", [f for f in SAMPLE_FAULTS if f.row in BOMBS], ids=lambda fault: fault.name)
def test_a_bomb_takes_less_than_a_second_and_half_a_gigabyte(fault: SampleFault, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", members_of(3, fault))
    it = feed(tmp_path, batch_size=1)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    texts = it.slot_captions(0)[0]
    for clean in CLEANERS.values():
        [clean(text) for text in texts]
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB


def test_flipped_bytes_are_another_picture_and_only_the_hash_knows(tmp_path: Path) -> None:
    good = picture(1)[0]
    assert not torch.equal(decode(flipped(good)), decode(good))
    path = write_tar(tmp_path / "0.tar", [m for i in range(4) for m in members_of(i)])
    describe(tmp_path)
    assert verify(tmp_path)["ok"]
    path.write_bytes(path.read_bytes().replace(good, flipped(good)))
    result = verify(tmp_path)
    assert result["reasons"] == {"wrong_sha256": 1}
    assert not result["ok"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_137_bad_samples_of_10000_are_counted_to_the_last(tmp_path: Path) -> None:
    rng = random.Random(6)
    kinds = [fault for fault in SKIPPED if sum(len(raw or b"") for raw in fault.members.values()) < 10_000]
    bad = {number: rng.choice(kinds) for number in rng.sample(range(10_000), 137)}
    for shard in range(7):  # of unequal sizes
        numbers = range(shard * 1500, min((shard + 1) * 1500, 10_000))
        write_tar(tmp_path / f"{shard}.tar", [m for i in numbers for m in members_of(i, bad.get(i))])
    describe(tmp_path)
    planted = {(fault.reason, f"{number // 1500}.tar", f"{number:06d}") for number, fault in bad.items()}
    reasons = Counter(reason for reason, _, _ in planted)
    assert len(reasons) >= 9
    assert len(planted) == 137

    it, ledger, seen = feed(tmp_path, batch_size=250, workers=2), SkipLedger(tmp_path / "skips.jsonl"), 0
    for step, batch in enumerate(it.batches(0, round(it.steps_per_epoch))):
        ledger.add(batch.skips, step=step, samples=len(batch))
        seen += int(batch.valid.sum())
        told = {f"{skip.shard}:{skip.key}" for skip in batch.skips}
        assert told == {key for key, valid in zip(batch.keys, batch.valid.tolist()) if key and not valid}
    ledger.close()
    lines = list(read_lines(tmp_path / "skips.jsonl"))
    assert len(lines) == 137
    assert {(line["reason"], line["shard"], line["key"]) for line in lines} == planted
    assert ledger.counts == reasons
    assert seen == 10_000 - 137

    result = verify(tmp_path, tmp_path / "out")
    found = list(read_lines(tmp_path / "out" / "findings.jsonl"))
    assert {(line["reason"], Path(line["shard"]).name, line["key"]) for line in found} == planted
    assert result["reasons"] == reasons
    assert (result["manifest"], result["readable"], result["missing"]) == (10_000, 10_000, 0)


def test_when_all_samples_are_bad_the_run_stops_and_says_why(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [m for i in range(8) for m in members_of(i, SKIPPED[i % 2])])
    batch = feed(tmp_path, batch_size=8).batch(0)
    assert not batch.valid.any()
    ledger = SkipLedger(None)
    ledger.add(batch.skips, step=0, samples=8)
    with pytest.raises(RuntimeError, match=r"none of 8 samples could be used \(no_.* 4, no_.* 4\); see .*skips.jsonl"):
        refuse_bad_data(ledger, limit=0.01, folder=tmp_path)


def test_a_key_that_is_no_text_reaches_the_ledger_and_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_tools.tell import tell_verify

    write_tar(tmp_path / "0.tar", [("\udcff\x1b[31m[/b].jpg", b"no"), ("\udcff\x1b[31m[/b].txt", b"a cat")])
    ledger = SkipLedger(tmp_path / "skips.jsonl")
    ledger.add(feed(tmp_path, batch_size=1).batch(0).skips, step=0, samples=1)
    ledger.close()
    (line,) = read_lines(tmp_path / "skips.jsonl")
    assert (line["reason"], line["key"]) == ("not_image", "\udcff\x1b[31m[/b]")
    tell_verify(verify(tmp_path / "0.tar"))
    said = capsys.readouterr().out
    assert r"\udcff\x1b[31m[/b]: 2 bytes" in said
    assert "\x1b[31m" not in said
    assert f"not_image: {REMEDIES['not_image']}" in said


TEXTS = {  # text -> what the model reads of it (cleaning apart), and its script
    "eine Kätzchen\u0000 mit NUL": ("eine Kätzchen mit NUL", "Latin"),
    "half \ud83d a pair": ("half \ufffd a pair", "Latin"),
    "Cafe\u0301": ("Café", "Latin"),
    "\u202eabc\u202c bidi": ("abc bidi", "Latin"),
    "Z\u0301\u0302\u0303\u0304\u0305algo" * 20: (None, "Latin"),
    "一只猫坐在垫子上。": ("一只猫坐在垫子上。", "Han"),
    "قطة تجلس": ("قطة تجلس", "Arabic"),
    "🐈‍⬛ on a 🛋️": ("🐈‍⬛ on a 🛋️", "Latin"),
    "บนเสื่อ": ("บนเสื่อ", "Thai"),
}


def test_texts_of_every_script_survive(tmp_path: Path) -> None:
    members = []
    for number, text in enumerate(TEXTS):
        members += [
            (f"{number:06d}.jpg", picture(number)[0]),
            (f"{number:06d}.json", json.dumps({"caption": text}).encode()),
        ]
    write_tar(tmp_path / "0.tar", members)
    it = feed(tmp_path, batch_size=len(TEXTS), same_caption_same_label=True)
    batch, captions = it.batch(0), it.slot_captions(0)
    assert batch.skips == ()
    tokenizer = ClipBPE().build()
    for key, (caption,) in zip(batch.keys, captions):
        text, (wanted, script) = list(TEXTS.items())[int(key[-6:])]
        cleaned = CLEANERS["whitespace"](caption)
        assert cleaned.replace("\u202e", "").replace("\u202c", "") == wanted or wanted is None, ascii(text)
        assert main_script(cleaned) == script
        assert 2 < len(tokenizer.encode([caption])[0]) <= tokenizer.context


def test_tables_lose_no_row_and_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i)[0])
    texts = ["a cat", "NA", "null", "None", "nan", "", 'a 5" pipe', "x, y"]
    rows = "".join(f"{i}.jpg\t{text}\n" for i, text in enumerate(texts))
    (tmp_path / "t.tsv").write_text(f"image\tcaption\n{rows}")
    batch_of = {"batch_size": 8}
    it = feed({"name": "csv", "path": str(tmp_path / "t.tsv")}, **batch_of)
    assert it.num_samples == 8
    skips = it.batch(0).skips
    assert [(skip.reason, skip.key) for skip in skips] == [("empty_caption", "00000005")]
    assert sorted(text for (text,) in filter(None, it.slot_captions(0))) == sorted(filter(None, texts))
    (tmp_path / "t.csv").write_text('image,caption\n0.jpg,a cat\n1.jpg,"a dog\n2.jpg,a cow"\n3.jpg,a hen\n')
    records = feed({"name": "csv", "path": str(tmp_path / "t.csv")}).plan.records[0]
    assert (len(records), records.notes) == (3, {"multiline_row": 1})  # type: ignore[arg-type]
    assert "t.csv: 1 rows go over several lines (ending in lines 4)" in caplog.text
    (tmp_path / "t.jsonl").write_text('{"image": "0.jpg"}\n{"image": "1.jpg", "caption": "a dog"}\n')
    skips = feed({"name": "csv", "path": str(tmp_path / "t.jsonl")}, batch_size=2).batch(0).skips
    assert [(skip.reason, skip.key) for skip in skips] == [("no_caption", "00000000")], "not both"


def test_the_share_of_captions_that_the_context_cuts_is_told(tmp_path: Path) -> None:
    members = [*members_of(0), *members_of(1)]
    members += [("000002.jpg", picture(2)[0]), ("000002.txt", b"word " * 200)]
    write_tar(tmp_path / "0.tar", members)
    told = TOOLS.build({"name": "stats"}).run([tmp_path])["captions"]
    assert (told["cut_at_context"], told["total"]) == (1, 3)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


RED, GREEN = Image.new("RGB", (32, 16), "red"), Image.new("RGB", (32, 16), (0, 255, 0))
CLEAR = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = {
    "16-bit gray": (encoded(Image.fromarray(np.full((8, 8), 30_000, np.uint16)), "PNG"), [117, 117, 117]),
    "16-bit gray, white": (encoded(Image.fromarray(np.full((8, 8), 65_535, np.uint16)), "PNG"), [255, 255, 255]),
    "palette": (encoded(RED.convert("P"), "PNG"), [255, 0, 0]),
    "palette with transparency": (encoded(CLEAR.quantize(4), "PNG"), [255, 0, 0]),
    "alpha is dropped": (encoded(CLEAR, "PNG"), [255, 0, 0]),
    "gray with alpha": (encoded(Image.new("LA", (8, 8), (100, 9)), "PNG"), [100, 100, 100]),
    "one bit": (encoded(Image.new("1", (8, 8), 1), "PNG"), [255, 255, 255]),
    "CMYK JPEG": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), [254, 0, 0]),
    "animated GIF": (encoded(RED, "GIF", save_all=True, append_images=[GREEN]), [255, 0, 0]),
    "animated WebP": (encoded(RED, "WEBP", save_all=True, append_images=[GREEN], lossless=True), [255, 0, 0]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_unusual_pictures_have_the_colours_they_should(name: str) -> None:
    data, wanted = PICTURES[name]
    mean = decode(data).float().mean(dim=(1, 2))
    assert (mean - torch.tensor(wanted)).abs().max() < 2, mean.tolist()


def test_exif_rotation_is_applied_only_when_asked() -> None:
    data = encoded(RED, "JPEG", exif=EXIF)
    assert decode(data).shape == (3, 16, 32)
    assert decode(data, exif=True).shape == (3, 32, 16)
