"""`vlp eval` on a suite, with clocks around the same parts as in theirs.py.

python ours.py PARTS.json ARGUMENTS OF vlp eval

text    prompts to class weights, captions to features: tokenizer and text tower, and keeping or finding features
image   loading, transform and image tower, and keeping or finding features
scores  the rest of every benchmark: metrics, intervals, tables, examples
"""

from __future__ import annotations

import sys
from pathlib import Path

from parts import Parts

from eval import BENCHMARKS
from eval.__main__ import app
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder


def put_clocks(parts: Parts) -> None:
    ZeroShot.fit = parts.timed("text", ZeroShot.fit)  # type: ignore[method-assign]
    Encoder.texts = parts.timed("text", Encoder.texts)  # type: ignore[method-assign]
    Encoder.images = parts.timed("image", Encoder.images)  # type: ignore[method-assign]
    for name in ("zeroshot", "multilabel", "retrieval"):
        benchmark = BENCHMARKS.resolve(name)
        benchmark.measure = parts.timed("scores", benchmark.measure)


def main(arguments: list[str]) -> None:
    parts = Parts()
    put_clocks(parts)
    app(arguments[1:], standalone_mode=False)
    parts.write(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
