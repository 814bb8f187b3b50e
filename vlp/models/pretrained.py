"""Models from and to disk: open_clip folders and weight files, Hugging Face CLIP and SigLIP, runs of ours."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from vlp import checkpoint, dist
from vlp.models import hf_clip
from vlp.models.arch import CONFIG_FILE, HF_FILE, OURS_FILE, Arch
from vlp.models.assemble import SIGLIP_BIAS, Settings, assemble
from vlp.models.dual import Dual
from vlp.models.find import find, names, read_folder
from vlp.models.hub import not_here
from vlp.models.mismatch import mismatches, picture_size
from vlp.models.resize import adapt
from vlp.models.state import State, head_state, load_strict, read_weights, to_open_clip, to_ours, weight_file
from vlp.models.stretch import StretchText
from vlp.registry import Part

WEIGHTS_FILE, HEADS_FILE = "open_clip_model.safetensors", "heads.safetensors"
_NO_WEIGHTS = "an architecture without weights; give them too (--weights FILE, in Python weights=FILE)"
_WANTED = (
    "; a model is a run, a folder of open_clip or Hugging Face, or the name of an architecture with --weights FILE"
)
log = logging.getLogger(__name__)


def save(dual: Dual, folder: Path | str) -> None:
    """Write `dual` as a folder that `load` and plain open_clip (`local-dir:`) read.

    open_clip has no words for a Hugging Face text tower made from a configuration, nor for arguments of timm: such
    models only `load` reads. Prefixes stay among the weights, so that open_clip refuses a model whose texts it would
    read without them. Heads of losses go into a file of their own.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    transform: Any = dual.transform
    _write_json(folder / CONFIG_FILE, {"model_cfg": dual.config, "preprocess_cfg": transform.to_open_clip()})
    save_file(_plain(to_open_clip(dual)), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if heads := head_state(dual):
        save_file(_plain(heads), folder / HEADS_FILE, metadata={"format": "pt"})
    ours = {"schema": 1, "tokenizer": _stored_tokenizer(dual, folder), "heads": list(dual.heads), **dual.extra_config}
    _write_json(folder / OURS_FILE, ours)


def load(path: Path | str, *, weights: Path | str | None = None) -> Dual:
    """The model at `path`, in eval mode; `mismatches` of it says where it is not as its weights were trained.

    path: a folder written by `save` or open_clip, a run of ours (its newest checkpoint), a Hugging Face CLIP or SigLIP
    folder; or the name of an architecture, together with a file of `weights`.
    """
    found = find(str(path)) if weights is not None else arch_of(str(path))
    if weights is not None and not Path(weights).exists():
        raise ValueError(f"weights: {not_here(str(weights), arch=str(path))}")
    source = Path(weights) if weights is not None else model_folder(Path(path))
    dual = assemble(found, Settings())
    state = _read(source)
    dual.mismatches = _told(mismatches(dual, source, state))
    state = _named(state, source)
    if "logit_bias" in state and dual.logit_bias is None:
        dual.logit_bias = torch.nn.Parameter(torch.zeros(1))
        dual.config["init_logit_bias"] = SIGLIP_BIAS  # or open_clip could not read what `save` makes of it
    load_strict(dual, state, where=str(source))
    dual.set_needs(())
    return dual.eval()


def load_weights(dual: Dual, folder: Path | str) -> None:
    """Put the weights of a folder written by `save` into `dual`, heads included; everything must fit."""
    folder = model_folder(Path(folder))
    state = _read(folder)
    _told(mismatches(dual, folder, state))
    load_strict(dual, _named(state, folder), where=str(folder), skip=("heads.",))
    heads = read_weights(folder / HEADS_FILE) if (folder / HEADS_FILE).is_file() else {}
    load_strict(dual.heads, heads, where=str(folder / HEADS_FILE))


def start(
    dual: Dual, source: str, *, text: bool = True, stretch: StretchText | None = None, arch: str | None = None
) -> list[str]:
    """Start `dual` from the weights at `source`; returns one line for everything that was adapted or left out.

    Positions are interpolated to another picture size or context; embeddings of another vocabulary stay at random.
    text: False where the text tower is another one, and only the image tower starts from `source`.
    stretch: how text positions become more, in place of interpolation. arch: its name, to say where weights are found.
    """
    path = model_folder(Path(source)) if Path(source).is_dir() else Path(source)
    if not path.exists():
        raise ValueError(f"model.pretrained: {not_here(source, arch=arch)}")
    state = _read(path)
    _told(mismatches(dual, path, state, resized=True))
    state = _named(state, path)
    if not text:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("text.", "prefix."))}
    state, notes = adapt(dual, state, stretch=stretch, size=picture_size(path, state))
    notes += _fit_prefixes(dual, state)
    if not text:
        notes.append("text tower: not from these weights, model.text is another one")
    load_strict(dual, state, where=f"model.pretrained: {source}", skip=("heads.",) if text else ("heads.", "text."))
    for note in notes:
        log.warning("model.pretrained: %s: %s", source, note)
    return notes


