"""Words for a flaw and for its absence, as WinCLIP has them (arXiv 2303.14814)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from eval.view import View
from vlp.adapters.task import short_hash
from vlp.text.templates import fill

# Words of WinCLIP's appendix: states of the object, and sentences around them
NORMAL_STATES = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
)  # fmt: skip
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    *(f"a {kind} photo of {article} {{}}."
      for kind in ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry") for article in ("the", "a")),
    *(f"a photo of {article} {size}{{}}." for size in ("", "small ", "large ") for article in ("the", "a")),
    *(f"a photo of {article} {{}} for {what}."
      for what in ("visual inspection", "anomaly detection") for article in ("the", "a")),
)  # fmt: skip


class Prompts(NamedTuple):
    """Templates with a slot for a state, and states with a slot for the object."""

    templates: tuple[str, ...]
    normal: tuple[str, ...]
    anomalous: tuple[str, ...]

    def sides(self, view: View, name: str) -> Float[Tensor, "2 D"]:
        """The mean features of an object's normal and of its anomalous prompts, of unit norm, in double precision."""
        filled = [[fill(state, name) for state in states] for states in (self.normal, self.anomalous)]
        sides = [[fill(template, state) for state in states for template in self.templates] for states in filled]
        features = view.text_features([*sides[0], *sides[1]]).double()
        parts = features.split([len(side) for side in sides])
        found: Tensor = torch.stack([normalize(part.mean(0), dim=0) for part in parts])
        return found

    def direction(self, view: View, name: str) -> Float[Tensor, "D"]:
        """The anomalous feature minus the normal one."""
        sides = self.sides(view, name)
        return sides[1] - sides[0]

    @property
    def hash(self) -> str:
        """Of all words."""
        return short_hash([word for words in self for word in words])
