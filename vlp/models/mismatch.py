"""Where a model differs from the one that its weights were trained as: nothing fails then, it is only worse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlp.data.transforms import OPENAI_MEAN, OPENAI_STD
from vlp.models.arch import CONFIG_FILE, HF_FILE, Arch
from vlp.models.dual import Dual
from vlp.models.find import read_folder
from vlp.models.state import State, is_openai
from vlp.text import TOKENIZERS
from vlp.text.tokenizers import TokenizerPart, fingerprint_at, resolve_path

_GELU = {True: "QuickGELU", False: "GELU"}
_PREPARED = ("mean", "std", "interpolation", "resize_mode")
_CLOSE = 1e-3
_VISION = ("head_width", "pool_type", "final_ln_after_pool", "attn_pooler_heads", "timm_pool")
_TEXT = ("heads", "pool_type", "no_causal_mask", "use_pad_mask", "correct_cls_mask")
_OTHERS = ("timm_model_name", "hf_model_name")


def mismatches(dual: Dual, source: Path, state: State, *, resized: bool = False) -> list[str]:
    """One sentence for every setting of `dual` other than what `source`, the weights' folder or file, was trained with.

    What is known of weights: the configuration in or beside them, what open_clip publishes of a file of that name, and
    the marks of OpenAI's release. resized: another picture size is meant, and the weights were adapted to it.
    """
    found = _published(source, state)
    if found is None:
        return []
    said = [*_activation(dual, found), *_structure(dual, found), *_preparation(dual, found), *_tokens(dual, found)]
    return [f"{source.name}: {text}" for text in (said if resized else [*said, *_resolution(dual, found)])]


def picture_size(source: Path, state: State) -> tuple[int, int] | None:
    """Height and width of the pictures that these weights were trained on, where a configuration says it."""
    found = _published(source, state)
    size = None if found is None else found.config["vision_cfg"].get("image_size")
    return None if size is None else _both(size)


def _published(source: Path, state: State) -> Arch | None:
    """What the weights were trained with, as far as it is known; None for a file that nobody knows."""
    folder = source if source.is_dir() else source.parent
    if (folder / CONFIG_FILE).is_file() or (source.is_dir() and (folder / HF_FILE).is_file()):
        return read_folder(folder)
    if source.name in (files := _published_files()):
        return _plain(files[source.name])
    if is_openai(state):
        return _plain({"quick_gelu": True, "mean": OPENAI_MEAN, "std": OPENAI_STD})
    return None


def _plain(cfg: Mapping[str, Any]) -> Arch:
    preprocess = {key: cfg[key] for key in _PREPARED if cfg.get(key)}
    return Arch({"quick_gelu": bool(cfg.get("quick_gelu")), "vision_cfg": {}, "text_cfg": {}}, preprocess)


@lru_cache(maxsize=1)
def _published_files() -> dict[str, Mapping[str, Any]]:
    """open_clip's settings of published weights by the name of the file that it downloads."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    known = (get_pretrained_cfg(name, tag) for name, tag in list_pretrained())
    return {cfg["url"].rpartition("/")[2]: cfg for cfg in known if cfg.get("url")}


def _activation(dual: Dual, found: Arch) -> Iterator[str]:
    here, there = (bool(config.get("quick_gelu", False)) for config in (dual.config, found.config))
    if here != there:
        yield (
            f"was trained with {_GELU[there]}, but this architecture uses {_GELU[here]}: take the architecture "
            f'{"with" if there else "without"} "-quickgelu" in its name, or set quick_gelu in its configuration'
        )


def _structure(dual: Dual, found: Arch) -> Iterator[str]:
    """What a tower does with weights that fit it all the same: their shapes do not tell."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for side, defaults, keys in (("vision_cfg", CLIPVisionCfg, _VISION), ("text_cfg", CLIPTextCfg, _TEXT)):
        there, here = found.config[side], dual.config[side]
        if not there or any(there.get(key) != here.get(key) for key in _OTHERS):
            continue  # nothing is known, or the tower is another one: then these words have no meaning
        for key in keys:
            wanted, used = (_pooled(config.get(key, getattr(defaults, key, None))) for config in (there, here))
            if wanted != used:
                yield (
                    f"was trained with {side}.{key} {wanted}, but this architecture has {used}: load the folder of "
                    "these weights, or correct the configuration"
                )


def _pooled(value: Any) -> Any:
    """Of CLIP's vocabulary the end token is the highest id, so both rules find it."""
    return "argmax or eos" if value in ("argmax", "eos") else value


def _preparation(dual: Dual, found: Arch) -> Iterator[str]:
    """How pictures are brought to size and normalised."""
    used, there = dual.transform.model_dump(), found.preprocess
    for key in _PREPARED:
        wanted = there.get(key)
        if wanted is None or wanted == "random":
            continue
        numbers = list(wanted) if isinstance(wanted, list | tuple) else [wanted] * 3
        same = used[key] == wanted if isinstance(wanted, str) else _near(used[key], numbers)
        if not same:
            shown = wanted if isinstance(wanted, str) else [round(float(number), 4) for number in numbers]
            mine = used[key] if isinstance(wanted, str) else [round(number, 4) for number in used[key]]
            yield (
                f"was trained on pictures with {key} {shown}, but they are prepared with {mine}: load the folder of "
                f"these weights, or give an architecture file whose preprocess_cfg says {json.dumps({key: shown})}"
            )


def _tokens(dual: Dual, found: Arch) -> Iterator[str]:
    """Another tokenizer of as many ids, so that the embeddings are taken over; with other ids they start anew."""
    stored, source = found.ours.get("tokenizer"), dual.tokenizer_source
    other_tower = found.config["text_cfg"].get("hf_model_name") != dual.config["text_cfg"].get("hf_model_name")
    if not stored or other_tower or not isinstance(source, TokenizerPart):  # made already: a run that goes on
        return
    there = TOKENIZERS.build(stored)
    where = (source.model_copy(update={"context": there.context}), dual.tokenizer_base)
    if where == (there, found.base) or not (_is_here(there, found.base) and _is_here(*where)):
        return  # the same files; or one is to be fetched first, which nobody asked for
    was, now = there.build(found.base), dual.tokenizer
    if was.vocab_size == now.vocab_size and was.fingerprint != fingerprint_at(now, was.context):
        yield (
            f"was trained with another tokenizer, {there!r}, which makes other ids than this model's; set "
            "model.tokenizer to it, or load the folder of these weights"
        )


def _is_here(part: TokenizerPart, base: Path | None) -> bool:
    path = getattr(part, "path", None)
    return path is None or resolve_path(path, base).exists()


def _resolution(dual: Dual, found: Arch) -> Iterator[str]:
    sizes = {
        "vision_cfg.image_size": found.config["vision_cfg"].get("image_size"),
        "preprocess_cfg.size": found.preprocess.get("size"),
    }
    for key, size in sizes.items():
        both = None if size is None else _both(size)
        if both is not None and both != dual.transform.size:
            yield (
                f"its {key} is {' x '.join(map(str, both))}, but pictures are brought to "
                f"{' x '.join(map(str, dual.transform.size))}: load the folder of these weights, or correct the "
                "configuration"
            )


def _both(size: Any) -> tuple[int, int]:
    """Height and width of one number, or of a list that ends with them."""
    sides = [size] if isinstance(size, int) else list(size)[-2:]
    return int(sides[0]), int(sides[-1])


def _near(used: tuple[float, ...], wanted: list[float]) -> bool:
    return all(abs(mine - theirs) <= _CLOSE for mine, theirs in zip(used, wanted, strict=True))
