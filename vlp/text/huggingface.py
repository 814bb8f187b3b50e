"""Any fast tokenizer of the Hugging Face libraries: a folder, a tokenizer.json, or a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlp.registry import nearest
from vlp.text.captions import Clean
from vlp.text.tokenizers import CutTokenizer, TokenizerPart, fingerprint, prepared, resolve_path

_FOLDER = "tokenizer"  # under the folder of a saved model


class HuggingFace(TokenizerPart):
    """A fast tokenizer; `path` is a folder, a tokenizer.json or a hub id ("org/name")."""

    path: str
    clean: Clean = "whitespace"
    strip_sep_token: bool = False  # CLIPA: the separator's id becomes 0
    language: str | None = None  # source language of NLLB-like tokenizers
    pad_token: str | None = None  # only for files that name none

    def build(self, base: Path | None = None) -> HuggingFaceTokenizer:
        return HuggingFaceTokenizer(self, base)


class HuggingFaceTokenizer(CutTokenizer):
    """Special tokens and the cut are the tokenizer's own; padding is always on the right."""

    part: HuggingFace

    def __init__(self, part: HuggingFace, base: Path | None = None) -> None:
        super().__init__(part, base)
        self.inner = _load(part, base)
        self.vocab_size = len(self.inner)
        self.pad = int(self.inner.pad_token_id)
        self.end = self._last_special()
        self.fingerprint = fingerprint(part, self.inner.backend_tokenizer.to_str().encode())

    def _last_special(self) -> int:
        ids = self.inner("a", verbose=False)["input_ids"]
        if not ids or ids[-1] not in self.inner.all_special_ids:
            return -1  # a tokenizer without an end token: the end is the last token of the text
        return 0 if self._is_stripped(ids[-1]) else int(ids[-1])

    def _is_stripped(self, token: int) -> bool:
        return self.part.strip_sep_token and token == self.inner.sep_token_id

    def _run(self, texts: Sequence[str], **cut: Any) -> list[list[int]]:
        cleaned = prepared(texts, clean=self.part.clean, max_bytes=self.part.max_bytes)
        if not cleaned:
            return []
        rows: list[list[int]] = self.inner(cleaned, verbose=False, return_attention_mask=False, **cut)["input_ids"]
        if self.part.strip_sep_token:
            rows = [[0 if self._is_stripped(i) else i for i in ids] for ids in rows]
        return rows

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        return self._run(texts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text cut to `context` by the tokenizer itself, so that its special tokens stay."""
        return self._run(texts, truncation=True, max_length=self.context)

    def save(self, folder: Path) -> TokenizerPart:
        """Writes the tokenizer's files to `folder/tokenizer`, also those of a hub id."""
        self.inner.save_pretrained(folder / _FOLDER)
        return self.part.model_copy(update={"path": _FOLDER})


FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def _load(part: HuggingFace, base: Path | None) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = resolve_path(part.path, base)
    if path.is_dir() and not any((path / name).is_file() for name in FILES):
        raise ValueError(
            f'tokenizer huggingface: the folder "{part.path}" holds no tokenizer (none of {", ".join(FILES)}); '
            "name one: model.tokenizer={name: ..., ...}"
        )
    try:
        if path.is_file():
            inner = PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            inner = AutoTokenizer.from_pretrained(
                str(path) if path.is_dir() else part.path, use_fast=True, trust_remote_code=False
            )
    except Exception as error:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ValueError(
            f'tokenizer huggingface: cannot load path "{part.path}" as a folder, a tokenizer.json or a hub id: '
            f"{type(error).__name__}: {error}{near}"
        ) from error
    if not inner.is_fast:
        raise ValueError(
            f'tokenizer huggingface: "{part.path}" has no fast tokenizer; use sentencepiece for a .model file'
        )
    inner.padding_side = "right"
    _name_padding(inner, part)
    if part.language is not None:
        _set_language(inner, part)
    return inner


def _set_language(inner: Any, part: HuggingFace) -> None:
    if not callable(getattr(inner, "set_src_lang_special_tokens", None)):
        raise ValueError(f'tokenizer huggingface: "{part.path}" has no source language; remove `language`')
    inner.set_src_lang_special_tokens(part.language)


def _name_padding(inner: Any, part: HuggingFace) -> None:
    vocabulary = inner.get_vocab()
    if part.pad_token is not None:
        if part.pad_token not in vocabulary:
            raise ValueError(f'tokenizer huggingface: pad_token "{part.pad_token}" is not in the vocabulary')
        inner.pad_token = part.pad_token
    elif inner.pad_token_id is None:
        likely = [token for token in ("[PAD]", "<pad>", "<|endoftext|>", "</s>") if token in vocabulary]
        hint = f' (the vocabulary has "{likely[0]}")' if likely else ""
        raise ValueError(f'tokenizer huggingface: "{part.path}" names no padding token; set pad_token{hint}')
