"""Masks by class weights alone: words compared with patches (MaskCLIP, 2112.01071), or a linear layer on patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vlp.adapters import archive
from vlp.adapters.dense_task import DenseAdapter, DenseTask, PatchMaps
from vlp.adapters.pixel_training import Course, judge_of, pixel_loss, train

Read = Literal["patches", "hidden"]


class PatchClassifier:
    """A classifier of patches with class weights [C, W]: scores [B, C, h, w] = scale * patches @ weights + bias."""

    needs = "patches"

    def __init__(
        self,
        weight: Float[Tensor, "C W"],
        *,
        names: Sequence[str],
        scale: float,
        bias: Float[Tensor, "C"] | None = None,
        reads: Read = "patches",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if len(weight) != len(names):
            raise ValueError(f"{len(weight)} rows of class weights for {len(names)} class names")
        self.weight, self.scale, self.names, self.reads = weight, scale, tuple(names), reads
        self.bias = torch.zeros(len(names), dtype=weight.dtype, device=weight.device) if bias is None else bias
        self.about = dict(about or {})

    def __call__(self, maps: PatchMaps) -> Float[Tensor, "B C h w"]:
        """Logits of patches."""
        vectors = maps.patches if self.reads == "patches" else maps.hidden
        if vectors is None:
            raise ValueError("this classifier reads patches before the projection: PatchMaps.hidden is None")
        weight, bias = self.weight.to(vectors.device), self.bias.to(vectors.device)
        return maps.as_map(self.scale * vectors @ weight.T + bias)

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        facts = {"kind": "patches", "names": self.names, "scale": self.scale, "reads": self.reads, "about": self.about}
        archive.write(folder, {"weight": self.weight, "bias": self.bias}, facts)

    @classmethod
    def load(cls, folder: Path) -> PatchClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        tensors, facts = archive.read(folder, kind="patches", tensors=("weight", "bias"))
        known = {key: facts[key] for key in ("names", "scale", "reads", "about")}
        return cls(tensors["weight"], bias=tensors["bias"], **known)


class ZeroShotMask(DenseAdapter):
    """MaskCLIP's mask without refinements: the cosine of patches with class weights, times the model's scale."""

    @property
    def learns(self) -> bool:
        return False

    def fit(self, encoder: Any, task: DenseTask) -> PatchClassifier:
        """A classifier of patches from words alone."""
        about = {"adapter": "zeroshot_mask", "templates": list(task.templates), "selection": {"split": "none"}}
        return PatchClassifier(task.weights(encoder), names=task.names, scale=encoder.scale, about=about)


class LinearPatches(DenseAdapter):
    """A linear layer on frozen patches, trained by the cross-entropy of all pixels after bilinear interpolation.

    It starts from the zero-shot weights (init: zeroshot), which 0 epochs leave as they are, or from nothing. reads:
    patches in the joint space, or before the projection, where nothing is known to start from. AdamW, `lr` in logits;
    with validation the epoch of the best mean IoU counts, else the last one.
    """

    reads: Read = "patches"
    init: Literal["zeroshot", "zero"] = "zeroshot"
    lr: float = Field(1e-2, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    epochs: int = Field(20, ge=0)
    batch: int = Field(32, ge=1)

    @property
    def hidden(self) -> bool:
        return self.reads == "hidden"

    @property
    def variant(self) -> str:
        return "" if self.reads == "patches" else self.reads

    def fit(self, encoder: Any, task: DenseTask) -> PatchClassifier:
        """A classifier of patches, with one weight row a class."""
        support, device = self.support(task), encoder.device
        start = task.weights(encoder).to(device)
        if self.reads == "hidden":
            assert support.maps.hidden is not None
            start = torch.zeros(len(task.names), support.maps.hidden.shape[-1], device=device)
        part = nn.ParameterDict(
            {
                "weight": nn.Parameter(torch.zeros_like(start) if self.init == "zero" else start.clone()),
                "bias": nn.Parameter(torch.zeros(len(start), device=device)),
            }
        )

        def made() -> PatchClassifier:
            known: dict[str, Any] = {"names": task.names, "scale": encoder.scale, "reads": self.reads}
            return PatchClassifier(part["weight"], bias=part["bias"], **known)

        groups = [
            {"params": [part["weight"]], "lr": self.lr / encoder.scale, "weight_decay": self.weight_decay},
            {"params": [part["bias"]], "lr": self.lr, "weight_decay": 0.0},
        ]
        selection = train(
            part,
            torch.optim.AdamW(groups),
            lambda rows: pixel_loss(
                made()(support.maps.only(rows, device=device)), support.mask[rows].long().to(device)
            ),
            pictures=len(support),
            course=Course(self.epochs, self.batch, power=0.9),
            seed=task.seed,
            judge=judge_of(lambda maps: made()(maps), task, batch=self.batch, device=device),
        )
        done = made()
        done.weight, done.bias = done.weight.detach().cpu(), done.bias.detach().cpu()
        done.about = {"adapter": "linear_patches", "settings": self.model_dump(mode="json"), "selection": selection}
        return done