def arch_of(source: str) -> Arch:
    """The architecture that lies beside the weights at `source`."""
    path = Path(source)
    if path.is_dir():
        return read_folder(model_folder(path))
    if path.is_file() and path.suffix != ".json" and (path.parent / CONFIG_FILE).is_file():
        return read_folder(path.parent)
    if path.is_file() and path.suffix != ".json":
        raise ValueError(f"{source}: a file of weights says nothing of its architecture; name that too (arch: NAME)")
    if not path.exists():
        if source in names():
            raise ValueError(f"{source}: {_NO_WEIGHTS}")
        raise ValueError(not_here(source, wanted=_WANTED))
    raise ValueError(f"{source}: {_NO_WEIGHTS}")


def model_folder(path: Path) -> Path:
    """The folder with the model: `path` itself, its `model` folder, or that of the newest checkpoint of a run."""
    for folder in (path, path / "model"):
        if (folder / CONFIG_FILE).is_file() or (folder / HF_FILE).is_file():
            return folder
    if (path / "ensemble.json").is_file():
        raise ValueError(
            f"{path}: an ensemble is used as a whole only; here one of its members is wanted: {path}/member-0"
        )
    saved = checkpoint.newest(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    for rejected, reason in saved.rejected:
        log.warning("passed over %s: %s", rejected, reason)
    if saved.path is not None:
        return saved.path / "model"
    if path.is_file():
        return path
    raise ValueError(
        f"{path}: no model here: neither {CONFIG_FILE}, nor {HF_FILE} of transformers, nor checkpoints/step-*/model"
    )


def weights_hash(dual: Dual) -> str:
    """Hash of all that features depend on but tokenizer and transform: names, shapes and values of the weights."""
    digest = hashlib.sha256(json.dumps([dual.config, dual.extra_config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(to_open_clip(dual).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(source: Path) -> State:
    """Weights as they are named in a file, or in a folder of any known kind."""
    return read_weights(weight_file(source) if source.is_dir() else source)


def _named(state: State, source: Path) -> State:
    """The same named as in `Dual`."""
    if source.is_dir() and not (source / CONFIG_FILE).is_file():
        return hf_clip.convert(state, source)
    return to_ours(state)


def _fit_prefixes(dual: Dual, state: State) -> list[str]:
    """Give `state` the prefixes of `dual` where it has none that fit, and no others; says what was done."""
    own = {name: tensor for name, tensor in dual.state_dict().items() if name.startswith("prefix.")}
    there = {name: state.pop(name) for name in list(state) if name.startswith("prefix.")}
    fits = {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in there.items()}
    state.update(there if fits else own)
    if fits:
        return []
    left = "those of the weights left out, " if there else ""
    return [f"prefix: {left}{'starts at random' if own else 'this model has none'}"]


def _told(found: list[str]) -> tuple[str, ...]:
    """The same, each said aloud, once of all processes."""
    for text in found if dist.is_main() else ():
        warnings.warn(text, stacklevel=3)
    return tuple(found)


def _stored_tokenizer(dual: Dual, folder: Path) -> dict[str, Any] | None:
    from vlp.text import TOKENIZERS

    part: Any = dual.tokenizer_source
    files = isinstance(part, Part) and getattr(part, "path", None)
    if not isinstance(part, Part) or dual.tokenizer_base is not None or (files and Path(files).exists()):
        tokenizer: Any = dual.tokenizer
        if not hasattr(tokenizer, "save"):
            return None  # not one of our parts: whoever made it has to bring it along again
        part = tokenizer.save(folder)
    stored: dict[str, Any] = TOKENIZERS.dump(part)
    return stored


def _plain(state: State) -> State:
    """On the CPU, contiguous, and without shared memory, as safetensors wants it."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
