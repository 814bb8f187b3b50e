"""`clip_benchmark eval` on all sets in one process; runs in the environment of clip_benchmark.txt.

    python theirs.py PARTS.json -- OPTIONS OF EVERY CALL -- OPTIONS OF THE FIRST -- OPTIONS OF THE SECOND ...

A call is one command of theirs: its task is that of all its sets, so classification and retrieval are two. Nothing of
theirs is changed but for clocks around it:

    text    zero_shot_classifier; in retrieval the tokenizer and encode_text
    image   run_classification; in retrieval all that is neither text nor scores: loading, transform, encode_image
    scores  recall_at_k in batches, accuracies, average precision
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import clip_benchmark.cli as cli
from clip_benchmark.metrics import zeroshot_classification as classification
from clip_benchmark.metrics import zeroshot_retrieval as retrieval
from parts import Parts


def put_clocks(parts: Parts) -> None:
    load = cli.load_clip

    def load_clip(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        model, transform, tokenizer = load(*args, **kwargs)
        model.encode_text = parts.timed("text", model.encode_text)
        return model, transform, parts.timed("text", tokenizer)

    cli.load_clip = load_clip
    classification.zero_shot_classifier = parts.timed("text", classification.zero_shot_classifier)
    classification.run_classification = parts.timed("image", classification.run_classification)
    classification.evaluate = parts.timed("scores", classification.evaluate)
    retrieval.batchify = parts.timed("scores", retrieval.batchify)
    retrieval.evaluate = parts.timed("image", retrieval.evaluate)


def main(arguments: list[str]) -> None:
    parts = Parts()
    put_clocks(parts)
    shared, *calls = [list(words) for dashes, words in groupby(arguments[1:], lambda word: word == "--") if not dashes]
    for own in calls:
        sys.argv = ["clip_benchmark", "eval", *shared, *own]
        cli.main()
    parts.write(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
