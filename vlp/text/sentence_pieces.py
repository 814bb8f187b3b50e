"""SentencePiece models, with the special tokens of T5 and SigLIP."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlp.registry import nearest
from vlp.text.captions import Clean
from vlp.text.tokenizers import CutTokenizer, TokenizerPart, fingerprint, prepared, resolve_path
from vlp.untrusted import read_bytes

_FILE = "tokenizer.model"
_MAX_BYTES = 256 << 20


class SentencePiece(TokenizerPart):
    """A .model file. T5: as it stands. SigLIP: `clean: canonicalize`, `pad_id: 1` (its end token)."""

    path: str
    clean: Clean = "whitespace"
    add_bos: bool = False
    add_eos: bool = True
    pad_id: int | None = None  # None: the model's own; some have none and need one here

    def build(self, base: Path | None = None) -> SentencePieceTokenizer:
        return SentencePieceTokenizer(self, base)


class SentencePieceTokenizer(CutTokenizer):
    """Pieces with optional start and end token."""

    part: SentencePiece

    def __init__(self, part: SentencePiece, base: Path | None = None) -> None:
        super().__init__(part, base)
        self.file = resolve_path(part.path, base)
        self.model, content = _load(self.file)
        self.vocab_size = int(self.model.vocab_size())
        self.start = self._id("bos", self.model.bos_id()) if part.add_bos else -1
        self.end = self._id("eos", self.model.eos_id()) if part.add_eos else -1
        self.pad = self._id("pad", self.model.pad_id() if part.pad_id is None else part.pad_id)
        self.fingerprint = fingerprint(part, content)

    def _id(self, name: str, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            remedy = "set pad_id" if name == "pad" else f"set add_{name}: false"
            raise ValueError(f"tokenizer sentencepiece: {self.file} has no {name} token (id {token}); {remedy}")
        return token

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = prepared(texts, clean=self.part.clean, max_bytes=self.part.max_bytes)
        return self.model.encode(cleaned, add_bos=self.part.add_bos, add_eos=self.part.add_eos)  # type: ignore[no-any-return]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text cut to `context`; the end token, if there is one, is kept."""
        if self.part.add_eos:
            return super().encode(texts)
        return [ids[: self.context] for ids in self._whole(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens vanish."""
        return str(self.model.decode(list(ids)))

    def save(self, folder: Path) -> TokenizerPart:
        """Copies the model to `folder/tokenizer.model`."""
        shutil.copyfile(self.file, folder / _FILE)
        return self.part.model_copy(update={"path": _FILE})


def _load(file: Path) -> tuple[Any, bytes]:
    import sentencepiece

    if not file.is_file():
        near = nearest(file.name, [p.name for p in file.parent.glob("*.model")]) if file.parent.is_dir() else ""
        raise ValueError(f"tokenizer sentencepiece: no file {file}{near}")
    content = read_bytes(file, max_bytes=_MAX_BYTES)
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise ValueError(f"tokenizer sentencepiece: {file} is no SentencePiece model: {error}") from error
    if not model.vocab_size():
        raise ValueError(f"tokenizer sentencepiece: {file} is no SentencePiece model: it has no pieces")
    return model, content
