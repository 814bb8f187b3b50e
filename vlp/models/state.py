"""Weights under open_clip's names: reading files, renaming, and checking that they fit."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlp.models.build import class_of
from vlp.models.dual import Dual
from vlp.models.hub import not_here
from vlp.untrusted import read_object, read_tensors

_MAX_PACKED = 16 << 20  # bytes that a TorchScript archive, which is told so, may unpack to beyond its own
State = dict[str, Tensor]
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
_TEXT = ("positional_embedding", "token_embedding.", "transformer.", "ln_final.", "text_projection", "cls_emb")
_OPENAI = ("input_resolution", "context_length", "vocab_size")
_SCALARS = ("logit_scale", "logit_bias")


def weight_file(folder: Path) -> Path:
    """The file with weights in a folder of open_clip's or of transformers'."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / "model.safetensors.index.json").is_file():
        return folder / "model.safetensors.index.json"
    raise ValueError(f"{folder}: none of {', '.join(WEIGHT_FILES)} is there")


def read_weights(path: Path) -> State:
    """Name to tensor, from .safetensors (also sharded, by its index) or a torch file; nothing in it is executed."""
    if not path.exists():
        raise ValueError(not_here(str(path)))
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.name.endswith(".index.json"):
        return {name: tensor for shard in _parts(path) for name, tensor in read_weights(shard).items()}
    _refuse_packed(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read without running code from it ({type(error).__name__}); "
            "save its state_dict as .safetensors first (a TorchScript archive: torch.jit.load(...).state_dict())"
        ) from error
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]  # open_clip's training checkpoints
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds no state_dict; known are plain ones and open_clip's checkpoints")
    for name, tensor in content.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} says {tuple(tensor.shape)}, and has bytes for fewer numbers")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _parts(index: Path) -> list[Path]:
    """The files that the index of a sharded file names, all of them beside it."""
    places = read_object(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    for name in names or [""]:
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise ValueError(f'{index}: weight_map names "{name}", which is no file of weights beside it')
    return [index.parent / name for name in names]


def _refuse_packed(path: Path) -> None:
    """ValueError for a torch file that unpacks to far more than it has: torch compresses no tensor."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: a damaged torch file: {error}") from error
    if unpacked > path.stat().st_size + _MAX_PACKED:
        raise ValueError(f"{path}: {path.stat().st_size} bytes that unpack to {unpacked}, which torch never writes")


def is_openai(state: State) -> bool:
    """Whether these weights carry the marks of OpenAI's release, which was trained with QuickGELU."""
    return any(name in state for name in _OPENAI)


def to_ours(state: State) -> State:
    """The same weights named as in `Dual`; what open_clip's CLIP keeps at the top moves under `text.`."""
    plain = "positional_embedding" in state or "token_embedding.weight" in state
    ours = {}
    for name, tensor in state.items():
        if name in _OPENAI or name.endswith("embeddings.position_ids") or name in ("attn_mask", "text.attn_mask"):
            continue
        if name.startswith("text_decoder."):
            continue  # CoCa's caption decoder has no place in two towers
        if plain and name.startswith(_TEXT):
            name = f"text.{name}"
        if name in _SCALARS and tensor.numel() != 1:
            raise ValueError(f"{name} of the weights has shape {tuple(tensor.shape)}; it is one number")
        ours[name] = tensor.reshape(1) if name in _SCALARS else tensor
    return ours


def to_open_clip(dual: Dual) -> State:
    """Weights of `dual` as open_clip names and shapes them: no heads, 0-d scale and bias."""
    plain = class_of(dual.config) == "CLIP"
    state = {}
    for name, tensor in dual.state_dict().items():
        if name.startswith("heads."):
            continue
        if plain:
            name = name.removeprefix("text.")
        state[name] = tensor.detach().reshape(()) if name in _SCALARS else tensor.detach()
    return state


def head_state(dual: Dual) -> State:
    return {name: tensor.detach() for name, tensor in dual.heads.state_dict().items()}


def load_strict(module: torch.nn.Module, state: State, *, where: str, skip: Iterable[str] = ()) -> None:
    """Load weights that must fit name by name and shape by shape; ValueError lists what does not, in short.

    skip: beginnings of names of `module` that the weights need not have.
    """
    own = module.state_dict()
    left_out = tuple(skip)
    faults = [
        _listed("missing", [n for n in own if n not in state and not n.startswith(left_out)]),
        _listed("not known here", [n for n in state if n not in own]),
        _listed(
            "of another shape",
            [
                f"{n} {tuple(t.shape)} for {tuple(own[n].shape)}"
                for n, t in state.items()
                if n in own and t.shape != own[n].shape
            ],
        ),
        _listed("no floats", [f"{n} {t.dtype}" for n, t in state.items() if n in own and _whole_for_float(t, own[n])]),
    ]
    if any(faults):
        raise ValueError(f"{where}: the weights do not fit this architecture: " + "; ".join(f for f in faults if f))
    module.load_state_dict(state, strict=False)


def _whole_for_float(found: Tensor, own: Tensor) -> bool:
    """Whether whole numbers stand for floats: quantised weights are nothing without their scales."""
    return own.is_floating_point() and not found.is_floating_point()


def _listed(what: str, names: list[str], *, shown: int = 4) -> str:
    if not names:
        return ""
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}: {', '.join(names[:shown])}{more}"
