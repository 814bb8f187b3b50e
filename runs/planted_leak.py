"""A planted leak: test pictures coded again or cut out are put among the training shards, then looked for.

    python runs/planted_leak.py 'DATA/train-*.tar' 'DATA/test-*.tar' runs/out/planted [--count 200] [--areas 0.8,0.7]

Arms: `recoded` (JPEG or WebP, quality 30 to 90, half to one and a half times the size) and `cropped-AREA` (a window of
that part of the area at any place, its sides' ratio changed by up to 18 %, then coded as above). Found: the planted
sample is in leaks.csv together with the very picture it was made of. A test picture that was not planted and is
reported may be a false alarm or a real copy: look at the page. Pictures of `--unrelated` sets have no copies among the
training shards, so all that is reported of them is false.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import time
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.contamination import Contamination, wilson
from data_tools.neighbours import ShardPictures
from data_tools.shards import find_shards
from data_tools.write import Record, ShardWriter
from vlp.data.fields import image_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("out", type=Path)
    parser.add_argument("--unrelated", nargs="*", default=[], help="evaluation sets of another origin: NAME=SHARDS")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--areas", default="0.8")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    arms = ["recoded", *(f"cropped-{area}" for area in args.areas.split(","))]
    rng = np.random.default_rng(args.seed)
    clean = {sample.key: image_bytes(sample) for shard in find_shards([args.test]) for sample in ShardPictures(shard)}
    chosen = sorted(rng.choice(sorted(clean), size=min(args.count, len(clean)), replace=False).tolist())
    planted = [plant(args.out / f"planted-{arm}.tar", arm, {key: clean[key] for key in chosen}, rng) for arm in arms]
    began, spent = time.perf_counter(), time.process_time()
    part = Contamination(against=(f"test={args.test}", *args.unrelated), shown=400)
    result = part.run([args.train, *map(str, planted)], args.out / "leaks")
    cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    figures = score(args.out / "leaks/leaks.csv", arms, chosen, len(clean))
    figures["unrelated"] = {
        found["name"]: rate(found["leaked"], found["pictures"]) for found in result["evaluations"][1:]
    }
    pictures = result["train"]["samples"] + sum(found["pictures"] for found in result["evaluations"])
    figures |= {name: round(value, 1) for name, value in cost.items()}
    figures |= {"pictures": pictures, "cpu_ms_a_picture": round(1000 * cost["cpu_seconds"] / pictures, 2)}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def plant(path: Path, arm: str, pictures: dict[str, bytes], rng: np.random.Generator) -> Path:
    """A shard of changed pictures; their keys name what they were made of."""
    with ShardWriter(path) as writer:
        for key, data in pictures.items():
            with Image.open(io.BytesIO(data)) as image:
                picture = image.convert("RGB")
            if arm != "recoded":
                picture = cut(picture, float(arm.removeprefix("cropped-")), rng)
            extension, content = recode(picture, rng)
            writer.write(Record(key, {extension: content}))
    return path


def recode(picture: Image.Image, rng: np.random.Generator) -> tuple[str, bytes]:
    """Another size, another quality, and one time in three another format."""
    scale, quality = float(rng.choice([0.5, 0.75, 1.0, 1.5])), int(rng.choice([30, 50, 75, 90]))
    filters = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
    resized = picture.resize([max(2, round(side * scale)) for side in picture.size], filters[rng.integers(3)])
    extension = str(rng.choice(["jpg", "jpg", "webp"]))
    data = io.BytesIO()
    resized.save(data, "JPEG" if extension == "jpg" else "WEBP", quality=quality)
    return extension, data.getvalue()


def cut(picture: Image.Image, area: float, rng: np.random.Generator) -> Image.Image:
    """A window of that part of the area."""
    width, height = picture.size
    across = min(1.0, math.sqrt(area * math.exp(rng.uniform(-math.log(1.18), math.log(1.18)))))
    down = min(1.0, area / across)
    size = round(width * max(across, area)), round(height * down)
    left, top = int(rng.integers(0, width - size[0] + 1)), int(rng.integers(0, height - size[1] + 1))
    return picture.crop((left, top, left + size[0], top + size[1]))


def score(leaks: Path, arms: list[str], chosen: list[str], pictures: int) -> dict[str, object]:
    """Share found in each arm and share of false alarms, with their intervals."""
    with leaks.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["evaluation"] == "test"]
    figures: dict[str, object] = {"planted": len(chosen)}
    for arm in arms:
        name = f"planted-{arm}.tar"
        found = {
            row["eval_key"]
            for row in rows
            if Path(row["train_shard"]).name == name and row["train_key"] == row["eval_key"]
        }
        figures[arm] = rate(len(found), len(chosen))
    clean = {row["eval_key"] for row in rows} - set(chosen)
    return {**figures, "reported_of_clean": rate(len(clean), pictures - len(chosen)), "clean_keys": sorted(clean)}


def rate(hits: int, count: int) -> dict[str, float]:
    low, high = wilson(hits, count)
    return {"hits": hits, "of": count, "share": round(hits / count, 4), "low": round(low, 4), "high": round(high, 4)}


if __name__ == "__main__":
    main()
