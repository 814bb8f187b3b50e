"""Where an architecture comes from: a configuration of this package, one of open_clip's, a JSON file, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlp.models import hf_clip
from vlp.models.arch import CONFIG_FILE, HF_FILE, OURS_FILE, Arch
from vlp.registry import nearest
from vlp.untrusted import read_object

CONFIGS = Path(__file__).parent / "configs"


def names() -> list[str]:
    """Names of the configurations that come with this package, then open_clip's."""
    import open_clip

    return [path.stem for path in sorted(CONFIGS.glob("*.json"))] + list(open_clip.list_models())


def find(arch: str) -> Arch:
    """The architecture called `arch`: a name, a .json file, a folder (or `local-dir:FOLDER`), or `hf-hub:...`."""
    import open_clip

    if arch.startswith("hf-hub:"):
        return _from_hub(arch.removeprefix("hf-hub:"))
    path = Path(arch.removeprefix("local-dir:"))
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".json" and path.is_file():
        return _read_config(path)
    if (CONFIGS / f"{arch}.json").is_file():
        return _read_config(CONFIGS / f"{arch}.json")
    config = open_clip.get_model_config(arch)
    if config is None:
        raise ValueError(f'no architecture "{arch}" (a name, a .json file, or a folder){nearest(arch, names())}')
    return Arch(config, _published_preprocess(arch))


def read_folder(folder: Path) -> Arch:
    """The architecture in a folder written by `pretrained.save`, by open_clip, or by transformers."""
    if (folder / CONFIG_FILE).is_file():
        arch = _read_config(folder / CONFIG_FILE)
        if (folder / OURS_FILE).is_file():
            arch.ours = read_object(folder / OURS_FILE)
        arch.base = folder
        return arch
    if (folder / HF_FILE).is_file():
        return hf_clip.arch(folder)
    raise ValueError(f"{folder}: neither {CONFIG_FILE} (open_clip) nor {HF_FILE} (transformers) is there")


def _read_config(path: Path) -> Arch:
    content = read_object(path)
    config = content.get("model_cfg", content)
    for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)):
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            what = "missing" if not isinstance(config, dict) or key not in config else f"no {kind.__name__}"
            raise ValueError(
                f'{path}: "{key}" is {what}; an open_clip model configuration has embed_dim, vision_cfg, text_cfg'
            )
    return Arch(config, content.get("preprocess_cfg", {}))


def _from_hub(name: str) -> Arch:
    from huggingface_hub import hf_hub_download

    return _read_config(Path(hf_hub_download(name, CONFIG_FILE)))


def _published_preprocess(name: str) -> dict[str, Any]:
    """How pictures were prepared for the published weights of `name`, where all of them agree (SigLIP: squash, 0.5)."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
    agreed = [{key: cfg[key] for key in keys if cfg.get(key)} for cfg in known]
    return agreed[0] if agreed and all(one == agreed[0] for one in agreed) else {}
