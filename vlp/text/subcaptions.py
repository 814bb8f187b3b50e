"""Sub-captions: pieces of long captions, alone or several joined, drawn as DreamLIP and FLAIR draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Replace = Literal["never", "if_short", "always"]


def runs(texts: Sequence[Sequence[str]], length: int, *, joint: str = " ") -> list[str]:
    """Every `length` consecutive pieces of a text, joined; a text with fewer gives all of its own. Equal ones once.

    A run never goes from one text into the next, as it does in DreamLIP's code.
    """
    found = [
        joint.join(pieces[start : start + length])
        for pieces in texts
        for start in range(max(1, len(pieces) - length + 1))
        if pieces
    ]
    return list(dict.fromkeys(found))


def draw(pool: Sequence[str], count: int, rng: np.random.Generator | None, *, replace: Replace) -> list[str]:
    """`count` of the pool in the order drawn; fewer where the pool is short and nothing may come twice.

    "if_short" draws all of them with replacement where the pool is short, as DreamLIP's code does. Without a generator
    the first ones are taken, none twice.
    """
    if rng is None:
        return list(pool[:count])
    again = replace == "always" or (replace == "if_short" and len(pool) < count)
    return [pool[i] for i in rng.choice(len(pool), count if again else min(count, len(pool)), replace=again)]


def mixed(
    texts: Sequence[Sequence[str]], count: int, rng: np.random.Generator | None, *, longest: int, joint: str = " "
) -> list[str]:
    """FLAIR's diverse sampling (arXiv 2412.03561, 3.2): `count` captions, each drawn by itself.

    Each one is made of m pieces, m uniform in 1..longest: with equal chance m consecutive ones of one text, or m any
    ones in the order drawn. Fewer where there are no m. Without a generator the first pieces, one each.
    """
    single = runs(texts, 1)
    if rng is None:
        return single[:count]
    by_length = {1: single}
    captions = []
    for _ in range(count):
        m = int(rng.integers(1, longest + 1))
        if m > 1 and rng.random() < 0.5:
            captions.append(joint.join(draw(single, m, rng, replace="never")))
            continue
        if m not in by_length:
            by_length[m] = runs(texts, m, joint=joint)
        captions.append(by_length[m][int(rng.integers(len(by_length[m])))])
    return captions
