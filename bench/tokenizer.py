"""Our CLIP tokenizer beside open_clip's SimpleTokenizer: captions to padded ids, which are equal.

Captions of rendered scenes, one in ten with HTML entities, broken encoding, other scripts or emoji. Both sides keep the
words they have seen; "new words" is the first sight of all captions, with these caches emptied before each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from captions import scene_captions
from open_clip.tokenizer import SimpleTokenizer
from paired import Case, arguments, main, parse, same
from torch import Tensor

from vlp.text.clip_bpe import ClipBPE


def cases(texts: list[str], batch: int) -> Iterator[Case]:
    ours, theirs = ClipBPE().build(), SimpleTokenizer()
    special = dict(theirs.cache)

    def forgetful() -> SimpleTokenizer:
        theirs.cache = dict(special)
        return theirs

    mean = sum(ours.lengths(texts)) / len(texts)
    title = f"{len(texts)} captions, mean {mean:.1f} tokens"
    yield Case(f"{title}, one by one", whole(lambda: ours, texts, 1), whole(lambda: theirs, texts, 1), same)
    yield Case(f"in batches of {batch}", whole(lambda: ours, texts, batch), whole(lambda: theirs, texts, batch), same)
    yield Case(
        f"in batches of {batch}, new words",
        whole(ClipBPE().build, texts, batch),  # the vocabulary stays read, the words are forgotten
        whole(forgetful, texts, batch),
        same,
    )


def whole(make: Callable[[], Any], texts: list[str], batch: int) -> Callable[[], Tensor]:
    """Ids [n, 77] of all texts, `batch` texts a call."""

    def run() -> Tensor:
        tokenize = make()
        return torch.cat([tokenize(texts[start : start + batch]) for start in range(0, len(texts), batch)])

    return run


if __name__ == "__main__":
    options = parse(arguments(__doc__, rounds=9))
    main(cases(scene_captions(500 if options.quick else 5000, odd=0.1), batch=256), options)
