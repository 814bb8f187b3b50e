"""Class names and keep-lists of the emoji styles and the grocery set, for runs that mix captions with labels.

    python runs/label_lists.py DATA OUT     (DATA holds emoji_styles and grocery_store)

Emoji concepts marked `test` are never trained on; their pictures in every style are one test set, the other
concepts in a style that was never trained on are another.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    concepts = json.loads((data / "emoji_styles/concepts.json").read_text(encoding="utf-8"))
    for split, held_out in (("train", False), ("test", True)):
        chosen = [concept for concept in concepts if concept["test"] is held_out]
        write(out / f"emoji_{split}_keys.txt", [f"{concept['id']:06d}" for concept in chosen])
        write(out / f"emoji_{split}_names.txt", [concept["names"]["en"] for concept in chosen])
    classes = json.loads((data / "grocery_store/classes.json").read_text(encoding="utf-8"))
    names = classes["names"] if isinstance(classes, dict) else [entry["name"] for entry in classes]
    write(out / "grocery_names.txt", [name.replace("-", " ") for name in names])


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)}")


if __name__ == "__main__":
    main()
