"""Words in: tokenizers, cleaning, sentence splitting, prompt templates."""

from __future__ import annotations

from vlp.registry import Table

TOKENIZERS = Table(
    "tokenizer",
    {
        "clip_bpe": "vlp.text.clip_bpe:ClipBPE",
        "huggingface": "vlp.text.huggingface:HuggingFace",
        "sentencepiece": "vlp.text.sentence_pieces:SentencePiece",
    },
)
