"""Several dual encoders side by side as one: their cosines are averaged. A folder of such a model, read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlp.models import pretrained
from vlp.models.dual import Dual
from vlp.untrusted import read_object

FILE = "ensemble.json"
SCHEMA = 1


class Ensemble(nn.Module):
    """K models whose unit features stand side by side, divided by sqrt(K): a cosine is the mean of the K cosines.

    It embeds, searches and is measured as one model of width D_1 + ... + D_K; it is not trained, and what runs a tower
    by itself (prompts, tokens) takes one of `members`. Its scale is the mean of theirs.
    """

    prefix_kind = None
    needs: frozenset[str] = frozenset()

    def __init__(self, members: Sequence[Dual]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble takes 2 models or more, got {len(members)}")
        self.members = nn.ModuleList(members)
        self.heads = nn.ModuleDict()
        self.transform, self.tokenizer = members[0].transform, members[0].tokenizer
        for place, member in enumerate(members):
            if repr(member.transform) != repr(self.transform):
                raise ValueError(
                    f"member {place} reads pictures otherwise than the first: {member.transform!r}, not "
                    f"{self.transform!r}; an ensemble has one transform"
                )
            if member.tokenizer.fingerprint != self.tokenizer.fingerprint:
                raise ValueError(f"member {place} has another tokenizer than the first; an ensemble has one")
        scale = sum(float(member.logit_scale.detach().exp()) for member in members) / len(members)
        self.register_buffer("logit_scale", torch.full((1,), math.log(scale)))
        self.config = {
            "custom_text": True,
            "embed_dim": self.dim,
            "members": [dict(member.config) for member in members],
        }
        self.extra_config = {"members": [dict(member.extra_config) for member in members]}
        self.mismatches = tuple(dict.fromkeys(said for member in members for said in member.mismatches))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            raise AttributeError(
                f"an ensemble of {len(self.members)} models has no `{name}` of its own; take one of its members, "
                "such as the folder member-0 in it"
            ) from None

    @property
    def dim(self) -> int:
        """Width of the joint space: the sum of theirs."""
        return sum(member.dim for member in self._duals)

    @property
    def trims(self) -> bool:
        """Whether every member may have its texts cut to their natural length."""
        return all(member.trims for member in self._duals)

    def encode_image(self, image: Tensor) -> Float[Tensor, "B D"]:
        """Unit features of uint8 pictures [B, 3, H, W]."""
        return self._beside(lambda member: member.encode_image(image))

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Float[Tensor, "n D"]:
        """Unit features of token ids [n, T] with the mask of real tokens [n, T]."""
        return self._beside(lambda member: member.encode_text(ids, mask))

    @property
    def _duals(self) -> list[Dual]:
        return list(self.members)  # type: ignore[arg-type]

    def _beside(self, features: Callable[[Dual], Tensor]) -> Tensor:
        return torch.cat([features(member) for member in self._duals], dim=-1) / math.sqrt(len(self.members))


def save(members: Sequence[Dual], folder: Path | str, *, names: Sequence[str]) -> None:
    """Writes FOLDER/member-0, member-1, ... and ensemble.json, which says by `names` what they were.

    ValueError where the members do not read pictures or texts alike, and for a folder that is there.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there; take another name, or remove it")
    Ensemble(members)
    part = folder.with_name(f"{folder.name}.part")
    for place, member in enumerate(members):
        pretrained.save(member, part / f"member-{place}")
    about = {"schema": SCHEMA, "members": [{"folder": f"member-{k}", "from": name} for k, name in enumerate(names)]}
    (part / FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    part.rename(folder)


def member_folders(folder: Path) -> list[Path]:
    """Of an ensemble; ValueError for a file that says otherwise."""
    about = read_object(folder / FILE)
    members = about.get("members")
    if about.get("schema") != SCHEMA or not isinstance(members, list) or len(members) < 2:
        raise ValueError(f"{folder / FILE}: not an ensemble as this version writes them (schema {SCHEMA})")
    return [folder / f"member-{place}" for place in range(len(members))]
