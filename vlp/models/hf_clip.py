"""CLIP and SigLIP as transformers saves them, in open_clip's layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from vlp.models.arch import HF_FILE, Arch
from vlp.models.state import State
from vlp.registry import nearest
from vlp.untrusted import read_object

_KINDS = ("clip", "siglip")
_RESAMPLING: dict[Any, str] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LEGACY_EOS = 2  # published CLIP folders name id 2, and transformers then takes the highest id, as OpenAI did


def arch(folder: Path) -> Arch:
    """The architecture of a CLIP or SigLIP folder."""
    hf, config = _configs(folder)
    kind = hf["model_type"]
    made = _clip(config, hf) if kind == "clip" else _siglip(config, hf)
    made.preprocess = _preprocess(folder, kind)
    made.base = folder
    if (folder / "tokenizer.json").is_file():
        cleaning = {} if kind == "clip" else {"clean": "canonicalize"}
        made.ours["tokenizer"] = {"name": "huggingface", "path": ".", **cleaning}
    return made


def convert(state: State, folder: Path) -> State:
    """Weights of a CLIPModel or SiglipModel named as in `Dual`."""
    kind = _configs(folder)[0]["model_type"]
    rules = _CLIP_RULES if kind == "clip" else _SIGLIP_RULES
    state = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    ours = _packed(state, packed_names=_PACKED[kind])
    return {_renamed(name, rules): _shaped(name, tensor, kind) for name, tensor in ours.items()}


def _configs(folder: Path) -> tuple[dict[str, Any], Any]:
    """The raw config.json, and transformers' reading of it, which knows the defaults."""
    from transformers import CLIPConfig, SiglipConfig

    hf = read_object(folder / HF_FILE)
    kind = hf.get("model_type", "")
    if kind not in _KINDS:
        raise ValueError(f'{folder}: model_type "{kind}" of transformers is not known here{nearest(kind, _KINDS)}')
    return hf, (CLIPConfig if kind == "clip" else SiglipConfig).from_dict(hf)


def _clip(config: Any, hf: dict[str, Any]) -> Arch:
    text, vision = config.text_config, config.vision_config
    acts = {text.hidden_act, vision.hidden_act}
    if not acts <= {"quick_gelu", "gelu"} or len(acts) > 1:
        raise ValueError(f"activations {sorted(acts)} in a CLIP folder; known are quick_gelu or gelu in both towers")
    eos = int(text.eos_token_id)
    pool = {} if eos == _LEGACY_EOS else {"pool_type": "eos", "eos_id": eos}
    return Arch(
        {
            "embed_dim": config.projection_dim,
            "quick_gelu": acts == {"quick_gelu"},
            "init_logit_scale": float(config.logit_scale_init_value),
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.hidden_size,
                "layers": vision.num_hidden_layers,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
                "norm_kwargs": {"eps": vision.layer_norm_eps},
            },
            "text_cfg": {**_text_cfg(text), **pool},
        }
    )


def _siglip(config: Any, hf: dict[str, Any]) -> Arch:
    text, vision = config.text_config, config.vision_config
    dim = vision.hidden_size
    tanh = {"gelu_pytorch_tanh": True, "gelu": False}
    return Arch(
        {
            "embed_dim": dim,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": vision.image_size,
                "timm_model_name": "vit_base_patch16_siglip_224",
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                **_text_cfg(text),
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "act_kwargs": {"approximate": "tanh"} if tanh[text.hidden_act] else {},
            },
        },
        ours={
            "timm": {
                "img_size": vision.image_size,
                "patch_size": vision.patch_size,
                "embed_dim": dim,
                "depth": vision.num_hidden_layers,
                "num_heads": vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / dim,
                "act_layer": "gelu_tanh" if tanh[vision.hidden_act] else "gelu",
            }
        },
    )


def _text_cfg(text: Any) -> dict[str, Any]:
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
        "norm_kwargs": {"eps": text.layer_norm_eps},
    }


def _preprocess(folder: Path, kind: str) -> dict[str, Any]:
    """From preprocessor_config.json, where there is one; SigLIP squashes, CLIP crops."""
    file = folder / "preprocessor_config.json"
    found = read_object(file) if file.is_file() else {}
    half = [0.5, 0.5, 0.5] if kind == "siglip" else None
    known = {"mean": found.get("image_mean", half), "std": found.get("image_std", half)}
    known["size"] = _side(found.get("crop_size") or found.get("size"))
    known["interpolation"] = _RESAMPLING.get(found.get("resample"))
    known["resize_mode"] = "squash" if kind == "siglip" else "shortest"
    return {key: value for key, value in known.items() if value is not None}


def _side(size: Any) -> Any:
    """Side, or height and width, as transformers writes them."""
    if not isinstance(size, dict):
        return size
    both = [size["height"], size["width"]] if {"height", "width"} <= size.keys() else None
    return size.get("shortest_edge", both)


_PACKED = {
    "clip": (".self_attn.{}_proj.", ".attn.in_proj_", "qkv"),
    "siglip": (".self_attn.{}_proj.", ".attn.in_proj_", "qkv"),
}
_BLOCK_RULES = (
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TEXT_RULES = (
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.ln_final."),
    (r"^text_model\.encoder\.layers\.", "text.transformer.resblocks."),
)
_CLIP_RULES = (
    *_TEXT_RULES,
    (r"^text_projection\.weight$", "text.text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    *_BLOCK_RULES,
)
_SIGLIP_RULES = (
    *_TEXT_RULES,
    (r"^text_model\.head\.", "text.text_projection."),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.in_proj_q_", "visual.trunk.attn_pool.q."),
    (r"^vision_model\.head\.attention\.in_proj_kv_", "visual.trunk.attn_pool.kv."),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.attn\.in_proj_", r"\1.attn.qkv."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.attn.proj."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.layer_norm(\d)\.", r"\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"^(text\.transformer\..*)\.self_attn\.out_proj\.", r"\1.attn.out_proj."),
    (r"^(text\.transformer\..*)\.layer_norm(\d)\.", r"\1.ln_\2."),
    (r"^(text\.transformer\..*)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"^(text\.transformer\..*)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _packed(state: State, *, packed_names: tuple[str, str, str]) -> State:
    """Query, key and value weights of each attention as one; and torch's packed pool attention as timm splits it."""
    source, target, letters = packed_names
    packed: State = {}
    for name, tensor in state.items():
        if source.format("q") in name:
            parts = [state[name.replace(source.format("q"), source.format(letter))] for letter in letters]
            packed[name.replace(source.format("q"), target)] = torch.cat(parts)
        elif ".head.attention.in_proj_" in name:
            width = len(tensor) // 3
            before, after = name.split("in_proj_")
            packed[f"{before}in_proj_q_{after}"], packed[f"{before}in_proj_kv_{after}"] = tensor[:width], tensor[width:]
        elif not any(source.format(letter) in name for letter in letters):
            packed[name] = tensor
    return packed


def _shaped(name: str, tensor: torch.Tensor, kind: str) -> torch.Tensor:
    if name in ("logit_scale", "logit_bias"):
        return tensor.reshape(1)
    if kind == "clip" and name in ("text_projection.weight", "visual_projection.weight"):
        return tensor.T.contiguous()  # x @ proj there, a Linear's weight here
    if kind == "siglip" and name == "vision_model.embeddings.position_embedding.weight":
        return tensor[None]
    return tensor
