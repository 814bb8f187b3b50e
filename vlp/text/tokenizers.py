"""What all tokenizers share: settings, the cut to the context, padding, and a place to save files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from vlp.registry import Part, nearest
from vlp.text.captions import CLEANERS, Clean, cut_bytes

P = TypeVar("P", bound="TokenizerPart")


class TokenizerPart(Part):
    """Settings of a tokenizer; `build` makes the tokenizer. Relative paths are looked up under `base` first."""

    context: int = Field(77, ge=2)
    max_bytes: int = Field(8192, ge=16)  # longer captions are cut before cleaning: entities nest, repair is slow

    def build(self, base: Path | None = None) -> CutTokenizer:
        raise NotImplementedError


class CutTokenizer(ABC):
    """Implements `vlp.types.Tokenizer` on top of `_whole`; picklable, as loader workers need it."""

    part: TokenizerPart
    base: Path | None
    context: int
    vocab_size: int
    pad: int
    end: int  # id that ends a text
    fingerprint: str

    def __init__(self, part: TokenizerPart, base: Path | None = None) -> None:
        self.part = part
        self.base = base
        self.context = part.context

    @abstractmethod
    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with start and end tokens, not cut."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, start and end tokens included, cut to `context` with the end token kept, not padded."""
        return [ids if len(ids) <= self.context else [*ids[: self.context - 1], self.end] for ids in self._whole(texts)]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of ids each text has before it is cut."""
        return [len(ids) for ids in self._whole(texts)]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Padded ids, long [n, context]."""
        rows = self.encode([texts] if isinstance(texts, str) else texts)
        result = torch.full((len(rows), self.context), self.pad, dtype=torch.long)
        for row, ids in zip(result, rows):
            row[: len(ids)] = torch.tensor(ids)
        return result

    def save(self, folder: Path) -> TokenizerPart:
        """Copies what the tokenizer is made of into `folder`; returns the part that `build(base=folder)` needs."""
        return self.part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CutTokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def prepared(texts: Sequence[str], *, clean: Clean, max_bytes: int) -> list[str]:
    """The texts cut to `max_bytes` and cleaned."""
    cleaner = CLEANERS[clean]
    return [cleaner(cut_bytes(text, max_bytes)) for text in texts]


def fingerprint(part: TokenizerPart, content: bytes) -> str:
    """Hash of everything an id depends on: the vocabulary's content and the settings, but not where the file lies."""
    settings = part.model_dump_json(exclude={"path"})
    return hashlib.sha256(content + f"\n{type(part).__name__} {settings}".encode()).hexdigest()[:16]


def fingerprint_at(tokenizer: Any, context: int) -> str:
    """The fingerprint of a tokenizer whose texts are cut to `context`."""
    if tokenizer.context == context or not hasattr(tokenizer, "part"):
        return str(tokenizer.fingerprint)
    part = tokenizer.part.model_copy(update={"context": context})
    return str(part.build(tokenizer.base).fingerprint)


def resolve_path(path: str, base: Path | None) -> Path:
    """`base / path` if there is such a file or folder, else `path` as it stands."""
    return base / path if base is not None and (base / path).exists() else Path(path)


def from_open_clip(text_cfg: Mapping[str, Any]) -> TokenizerPart:
    """The part that makes the ids which open_clip's tokenizer for this `text_cfg` makes.

    CLIP BPE unless `hf_tokenizer_name` is set; `tokenizer_kwargs` (clean, strip_sep_token, language) are honoured.
    """
    from vlp.text.clip_bpe import ClipBPE
    from vlp.text.huggingface import HuggingFace

    name = text_cfg.get("hf_tokenizer_name")
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    known = {"clean", "strip_sep_token", "language"} if name else {"clean"}
    for option in options.keys() - known:
        raise ValueError(f"text_cfg.tokenizer_kwargs.{option}: not supported{nearest(option, known)}")
    if text_cfg.get("tokenizer_mode"):
        raise ValueError(
            f"text_cfg.tokenizer_mode: {text_cfg['tokenizer_mode']!r} puts a class token behind the padding; "
            "vlp knows only tokenizers that end a text with its end token"
        )
    context = text_cfg.get("context_length") or 77
    if not name:
        return ClipBPE(context=context, **options)
    return HuggingFace(path=name, context=context, **options)
