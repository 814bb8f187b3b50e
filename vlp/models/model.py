"""The `model:` block of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import nn

from vlp.models import arch as arches
from vlp.models.build import build_towers
from vlp.models.dual import Dual
from vlp.models.freeze import lock
from vlp.models.text_hf import HFTextConfig
from vlp.registry import Part, PartOf
from vlp.text.tokenizers import TokenizerPart

SIGLIP_BIAS = -10.0
AnyTokenizer = PartOf("vlp.text:TOKENIZERS", TokenizerPart)
Lock = bool | Annotated[int, Field(ge=0)]


class Model(Part):
    """Two towers, where their weights start from, and what of them is trained.

    lock_image, lock_text: true locks the whole tower (LiT), n leaves the last n groups to train; group 1 is the
    projection, group 2 the last block with the last norm, and so on down to the embeddings.
    """

    arch: str | None = None  # a name, a .json file, a folder, hf-hub:...; None: that of `pretrained`
    pretrained: str | None = None  # weights: an open_clip file or folder, a Hugging Face CLIP or SigLIP, a run of ours
    text: HFTextConfig | None = None  # a Hugging Face text tower in place of the architecture's own
    tokenizer: AnyTokenizer | None = None  # None: the one that fits the architecture
    image_size: int | None = Field(None, ge=8)
    context: int | None = Field(None, ge=2)
    lock_image: Lock = False
    lock_text: Lock = False
    frozen_batchnorm: bool = False  # BatchNorm keeps its statistics, also in an unlocked image tower
    patch_dropout: float | None = Field(None, ge=0.0, lt=1.0)  # None: as in the architecture
    grad_checkpointing: bool = False
    init_scale: float | None = None  # logarithm; None: as in the architecture, else ln(1 / 0.07)
    init_bias: float | None = None  # None: as in the architecture, else -10 where a loss needs one
    text_groups: int = Field(4, ge=1, le=64)  # calls of the text tower a step, by length, where that is exact

    @model_validator(mode="after")
    def _has_source(self) -> Model:
        if self.arch is None and self.pretrained is None:
            raise ValueError("set arch (an architecture), pretrained (weights), or both")
        return self

    def find_arch(self) -> arches.Arch:
        """The architecture with this block's changes."""
        from vlp.models import pretrained

        found = arches.find(self.arch) if self.arch else pretrained.arch_of(str(self.pretrained))
        found = found.override(image_size=self.image_size, context=self.context)
        if self.text is not None:
            found.config["text_cfg"] = self.text.open_clip_cfg(found.config["text_cfg"], self.context)
            found.ours = {**found.ours, "text": self.text.model_dump(mode="json")}
            found.ours.pop("tokenizer", None)
        return found

    def build(self, needs: Iterable[str] = (), heads: Mapping[str, nn.Module] | None = None) -> Dual:
        """The model with its starting weights, ready to train."""
        from vlp.models import pretrained

        needs = frozenset(needs)
        found = self.find_arch()
        dual = make(found, self, bias="bias" in needs, heads=heads or {})
        if self.pretrained is not None:
            pretrained.start(dual, self.pretrained, text=self.text is None)
        dual.set_needs(needs)
        lock(dual, image=self.lock_image, text=self.lock_text, batchnorm=self.frozen_batchnorm)
        if self.grad_checkpointing:
            dual.image_tower.checkpoint_blocks()
            dual.text_tower.checkpoint_blocks()
        return dual


def make(found: arches.Arch, model: Model, *, bias: bool, heads: Mapping[str, nn.Module]) -> Dual:
    """A Dual with random weights (a Hugging Face text tower may bring its own)."""
    config = found.config
    dropout = config["vision_cfg"].get("patch_dropout", 0.0) if model.patch_dropout is None else model.patch_dropout
    modules = build_towers(found, patch_dropout=dropout, pretrained_text=model.text is not None)
    init_bias = config.get("init_logit_bias") if model.init_bias is None else model.init_bias
    if init_bias is None and bias:
        init_bias = SIGLIP_BIAS
    init_scale = config.get("init_logit_scale", math.log(1 / 0.07)) if model.init_scale is None else model.init_scale
    dual = Dual(
        modules.visual,
        modules.text,
        config=config,
        transform=_transform(found),
        tokenizer=_tokenizer(found, model.tokenizer),
        base=found.base,
        init_scale=init_scale,
        init_bias=init_bias,
        text_groups=model.text_groups,
        heads=heads,
    )
    dual.extra_config = {key: found.ours[key] for key in ("text", "timm") if key in found.ours}
    return dual


def _transform(found: arches.Arch) -> Any:
    from vlp.data.transforms import Preprocess

    return Preprocess.from_open_clip(found.preprocess, size=found.config["vision_cfg"]["image_size"])


def _tokenizer(found: arches.Arch, asked: TokenizerPart | None) -> TokenizerPart:
    """The tokenizer asked for, else the one stored with the model, else the one open_clip would take."""
    from vlp.text import TOKENIZERS
    from vlp.text.tokenizers import from_open_clip

    if asked is not None:
        return asked
    if stored := found.ours.get("tokenizer"):
        part: TokenizerPart = TOKENIZERS.build(stored)
    else:
        part = from_open_clip(found.config["text_cfg"])
    context = found.config["text_cfg"].get("context_length", 77)
    return part if part.context == context else part.model_copy(update={"context": context})
