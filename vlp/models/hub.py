"""What to say of weights that are not on this machine: what open_clip and the hub call them, and how to fetch them."""

from __future__ import annotations

import re
from pathlib import Path

from vlp.paths import refuse_url
from vlp.registry import nearest

_ADDRESS = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".json", ".yaml", ".yml")


def not_here(source: str, *, arch: str | None = None, wanted: str = "") -> str:
    """That `source` is no file or folder, and what else it may be: a model of the hub, open_clip's name of weights.

    arch: the architecture that the weights are for; with it open_clip's names lead to the folder of the hub.
    wanted: what may be given, said where it may have been meant as a path; so is a near file, if there is one.
    ValueError of its own for the URL of something else.
    """
    said = f"{source}: no such file or folder (in {Path.cwd()})"
    if (model := hub_id(source)) is not None:
        also = wanted if model == source else ""  # which may be a path all the same
        return f"{said}{also}; models of the hub are not downloaded here: {_fetch(model)}"
    refuse_url(source)
    if tagged := _published(source):
        remedy = _fetch(tagged[arch]) if arch in tagged else "fetch the file and give its path"
        return f"{said}; open_clip calls weights so, and they are not downloaded here: {remedy}"
    path = Path(source)
    near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    return said + wanted + (near if near.startswith("; did") else "")


def hub_id(source: str) -> str | None:
    """`org/name` of what reads as a model of the Hugging Face hub: hf-hub:org/name, its address, or just org/name.

    None where `org` is a folder here, or the name one of a file: these are paths.
    """
    if source.startswith("hf-hub:"):
        return source.removeprefix("hf-hub:")
    if found := _ADDRESS.match(source):
        return found[1]
    path = Path(source)
    return source if _ID.fullmatch(source) and path.suffix not in _FILES and not path.parent.is_dir() else None


def _published(tag: str) -> dict[str | None, str]:
    """By architecture the model of the hub that holds the weights which open_clip calls so; empty for no such name."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_models_by_tag

    found = {arch: get_pretrained_cfg(arch, tag).get("hf_hub", "") for arch in list_pretrained_models_by_tag(tag)}
    return {arch: str(place).strip("/") for arch, place in found.items() if place}


def _fetch(model: str) -> str:
    return f"`hf download {model} --local-dir models/{model.split('/')[-1]}`, and give that folder"
