"""A Dual with random weights from an architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from vlp.data.transforms import Preprocess
from vlp.models.arch import Arch
from vlp.models.build import build_towers
from vlp.models.dual import Dual
from vlp.models.prefix import Prefixes
from vlp.registry import Part
from vlp.text import TOKENIZERS
from vlp.text.huggingface import FILES, HuggingFace
from vlp.text.tokenizers import TokenizerPart, from_open_clip

SIGLIP_BIAS = -10.0


class Settings(Part):
    """What of a model can be set apart from its architecture and its weights."""

    patch_dropout: float | None = Field(None, ge=0.0, lt=1.0)  # None: as in the architecture
    init_scale: float | None = Field(
        None, ge=0, le=4.61, description="logarithm, up to ln 100; None: as the weights or the architecture, ln(1/0.07)"
    )
    init_bias: float | None = None  # None: as the weights or the architecture, else -10 where a loss needs one
    text_groups: int = Field(4, ge=1, le=64)  # calls of the text tower a step, by length, where that is exact
    prefix: int | None = Field(None, ge=0)  # learned vectors before the words, by kind of source; None: as the weights


def assemble(
    found: Arch,
    settings: Settings,
    *,
    tokenizer: TokenizerPart | None = None,
    heads: Mapping[str, nn.Module] | None = None,
    bias: bool = False,
    pretrained_text: bool = False,
) -> Dual:
    """A Dual with random weights (a Hugging Face text tower with its own if `pretrained_text`).

    bias: make a logit bias also where the architecture has none.
    """
    config = found.config
    modules = build_towers(found, patch_dropout=settings.patch_dropout, pretrained_text=pretrained_text)
    init_bias = config.get("init_logit_bias") if settings.init_bias is None else settings.init_bias
    if init_bias is None and bias:
        init_bias = SIGLIP_BIAS
    if init_bias is not None:  # or open_clip would make a model without one, and refuse the weights
        config = {**config, "init_logit_bias": float(init_bias)}
    default_scale = config.get("init_logit_scale", math.log(1 / 0.07))
    prefix = found.ours.get("prefix", 0) if settings.prefix is None else settings.prefix
    text: Any = modules.text
    context = int(getattr(text, "context", None) or text.context_length)
    if (room := context - prefix) < 2:
        raise ValueError(
            f"model.prefix: {prefix} of the {context} positions of the text tower leave none for start, words and end; "
            "use a shorter prefix, or a longer context"
        )
    dual = Dual(
        modules.visual,
        modules.text,
        config=config,
        transform=Preprocess.from_open_clip(found.preprocess, size=config["vision_cfg"]["image_size"]),
        tokenizer=_tokenizer(found, room=room, prefix=prefix) if tokenizer is None else _cut(tokenizer, room),
        base=found.base if tokenizer is None else None,  # paths of one that is asked for are those of who asks
        init_scale=default_scale if settings.init_scale is None else settings.init_scale,
        init_bias=init_bias,
        text_groups=settings.text_groups,
        heads=heads,
    )
    dual.extra_config = {key: found.ours[key] for key in ("text", "timm") if key in found.ours}
    if prefix:
        dual.prefix = Prefixes(prefix, dual.text_tower.width)
        dual.extra_config["prefix"] = prefix
    return dual


def _tokenizer(found: Arch, *, room: int, prefix: int) -> TokenizerPart:
    """The tokenizer stored with the model, else the one open_clip would take; texts are cut to `room` tokens.

    One that cut texts shorter than the tower had room for goes on doing so: later positions have never been trained.
    """
    part: TokenizerPart
    stored = found.ours.get("tokenizer")
    if not stored:
        part = from_open_clip(found.config["text_cfg"])
        beside = found.base is not None and "text" not in found.ours and any((found.base / f).is_file() for f in FILES)
        if isinstance(part, HuggingFace) and beside:  # as open_clip does: a model downloaded whole asks no hub
            part = part.model_copy(update={"path": "."})
        return _cut(part, room)
    part = TOKENIZERS.build(stored)
    before = room + prefix - found.ours.get("prefix", 0)  # room beside the prefix that the weights have
    shorter = "context" in stored and part.context < before
    return _cut(part, room) if shorter else part.model_copy(update={"context": room})


def _cut(part: TokenizerPart, room: int) -> TokenizerPart:
    """The same for texts of at most `room` tokens."""
    return part if part.context <= room else part.model_copy(update={"context": room})
