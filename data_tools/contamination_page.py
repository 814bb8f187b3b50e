"""The page of `contamination`: shares of the evaluation sets, and pairs side by side, to be looked at by a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.contamination import Report
from data_tools.contamination_tables import ordered
from data_tools.leaks import Leak, Place
from data_tools.neighbours import ShardPictures
from vlp.data.decode import Limits, decode
from vlp.data.fields import image_bytes
from vlp.data.schema import write_atomic
from vlp.report.page import DASH, Html, document, figure, section, table, tag
from vlp.report.thumbnail import embedded, thumbnail
from vlp.types import BadSampleError

SIDE, GAP = 180, 8
RED = (214, 40, 40)
NOTE = (
    "Left the evaluation picture, right the training picture; a red frame is where the other one lies. The least sure "
    "pairs come first. detail: correlation of the aligned gradients; worst: largest difference in one of 12 x 12 "
    "blocks, by its contrast; colour: largest difference of Cb or Cr in levels."
)


def write_page(report: Report, result: Mapping[str, Any], path: Path, *, shown: int, limits: Limits) -> None:
    """Writes one HTML file with everything in it: `shown` pairs of each evaluation set, then the nearest misses."""
    chosen = {
        found.name: _least_sure(leak for leak in report.leaks if leak.test.side == found.name)[:shown]
        for found in report.evaluations
    }
    misses = report.misses[:shown]
    pictures = _read([leak for leaks in (*chosen.values(), misses) for leak in leaks], limits)
    parts = [
        section(f"{name}: {len(leaks)} of {result['pairs']} pairs", _sheet(leaks, pictures), note=NOTE)
        for name, leaks in chosen.items()
        if leaks
    ]
    near = "Pairs that break one of the limits: not counted, not dropped. Are there leaks among them?"
    parts.append(section("Near misses", _sheet(misses, pictures) if misses else None, note=near))
    head = tag("header", tag("h1", "Contamination"), tag("p", _counts(result), class_="sub"))
    write_atomic(path, document("Contamination", head, _table(result), *parts).encode())


def _least_sure(leaks: Iterable[Leak]) -> list[Leak]:
    return ordered(leaks)[::-1]


def _counts(result: Mapping[str, Any]) -> str:
    train = result["train"]
    skipped = ", ".join(f"{count} {reason}" for reason, count in train["skipped"].items()) or "none"
    said = (
        f"{figure(train['samples'])} training samples in {train['shards']} shards, {train['dropped']} to drop; "
        f"not looked at: {skipped}; {train['flat']} of nearly one colour, by equal pixels only."
    )
    more = f" {result['not_compared']} near pairs were not compared: nearer ones came first."
    return said + (more if result["not_compared"] else "")


def _table(result: Mapping[str, Any]) -> Html:
    kinds = list(result["evaluations"][0]["kinds"])
    head = ["evaluation set", "pictures", "not read", "flat", "leaked", "share", "95 %", *kinds, "same caption"]
    rows = []
    for found in result["evaluations"]:
        share, low, high = (
            DASH if found[name] is None else f"{100 * found[name]:.2f}" for name in ("share", "low", "high")
        )
        counts = [found["pictures"], sum(found["skipped"].values()), found["flat"], found["leaked"]]
        ends = f"{low} to {high} %"
        rows.append([found["name"], *counts, f"{share} %", ends, *found["kinds"].values(), found["same_caption"]])
    return table(head, rows, numeric=range(1, len(head)))


def _sheet(leaks: Sequence[Leak], pictures: Mapping[Place, Any]) -> Html:
    return tag("div", *(_pair(leak, pictures) for leak in leaks), class_="charts two")


def _pair(leak: Leak, pictures: Mapping[Place, Any]) -> Html:
    match = leak.match
    jpeg = thumbnail(_beside(leak, pictures), 2 * SIDE + GAP)
    words = f"{match.kind}, detail {match.score:.2f}, worst {match.worst:.2f}, colour {match.colour:.0f}"
    names = f"{leak.test.shard.name}:{leak.test.key} {DASH} {leak.train.shard.name}:{leak.train.key}"
    marks = ", ".join(
        word for word, there in (("same file", leak.same_file), ("same caption", leak.same_caption)) if there
    )
    caption = tag("figcaption", words, tag("span", f" {marks}" if marks else ""), tag("br"), tag("span", names))
    return tag("figure", caption, embedded(jpeg, alt=names, least=SIDE) if jpeg else None)


def _beside(leak: Leak, pictures: Mapping[Place, Any]) -> Any:
    """Both pictures as one."""
    from PIL import Image, ImageDraw

    both = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    framed = {"train": leak.test, "evaluation": leak.train}.get(leak.match.inside)
    for number, place in enumerate((leak.test, leak.train)):
        picture = pictures[place].copy()
        scale = SIDE / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
        if place == framed:
            width, height = (side - 1 for side in picture.size)
            left, top, right, bottom = leak.match.box
            frame = (left * width, top * height, right * width, bottom * height)
            ImageDraw.Draw(picture).rectangle(frame, outline=RED, width=2)
        both.paste(picture, (number * (SIDE + GAP), 0))
    return both


def _read(leaks: Iterable[Leak], limits: Limits) -> dict[Place, Any]:
    """The pictures of some leaks; one that is no longer as it was looked at is gray."""
    from PIL import Image

    wanted = {place for leak in leaks for place in (leak.test, leak.train)}
    found: dict[Place, Any] = dict.fromkeys(wanted, Image.new("RGB", (SIDE, SIDE), "gray"))
    for shard in sorted({place.shard for place in wanted}):
        pictures = ShardPictures(shard)
        numbers = {key: number for number, key in enumerate(pictures.keys)}
        for place in (place for place in wanted if place.shard == shard and place.key in numbers):
            try:
                pixels = decode(image_bytes(pictures[numbers[place.key]]), limits)
            except BadSampleError:
                continue
            found[place] = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return found
