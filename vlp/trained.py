"""A saved model with what its run knows of it: which losses taught it, and the heads that evaluation asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlp import config
from vlp.losses import LOSSES
from vlp.losses.loss import Loss
from vlp.losses.objective import Objective
from vlp.models import ensemble, pretrained
from vlp.models.dual import Dual
from vlp.models.ensemble import Ensemble
from vlp.models.state import load_strict, read_weights

TOKENS = frozenset({"image_tokens", "text_tokens"})  # who needs one of these compares tokens
COMPARED = {  # what it compares, and so which maps of patches and words a run has trained
    "filip": "filip compared patches with words, as the words' maps do",
    "wukong": "wukong compared words with mixtures of the patches, never with a patch, as the words' maps do",
    "dreamlip": "dreamlip compared patches with whole captions, as the caption's map does, and no words with anything",
    "flair": "flair compared patches with whole captions through projections of its own, which no map goes through",
}
EVALUATED = ("wukong", "wukong_scale", "filip_scale", "dreamlip", "flair")  # heads: reducer, scales, pooling


def load(path: Path | str, *, weights: Path | str | None = None) -> Dual | Ensemble:
    """As `pretrained.load`; of a run of ours `dual.needs` says what its losses read, and evaluated heads are there.

    A folder that `vlp ensemble` wrote is read as one model.
    """
    if weights is None and (Path(path) / ensemble.FILE).is_file():
        return Ensemble([pretrained.load(member) for member in ensemble.member_folders(Path(path))]).eval()
    dual = pretrained.load(path, weights=weights)
    objective = losses_of(path) if weights is None else ()
    if objective:
        _restore_heads(dual, Objective(objective), pretrained.model_folder(Path(path)) / pretrained.HEADS_FILE)
        dual.set_needs(Objective(objective).needs - {"bias"})
    return dual


def losses_of(path: Path | str) -> tuple[Loss, ...]:
    """The losses of the run that made the model at `path`, from the configuration beside it; () if there is none."""
    if not Path(path).exists() or (Path(path) / ensemble.FILE).is_file():
        return ()
    folder = pretrained.model_folder(Path(path))
    found = next((f for f in (folder.parent / "config.yaml", Path(path) / "config.yaml") if f.is_file()), None)
    specs: Any = config.read_yaml(found).get("losses") if found else None
    return tuple(LOSSES.build(spec) for spec in specs or ())


def compared(losses: tuple[Loss, ...]) -> tuple[str, ...]:
    """What each of those losses that compare tokens has compared."""
    names = [getattr(loss, "of", loss).name for loss in losses if loss.needs & TOKENS]  # `of`: at several widths
    return tuple(COMPARED[name] for name in dict.fromkeys(names))


def knows_tokens(dual: Any) -> bool:
    """Whether a loss of the run that `dual` comes from, or is in, compares tokens."""
    return bool(frozenset(getattr(dual, "needs", ())) & TOKENS)


def _restore_heads(dual: Dual, objective: Objective, file: Path) -> None:
    made = {name: head for name, head in objective.heads(dual).items() if name in EVALUATED}
    state = read_weights(file) if any(head.state_dict() for head in made.values()) else {}
    for name, head in made.items():
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        load_strict(head, own, where=f"{file}: {name}")
    dual.heads.update(made)
    dual.eval()
