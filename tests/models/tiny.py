from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import open_clip
import torch

from vlp.models.arch import Arch
from vlp.models.assemble import Settings, assemble
from vlp.models.build import class_of
from vlp.models.dual import Dual
from vlp.models.state import to_open_clip
from vlp.types import Batch

NANO: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 3},
}


class Words:
    """A tokenizer as far as a model looks at one."""

    context, vocab_size, pad, fingerprint = 12, 99, 0, "words"

    def encode(self, texts: Any) -> list[list[int]]:
        return [[97, *(1 + ord(c) % 90 for c in text), 98] for text in texts]


def make_dual(config: Mapping[str, Any] = NANO, *, seed: int = 0, ours: Any = None, **settings: Any) -> Dual:
    """A tiny model whose every parameter is random, also those that start at zero or one."""
    torch.manual_seed(seed)
    dual = assemble(Arch(copy.deepcopy(dict(config)), ours=ours or {}), Settings(**settings))
    dual.tokenizer = Words()
    with torch.no_grad():
        for name, p in dual.named_parameters():
            if p.ndim and not name.startswith("logit") and (p == p.flatten()[0]).all():
                p.add_(torch.randn_like(p) * 0.1)
    return dual.eval()


def reference(dual: Dual) -> Any:
    """Plain open_clip with the same weights."""
    config = copy.deepcopy(dual.config)
    cls = getattr(open_clip, class_of(config))
    config.pop("custom_text", None)
    model = cls(**config)
    model.load_state_dict(to_open_clip(dual), strict=True)
    return model.eval()


def random_ids(n: int, *, context: int = 12, vocab: int = 99, end: int | None = None, pad: int = 0) -> torch.Tensor:
    """Start, words, end, padding; the lengths differ."""
    end = vocab - 1 if end is None else end
    ids = torch.randint(3, vocab - 3, (n, context))
    ids[:, 0] = vocab - 2
    for row, length in enumerate(torch.randint(3, context - 2, (n,)).tolist()):
        ids[row, length - 1] = end
        ids[row, length:] = pad
    return ids


def make_batch(B: int = 4, K: int = 2, *, context: int = 12, size: int = 32, absent: bool = True) -> Batch:
    ids = random_ids(B * K, context=context)
    mask = torch.arange(context) <= ids.argmax(dim=1)[:, None]
    captions = torch.ones(B, K, dtype=torch.bool)
    if absent:
        captions[1, 1:] = False
        captions[3] = False
    return Batch(
        image=torch.randint(0, 256, (B, 3, size, size), dtype=torch.uint8),
        text=ids.reshape(B, K, context),
        token_mask=mask.reshape(B, K, context),
        caption_mask=captions,
        valid=captions.any(dim=1),
        label=torch.arange(B),
        source=torch.zeros(B, dtype=torch.long),
    )
