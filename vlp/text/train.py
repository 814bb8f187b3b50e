"""A SentencePiece vocabulary from one's own captions."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from vlp.text.captions import is_blank, one_line
from vlp.text.sentence_pieces import SentencePiece


def train_sentencepiece(
    captions: Iterable[str],
    out: str | Path,
    *,
    vocab_size: int,
    kind: Literal["unigram", "bpe"] = "unigram",
    character_coverage: float = 0.9995,
    context: int = 77,
    threads: int = 1,
) -> SentencePiece:
    """The part of a model trained on `captions` and written to the file `out` (.model).

    Ids as in T5: padding 0, end 1, unknown 2, no start token. Characters that are not covered are spelt as bytes, so
    every text has ids. All captions are read into memory by the trainer; hand in a sample of a large set.
    """
    import sentencepiece

    out = Path(out)
    model = io.BytesIO()
    lines = _Lines(captions)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=kind,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="nfkc",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=threads,
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"cannot train {vocab_size} pieces on {lines.count} captions with text: {error}; "
            "ask for a smaller vocab_size, give more captions, or use --kind bpe"
        ) from error
    if not lines.count:
        raise ValueError("cannot train a tokenizer: no caption with text was given")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(model.getvalue())
    os.replace(partial, out)
    return SentencePiece(path=str(out), context=context)


class _Lines:
    """Repaired captions, blank ones left out; counts what it gave."""

    def __init__(self, captions: Iterable[str]) -> None:
        self.captions = captions
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        for caption in self.captions:
            if not is_blank(caption):
                self.count += 1
                yield one_line(caption)
