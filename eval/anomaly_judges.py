"""What says how anomalous pictures and their patches are: words, normal patches beside them, or a fitted adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eval.anomaly_words import Prompts
from eval.view import View
from vlp.adapters.dense_task import PatchMaps
from vlp.data.schema import DataError

_AT_ONCE = 64  # pictures
Verdict = tuple[Tensor, Tensor | None]  # scores [n] of pictures and [n, P] of places, row by row of a grid


class ByWords:
    """Softmax over (normal, anomalous) of an object's prompts; with normal patches the mean with the distance to them.

    patches: [N, P, D] of the view, None where only pictures are scored. reference: [R, D] of each object.
    """

    def __init__(
        self, view: View, prompts: Prompts, patches: Tensor | None, reference: Mapping[str, Tensor] | None
    ) -> None:
        self.view, self.prompts, self.patches, self.reference = view, prompts, patches, reference

    @property
    def head(self) -> str:
        """What scores, for records."""
        return "global" if self.reference is None else "global and nearest normal patch"

    def __call__(self, name: str, rows: Sequence[int]) -> Verdict:
        """Of these pictures of an object."""
        if self.reference is not None:
            known_objects(self.view, self.reference, name)
        direction, scale = self.prompts.direction(self.view, name), self.view.encoder.scale
        chosen = torch.tensor(list(rows))
        scores = torch.sigmoid(scale * self.view.image[chosen].double() @ direction)  # of two, softmax is this
        if self.patches is None:
            return scores, None
        maps, device = torch.empty(len(chosen), self.patches.shape[1]), self.view.encoder.device
        known = None if self.reference is None else self.reference[name].to(device)
        for place, row in enumerate(chosen.tolist()):
            patches = self.patches[row].float()
            maps[place] = torch.sigmoid(scale * patches.double() @ direction)
            if known is not None:
                far = ((1 - (patches.to(device) @ known.T).amax(dim=1)) / 2).cpu()
                maps[place] = (maps[place] + far) / 2
                scores[place] = (scores[place] + far.max()) / 2
        return scores, maps


class ByAdapter:
    """A fitted classifier of anomalies. normal: patches of normal pictures of each object, for those that compare."""

    def __init__(
        self, view: View, classifier: Any, maps: PatchMaps, normal: Mapping[str, PatchMaps] | None, *, name: str
    ) -> None:
        self.view, self.classifier, self.maps, self.normal, self.name = view, classifier, maps, normal, name

    @property
    def head(self) -> str:
        """What scores, for records."""
        return self.name if self.normal is None else f"{self.name} beside normal pictures"

    def __call__(self, name: str, rows: Sequence[int]) -> Verdict:
        """Of these pictures of an object."""
        if self.normal is not None:
            known_objects(self.view, self.normal, name)
        device = self.view.encoder.device
        known = None if self.normal is None else self.normal[name]
        beside = None if known is None else known.only(range(len(known)), device=device)
        found = [
            self.classifier(self.maps.only(part, device=device), beside)
            for part in torch.tensor(list(rows)).split(_AT_ONCE)
        ]
        places = torch.cat([one.places.flatten(1) for one in found]).cpu()
        return torch.cat([one.image for one in found]).double().cpu(), places


def known_objects(view: View, known: Mapping[str, Any], name: str) -> None:
    """DataError where there is no normal picture of an object."""
    if name not in known:
        raise DataError(f'{view.dataset}: normal: has no picture of "{name}", only of {sorted(known)}')


def flat(patches: Float[Tensor, "n P D"]) -> Float[Tensor, "nP D"]:
    """All patches in a row, fp32."""
    return patches.float().flatten(0, 1)
