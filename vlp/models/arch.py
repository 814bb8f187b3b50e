"""What a model is built from: open_clip's model configuration, so that open_clip can read it too, and a little more."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG_FILE, OURS_FILE, HF_FILE = "open_clip_config.json", "vlp.json", "config.json"


@dataclass
class Arch:
    """What a model is built from, before any weights."""

    config: dict[str, Any]  # open_clip's model_cfg
    preprocess: dict[str, Any] = field(default_factory=dict)  # mean, std, interpolation, resize_mode; what is known
    ours: dict[str, Any] = field(default_factory=dict)  # "text": settings of a text tower of ours; "timm": arguments
    base: Path | None = None  # folder that relative paths of the tokenizer refer to

    def __post_init__(self) -> None:
        self.config = deepcopy(self.config)
        self.config.pop("multimodal_cfg", None)  # CoCa: its two towers are used, its caption decoder is not
        for side in ("vision_cfg", "text_cfg"):
            self.config[side].pop("output_tokens", None)

    def override(self, *, image_size: int | None, context: int | None) -> Arch:
        """The same with another picture size or text length."""
        config, ours = deepcopy(self.config), deepcopy(self.ours)
        if image_size is not None:
            config["vision_cfg"]["image_size"] = image_size
            if "img_size" in ours.get("timm", {}):
                ours["timm"]["img_size"] = image_size
        if context is not None:
            config["text_cfg"]["context_length"] = context
            if ours.get("tokenizer"):
                ours["tokenizer"]["context"] = context - ours.get("prefix", 0)
        return Arch(config, self.preprocess, ours, self.base)
