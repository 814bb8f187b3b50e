"""A Dual with random weights from an architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field
from torch import nn

from vlp.data.transforms import Preprocess
from vlp.models.arch import Arch
from vlp.models.build import build_towers
from vlp.models.dual import Dual
from vlp.models.prefix import Prefixes
from vlp.registry import Part
from vlp.text import TOKENIZERS
from vlp.text.tokenizers import TokenizerPart, from_open_clip

SIGLIP_BIAS = -10.0


class Settings(Part):
    """What of a model can be set apart from its architecture and its weights."""

    patch_dropout: float | None = Field(None, ge=0.0, lt=1.0)  # None: as in the architecture
    init_scale: float | None = None  # logarithm; None: as in the architecture, else ln(1 / 0.07)
    init_bias: float | None = None  # None: as in the architecture, else -10 where a loss needs one
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
    dual = Dual(
        modules.visual,
        modules.text,
        config=config,
        transform=Preprocess.from_open_clip(found.preprocess, size=config["vision_cfg"]["image_size"]),
        tokenizer=_tokenizer(found, tokenizer, prefix=prefix),
        base=found.base,
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


def _tokenizer(found: Arch, asked: TokenizerPart | None, *, prefix: int) -> TokenizerPart:
    """The tokenizer asked for, else the one stored with the model, else the one open_clip would take.

    A prefix takes positions, so that texts are cut earlier.
    """
    context = found.config["text_cfg"].get("context_length", 77) - prefix
    if asked is not None:
        return asked if asked.context <= context or not prefix else asked.model_copy(update={"context": context})
    if stored := found.ours.get("tokenizer"):
        part: TokenizerPart = TOKENIZERS.build(stored)
    else:
        part = from_open_clip(found.config["text_cfg"])
    return part if part.context == context else part.model_copy(update={"context": context})
