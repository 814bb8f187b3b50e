"""Empty towers from an architecture; open_clip's modules wherever it has them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import Any, NamedTuple

from torch import nn

from vlp.models.arch import Arch
from vlp.models.image import PatchDropout
from vlp.registry import nearest

_PROBE_VISION = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
_PROBE_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
_TIMM_FILES = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
_HF_POOLERS = {
    "mean_pooler": "mean",
    "max_pooler": "max",
    "cls_pooler": "pooler",
    "cls_last_hidden_state_pooler": "cls",
}


class Modules(NamedTuple):
    """Both towers, named as in open_clip's CustomTextCLIP."""

    visual: nn.Module
    text: nn.Module


def build_towers(arch: Arch, *, patch_dropout: float | None = None, pretrained_text: bool = False) -> Modules:
    """Towers with random weights (a Hugging Face text tower with its own if `pretrained_text`)."""
    import open_clip

    config = deepcopy(arch.config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    _refuse_unknown(vision, text)
    patch_dropout = vision.get("patch_dropout", 0.0) if patch_dropout is None else patch_dropout
    if "timm_model_name" in vision:
        import vlp.models.fisher  # noqa: F401  (timm knows its towers, and that of layout.py, from then on)

        _refuse_unknown_timm(vision["timm_model_name"])
        vision["timm_model_pretrained"] = False  # nothing is fetched that was not asked for
    vision["patch_dropout"] = 0.0  # ours draws from the device's generator
    ours = arch.ours.get("text") or _hf_settings(text)
    timm = _timm_arguments(arch, patch_dropout) if "timm_model_name" in vision else {}
    clip = open_clip.CustomTextCLIP(
        config["embed_dim"],
        _PROBE_VISION if timm else vision,
        _PROBE_TEXT if ours else text,
        quick_gelu=config.get("quick_gelu", False),
    )
    visual: Any = _timm_tower(vision, timm) if timm else clip.visual
    if "timm_model_name" in vision:
        _resize_timm(visual, vision["image_size"])
    elif patch_dropout:
        _drop_patches(visual, patch_dropout)
    if not ours:
        return Modules(visual, clip.text)
    from vlp.models.text_hf import HFText, HFTextConfig

    settings = HFTextConfig.model_validate(ours)
    return Modules(
        visual,
        HFText(settings, dim=config["embed_dim"], context=text.get("context_length", 77), pretrained=pretrained_text),
    )


def _refuse_unknown(vision: dict[str, Any], text: dict[str, Any]) -> None:
    """ValueError for words of an architecture that open_clip does not have."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for side, given, known in (("vision_cfg", vision, CLIPVisionCfg), ("text_cfg", text, CLIPTextCfg)):
        names = [field.name for field in fields(known)]
        if odd := next((name for name in given if name not in names), None):
            raise ValueError(f'{side} of the architecture: open_clip has no "{odd}"{nearest(odd, names)}')


def class_of(config: dict[str, Any]) -> str:
    """Which class open_clip makes of this configuration, CLIP or CustomTextCLIP, and so how it names weights."""
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    return "CustomTextCLIP" if custom else "CLIP"


def _hf_settings(text: dict[str, Any]) -> dict[str, Any] | None:
    """open_clip's settings of a Hugging Face text tower in our words."""
    if not text.get("hf_model_name"):
        return None
    pooler = text.get("hf_pooler_type", "mean_pooler")
    return {"hf": text["hf_model_name"], "pooler": _HF_POOLERS[pooler], "proj": text.get("hf_proj_type", "mlp")}


def _drop_patches(visual: Any, prob: float) -> None:
    if not hasattr(visual, "patch_dropout"):
        raise ValueError(f"model.patch_dropout: a {type(visual).__name__} has no patches to drop")
    visual.patch_dropout = PatchDropout(prob)


def _refuse_unknown_timm(name: str) -> None:
    import timm

    if not (timm.is_model(name) or ":" in name or "/" in name):  # those are of a hub
        raise ValueError(f'vision_cfg.timm_model_name: timm has no "{name}"{nearest(name, timm.list_models())}')


def _timm_arguments(arch: Arch, patch_dropout: float) -> dict[str, Any]:
    """What timm is told beyond open_clip's words, if anything."""
    vision = arch.config["vision_cfg"]
    extra = dict(arch.ours.get("timm", {}))
    if files := extra.keys() & _TIMM_FILES:
        raise ValueError(f"timm arguments of this model name files to load: {', '.join(sorted(files))}; remove them")
    if patch_dropout:
        extra["patch_drop_rate"] = patch_dropout
    if not extra:
        return {}
    if vision.get("timm_drop_path") is not None:  # what open_clip tells timm of itself
        extra.setdefault("drop_path_rate", vision["timm_drop_path"])
    if vision.get("timm_proj") not in ("none", "") or vision.get("timm_pool") in ("abs_attn", "rot_attn"):
        raise ValueError("arguments for timm (and so model.patch_dropout) need timm_proj: none or empty")
    classes = 0 if vision.get("timm_proj") == "none" else arch.config["embed_dim"]
    return {"num_classes": classes, "global_pool": vision.get("timm_pool", "avg"), **extra}


def _timm_tower(vision: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    """open_clip's TimmModel around a trunk made with these arguments, which open_clip's own way does not take."""
    import timm
    from open_clip.timm_model import TimmModel

    tower: Any = TimmModel.__new__(TimmModel)
    nn.Module.__init__(tower)
    tower.image_size = _pair(vision["image_size"])
    name = vision["timm_model_name"]
    try:
        tower.trunk = timm.create_model(name, pretrained=False, **arguments)
    except TypeError as error:  # such as a ResNet, which has no patches to drop
        raise ValueError(f"timm's {name} does not take what it is told (model.patch_dropout, too): {error}") from error
    tower.head = nn.Sequential()
    return tower  # type: ignore[no-any-return]


def _resize_timm(visual: Any, image_size: Any) -> None:
    """Bring a trunk to the size asked for; open_clip leaves it at the size of its name."""
    size, trunk = _pair(image_size), visual.trunk
    now = getattr(getattr(trunk, "patch_embed", None), "img_size", None) or trunk.default_cfg["input_size"][1:]
    if hasattr(trunk, "set_input_size") and tuple(now) != size:
        visual.set_input_size(size)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
