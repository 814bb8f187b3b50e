"""The keys of the samples whose JSON field has a value, one a line: a keep-list for `keep` of a source.

Example: python runs/keep_by_field.py "data/openstax_figures/train-*.tar" kind photo runs/out/lists/photo-train.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlp.data.fields import Fields
from vlp.data.sources import open_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("field", help="dotted path into the JSON")
    parser.add_argument("value")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    records = open_records(args.shards)
    found = [
        records.name(i)[1]
        for i in range(len(records))
        if str(Fields(records.read(i, ("json",))).in_json(args.field)) == args.value
    ]
    if not found:
        raise SystemExit(f'none of {len(records)} samples of {args.shards} has "{args.value}" in {args.field}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(f"{key}\n" for key in found), encoding="utf-8")
    print(f"{args.out}: {len(found)} of {len(records)} samples")


if __name__ == "__main__":
    main()
