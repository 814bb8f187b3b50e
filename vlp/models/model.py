"""The `model:` block of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import nn

from vlp.models import pretrained
from vlp.models.arch import Arch
from vlp.models.assemble import Settings, assemble
from vlp.models.dual import Dual
from vlp.models.find import find
from vlp.models.freeze import lock
from vlp.models.stretch import StretchText
from vlp.models.text_hf import HFTextConfig
from vlp.registry import Named
from vlp.text.tokenizers import CutTokenizer, TokenizerPart

AnyTokenizer = Annotated[TokenizerPart, Named("vlp.text:TOKENIZERS")]
Lock = bool | Annotated[int, Field(ge=0)]


class Model(Settings):
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
    stretch_text: StretchText | None = None  # positions of `pretrained` for a longer context; None: interpolated alike
    lock_image: Lock = False
    lock_text: Lock = False
    frozen_batchnorm: bool = False  # BatchNorm keeps its statistics, also in an unlocked image tower
    grad_checkpointing: bool = False

    @model_validator(mode="after")
    def _has_source(self) -> Model:
        if self.arch is None and self.pretrained is None:
            raise ValueError("set arch (an architecture), pretrained (weights), or both")
        whole = self.lock_image is True or (self.lock_image is not False and self.lock_image == 0)
        if whole and self.pretrained is None:
            raise ValueError(
                f"lock_image: {str(self.lock_image).lower()} keeps the whole image tower as it starts, and without "
                "`pretrained` it starts at random: set pretrained (weights, or the folder of a run), or lock less"
            )
        if self.stretch_text is not None and (self.pretrained is None or self.text is not None):
            raise ValueError("stretch_text: the positions of `pretrained` are stretched; give it, and no other `text`")
        return self

    def find_arch(self, stored: Path | None = None) -> Arch:
        """The architecture with this block's changes; that of the folder `stored` in place of that of `pretrained`."""
        found = find(self.arch) if self.arch else pretrained.arch_of(str(stored or self.pretrained))
        found = found.override(image_size=self.image_size, context=self.context)
        if self.tokenizer is not None and self.text is None and "hf_model_name" not in found.config["text_cfg"]:
            found.config["text_cfg"] = _reading(found.config["text_cfg"], self.tokenizer.build())
        if self.text is not None:
            found.config["text_cfg"] = self.text.open_clip_cfg(found.config["text_cfg"], self.context)
            found.ours = {**found.ours, "text": self.text.model_dump(mode="json")}
            found.ours.pop("tokenizer", None)
        return found

    def build(
        self, needs: Iterable[str] = (), heads: Mapping[str, nn.Module] | None = None, *, stored: Path | None = None
    ) -> Dual:
        """The model with its starting weights, ready to train.

        stored: folder of this model in a checkpoint, whose weights are to follow; then `pretrained` is not looked at,
        and may be gone.
        """
        needs = frozenset(needs)
        found = self.find_arch(stored)
        dual = assemble(
            found,
            self,
            tokenizer=self.tokenizer,
            heads=heads,
            bias="bias" in needs,
            pretrained_text=self.text is not None,
        )
        if self.pretrained is not None and stored is None:
            pretrained.start(dual, self.pretrained, text=self.text is None, stretch=self.stretch_text, arch=self.arch)
            self._set_scalars(dual)
        dual.set_needs(needs)
        self.lock(dual)
        if self.grad_checkpointing:
            dual.image_tower.checkpoint_blocks()
            dual.text_tower.checkpoint_blocks()
        return dual

    def _set_scalars(self, dual: Dual) -> None:
        """Scale and bias as this block says, over those of the weights."""
        for scalar, value in ((dual.logit_scale, self.init_scale), (dual.logit_bias, self.init_bias)):
            if scalar is not None and value is not None:
                nn.init.constant_(scalar, value)

    def lock(self, dual: Dual) -> None:
        """Lock what this block says is not trained."""
        lock(dual, image=self.lock_image, text=self.lock_text, batchnorm=self.frozen_batchnorm)


def _reading(text_cfg: Mapping[str, Any], tokenizer: CutTokenizer) -> dict[str, Any]:
    """The text tower for the ids of another tokenizer: as many, and pooled at its end token.

    CLIP's rule, the highest id of a text, finds only an end token that is the last of the vocabulary.
    """
    changed = {**text_cfg, "vocab_size": tokenizer.vocab_size}
    at_end = changed.get("pool_type", "argmax") in ("argmax", "eos") and tokenizer.end >= 0
    if at_end and (changed.get("pool_type") == "eos" or tokenizer.end != tokenizer.vocab_size - 1):
        changed |= {"pool_type": "eos", "eos_id": tokenizer.end}
    return changed
