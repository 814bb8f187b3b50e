"""Class files, trees of names, and keep-lists of the concepts that the backbone of the adapters may see and may not.

    python runs/backbone_lists.py DATA OUT     (DATA holds emoji_styles and grocery_store)

Emojis: the concepts marked `test` are held out. Groceries: base classes are the first half of the labels, rounded up
(base-to-new split of 2203.05557); only theirs may be seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vlp.data.fields import Fields
from vlp.data.sources import open_records


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    concepts = json.loads((data / "emoji_styles/concepts.json").read_text(encoding="utf-8"))
    for name, held_out in (("seen", False), ("held_out", True)):
        chosen = [concept for concept in concepts if concept["test"] is held_out]
        write(out / f"emoji_{name}_keys.txt", [f"{concept['id']:06d}" for concept in chosen])
    classes = json.loads((data / "grocery_store/classes.json").read_text(encoding="utf-8"))
    write(out / "grocery_names.txt", [named(entry) for entry in classes])
    write(out / "grocery_descriptions.txt", [" ".join(entry["descr"].split()) for entry in classes])
    coarse = {entry["coarse_id"]: entry["coarse"].replace("-", " ") for entry in classes}
    write(out / "grocery_coarse.txt", [coarse[index] for index in sorted(coarse)])
    write_json(
        out / "grocery_descriptions.json", {named(entry): [" ".join(entry["descr"].split())] for entry in classes}
    )
    write_json(out / "names_tree.json", grocery_tree(classes) | emoji_tree(concepts))
    base = (len(classes) + 1) // 2
    records = open_records(str(data / "grocery_store/train-*.tar"))
    labels = [int(Fields(records.read(row, ("json",))).in_json("label")) for row in range(len(records))]
    write(out / "grocery_base_keys.txt", [records.name(row)[1] for row, label in enumerate(labels) if label < base])
    for what in ("group", "subgroup"):  # of which something may be seen: of the others nothing could be learned
        seen = {concept[what] for concept in concepts if not concept["test"]}
        write(out / f"emoji_{what}s.txt", sorted(seen))


def named(entry: dict) -> str:
    return entry["name"].replace("-", " ")


def grocery_tree(classes: list[dict]) -> dict[str, list[str]]:
    """Path of each fine class; one that is called as its coarse class stands in its place."""
    upper = {named(entry): entry["coarse"].replace("-", " ") for entry in classes}
    return {name: ["things", "groceries", *([coarse] if coarse != name else [])] for name, coarse in upper.items()}


def emoji_tree(concepts: list[dict]) -> dict[str, list[str]]:
    """Path of each subgroup and of each concept that may be seen, but three that are called as some subgroup."""
    tree = {concept["subgroup"]: ["things", "emojis", concept["group"]] for concept in concepts}
    seen = [concept for concept in concepts if not concept["test"] and concept["names"]["en"] not in tree]
    return tree | {one["names"]["en"]: ["things", "emojis", one["group"], one["subgroup"]] for one in seen}


def write_json(path: Path, found: dict) -> None:
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(found)}")


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)}")


if __name__ == "__main__":
    main()
