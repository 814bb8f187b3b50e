"""One set of a file of `vlp tune` as a file of its own, for runs that adapt to each set alone; prints the set's name.

Example: python runs/one_set.py configs/tune/adapters.yaml 0 OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml


def main() -> None:
    given = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    one = given["sets"][int(sys.argv[2])]
    text = yaml.safe_dump({**given, "name": one["dataset"], "sets": [one]}, sort_keys=False)
    (Path(sys.argv[3]) / f"{one['dataset']}.yaml").write_text(text, encoding="utf-8")
    print(one["dataset"])


if __name__ == "__main__":
    main()
