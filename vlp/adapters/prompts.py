"""Prompts [start][v_1] ... [v_M][name][.][end] whose vectors v are learned, for the text tower of any dual encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Position = Literal["end", "middle", "front"]  # of the class name in its prompt
STD = 0.02  # of random vectors
PLACE = "a"  # stands in front of a name to learn its tokens there, and is left out


class Cut(NamedTuple):
    """Token ids of one prompt: its name, and what follows that, the end tokens included."""

    name: list[int]
    rest: list[int]


class ClassPrompts:
    """The prompts of C class names around a learned context (CoOp, 2109.01134, section 3.2), underscores made spaces.

    words: what the context starts from ("a photo of a"), whose first `count` tokens are learned and the others stay;
    None: `count` random vectors. position: "end" has the name behind the context, "front" before it, "middle" between
    its halves. Token ids are the tokenizer's own for the whole sentence, so a context of the embeddings of its words
    gives the features of the sentence. Prompts run at natural length, and what all classes begin with runs once.
    """

    def __init__(
        self,
        encoder: Any,
        names: Sequence[str],
        *,
        words: str | None = None,
        count: int | None = None,
        position: Position = "end",
    ) -> None:
        self.dual, self.names = encoder.dual, tuple(names)
        start, lead, cuts = _cut(self.dual.tokenizer, names, words or PLACE)
        lead = lead if words else []
        if words and count is not None and not 1 <= count <= len(lead):
            raise ValueError(f'"{words}" has {len(lead)} tokens, so between 1 and {len(lead)} are learned, not {count}')
        self.count = (len(lead) if words else 16) if count is None else count
        ahead = {"end": self.count, "middle": self.count // 2, "front": 0}[position]
        self._check_length(len(start) + self.count + len(lead[self.count :]), cuts)
        self._ahead = ahead
        with torch.no_grad():
            self._words = self._embed([lead[: self.count]])[0] if words else None
            self._start, self._fixed = self._embed([start]), self._embed([lead[self.count :]])
            self._lay_out(cuts)

    def _lay_out(self, cuts: Sequence[Cut]) -> None:
        """What follows the beginning of each prompt: padded embeddings, the end's place, where learned vectors go."""
        behind = self.count - self._ahead
        rows = [[*cut.name, *cut.rest] for cut in cuts]
        width = max(map(len, rows))
        self._rest = self._embed([[*row, *[self.dual.tokenizer.pad] * (width - len(row))] for row in rows])
        device = self._rest.device
        self._end = torch.tensor([len(row) + behind - 1 for row in rows], device=device)
        self._order: Tensor | None = None  # [C, behind + width]: place among learned vectors, then tokens
        if behind:
            spread = [[*range(behind, behind + width)] for _ in cuts]
            for order, cut in zip(spread, cuts, strict=True):
                order[len(cut.name) : len(cut.name)] = range(behind)
            self._order = torch.tensor(spread, device=device)

    def _embed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        device = next(self.dual.parameters()).device
        found: Tensor = self.dual.embed(torch.tensor(ids, dtype=torch.long, device=device))
        return found.detach().clone()

    @property
    def width(self) -> int:
        """Of token embeddings."""
        return int(self._rest.shape[2])

    @property
    def tokens(self) -> int:
        """Positions of the longest prompt behind what all share."""
        return int(self._end.max()) + 1

    def first(self, rng: torch.Generator, *, each: bool = False) -> Float[Tensor, "M w"]:
        """The context to start from, [M, w], or with `each` one a class, [C, M, w]; fp32 or wider."""
        shape = (len(self.names), self.count, self.width) if each else (self.count, self.width)
        if self._words is None:
            return (torch.randn(shape, generator=rng) * STD).to(self._rest.device)
        dtype = torch.promote_types(self._words.dtype, torch.float32)
        start: Tensor = self._words.to(dtype).expand(shape).clone()
        return start

    def encode(
        self, context: Float[Tensor, "M w"] | Float[Tensor, "C M w"], deep: Sequence[Tensor] | Tensor = ()
    ) -> Float[Tensor, "C D"]:
        """Unit features of the classes; deep[j] [M, w] stands in the context's place at the input of block j + 1."""
        which = torch.arange(len(self.names), device=self._rest.device)
        if context.ndim == 3:
            return self._run(context, which, which, deep)
        return self._run(context[None], torch.zeros_like(which), which, deep)

    def encode_each(self, context: Float[Tensor, "B M w"]) -> Float[Tensor, "B C D"]:
        """Unit features of the classes behind each of B contexts."""
        of = torch.arange(len(context), device=self._rest.device).repeat_interleave(len(self.names))
        which = torch.arange(len(self.names), device=self._rest.device).repeat(len(context))
        features: Tensor = self._run(context, of, which, ()).unflatten(0, (len(context), len(self.names)))
        return features

    def _run(self, context: Tensor, of: Tensor, which: Tensor, deep: Sequence[Tensor] | Tensor) -> Tensor:
        """Features [n, D] of class which[i] behind context of[i]."""
        context = context.to(self._rest.dtype)
        every = (len(context), -1, -1)
        begin = torch.cat([self._start.expand(every), context[:, : self._ahead], self._fixed.expand(every)], dim=1)
        rest = self._rest[which]
        if self._order is not None:
            pool = torch.cat([context[of, self._ahead :], rest], dim=1)
            rest = pool.gather(1, self._order[which][..., None].expand(-1, -1, self.width))
        features: Tensor = self.dual.encode_prompts(
            begin, rest, self._end[which], of, deep=deep, at=self._start.shape[1]
        )
        return features

    def _check_length(self, taken: int, cuts: Sequence[Cut]) -> None:
        """ValueError naming the class whose prompt has more positions than the tower."""
        own = getattr(self.dual, "prefix", None)
        room = self.dual.context - (0 if own is None else own.length)
        longest, cut = max(zip(self.names, cuts, strict=True), key=lambda pair: len(pair[1].name + pair[1].rest))
        needed = taken + len(cut.name + cut.rest)
        if needed > room:
            raise ValueError(
                f'the prompt of class "{longest}" has {needed} positions, and the text tower takes {room}: '
                f"learn fewer than {self.count} vectors, or shorten the name"
            )


def _cut(tokenizer: Any, names: Sequence[str], lead: str) -> tuple[list[int], list[int], list[Cut]]:
    """Ids of the start, of the words in front of every name, and of each name with what follows it."""
    plain = [f"{lead} {name.replace('_', ' ')}" for name in names]
    texts = [f"{text}." for text in plain]
    for name, length in zip(names, tokenizer.lengths(texts), strict=True):
        if length > tokenizer.context:
            raise ValueError(f'class "{name}" has {length} tokens; the tokenizer takes {tokenizer.context}: shorten it')
    empty, ahead, *rows = tokenizer.encode(["", lead, *texts])
    unfinished = tokenizer.encode(plain)
    start = min((_alike(empty, row) for row in rows), key=len)
    ends = len(empty) - len(start)
    ahead = ahead[: len(ahead) - ends]
    cuts = []
    for name, row, open_row in zip(names, rows, unfinished, strict=True):
        if row[: len(ahead)] != ahead:
            raise ValueError(f'the tokenizer joins "{lead}" with the name "{name}", so no context fits between them')
        rest = row[len(ahead) :]
        stop = len(_alike(rest[: len(rest) - ends], open_row[len(ahead) : len(open_row) - ends]))
        cuts.append(Cut(rest[:stop], rest[stop:]))
    return start, ahead[len(start) :], cuts


def _alike(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What both begin with."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other))]
