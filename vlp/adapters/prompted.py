"""What prompt learners return: class weights with the vectors that made them, so that other names can follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.classifier import ABOUT, LinearClassifier
from vlp.adapters.tuning import autocast, frozen
from vlp.untrusted import read_object, read_tensors

LEARNED = "prompts.safetensors"


class ContextClassifier(LinearClassifier):
    """Class weights [C, D] over picture features, and what was learned to make them, by name."""

    kind = "context"

    def __init__(
        self,
        weight: Float[Tensor, "C D"],
        *,
        learned: Mapping[str, Tensor],
        names: Sequence[str],
        scale: float,
        about: Mapping[str, Any],
    ) -> None:
        super().__init__(weight, names=names, scale=scale, about=about)
        self.learned = {name: tensor.detach().float().cpu() for name, tensor in learned.items()}

    def save(self, folder: Path) -> None:
        """Writes tensors as safetensors and the rest as JSON."""
        super().save(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.learned.items()}, folder / LEARNED)
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        (folder / ABOUT).write_text(json.dumps({"kind": self.kind, **about}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote; ValueError naming the folder if that is something else."""
        return cls(**cls.read(folder))

    @classmethod
    def read(cls, folder: Path) -> dict[str, Any]:
        """What `save` wrote, as the constructor takes it."""
        plain = LinearClassifier.load(folder)
        kind = read_object(folder / ABOUT).get("kind")
        if kind != cls.kind:
            raise ValueError(f'{folder / ABOUT}: a classifier of kind "{kind}"; {cls.__name__} reads "{cls.kind}"')
        learned = read_tensors(folder / LEARNED)
        given = {"names": plain.names, "scale": plain.scale, "about": plain.about}
        return {"weight": plain.weight, "learned": learned, **given}


class TowerClassifier(ContextClassifier):
    """A ContextClassifier that runs the encoder's image tower, with visual prompts or without, over uint8 pictures."""

    kind = "prompted_towers"
    needs = "pictures"

    def __init__(self, weight: Float[Tensor, "C D"], *, encoder: Any, **given: Any) -> None:
        super().__init__(weight, **given)
        refuse_other_backbone(self, encoder)
        self.encoder = encoder

    @classmethod
    def load(cls, folder: Path, encoder: Any = None) -> Self:
        """What `save` wrote, with the model it was fitted on; ValueError without it, or with another."""
        return cls(encoder=needed(encoder, folder), **cls.read(folder))

    def features(self, pictures: Tensor) -> Float[Tensor, "B D"]:
        """Unit features of uint8 pictures [B, 3, H, W], with the visual prompts."""
        encoder, rows = self.encoder, []
        visual = self.learned.get("visual", torch.empty(0)).to(encoder.device)
        with frozen(encoder), torch.no_grad(), autocast(encoder), encoder.dual.prompted_image(visual):
            for part in pictures.split(encoder.batch_size):
                rows.append(normalize(encoder.dual.encode_image(part.to(encoder.device)).float(), dim=-1).cpu())
        return torch.cat(rows)

    def __call__(self, inputs: Tensor) -> Float[Tensor, "B C"]:
        """Logits of uint8 pictures [B, 3, H, W], as the model's transform makes them."""
        return super().__call__(self.features(inputs))


def refuse_other_backbone(classifier: Any, encoder: Any) -> None:
    """ValueError unless the classifier was fitted on these weights."""
    made, here = classifier.about.get("weights_hash"), encoder.weights_hash
    if made != here:
        raise ValueError(f"this classifier was fitted on weights {made}, and these are {here}: give the model it is of")


def needed(encoder: Any, folder: Path) -> Any:
    """The encoder; ValueError where there is none."""
    if encoder is None:
        raise ValueError(f"{folder}: this classifier runs the towers it was fitted on: load it with that encoder")
    return encoder


def fitted_by(adapter: Any, encoder: Any, classifier: Any) -> Any:
    """The adapter with the settings that the classifier was fitted with; ValueError if another one fitted it."""
    name = type(adapter).__name__.lower()
    if classifier.about.get("adapter") != name:
        raise ValueError(f"{name} was given a classifier fitted by {classifier.about.get('adapter')}; use that adapter")
    refuse_other_backbone(classifier, encoder)
    return type(adapter).model_validate(classifier.about["settings"])


@torch.no_grad()
def finished(features: Tensor) -> Float[Tensor, "C D"]:
    """Class weights as classifiers hold them: fp32, of unit norm, on the CPU."""
    return normalize(features.detach().float(), dim=-1).cpu()
