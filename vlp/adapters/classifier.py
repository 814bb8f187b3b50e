"""What every adapter that ends in class weights returns: logits = scale * features @ weights + bias."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from vlp.untrusted import read_object, read_tensors

WEIGHTS, ABOUT = "classifier.safetensors", "classifier.json"
SCHEMA = 1


class LinearClassifier:
    """A Classifier over unit-norm picture features, with class weights [C, D]."""

    needs = "features"

    def __init__(
        self,
        weight: Float[Tensor, "C D"],
        *,
        names: Sequence[str],
        scale: float = 100.0,
        bias: Float[Tensor, "C"] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if len(weight) != len(names):
            raise ValueError(f"{len(weight)} rows of class weights for {len(names)} class names")
        self.weight, self.scale, self.names = weight, scale, tuple(names)
        self.bias = torch.zeros(len(names), dtype=weight.dtype, device=weight.device) if bias is None else bias
        self.about = dict(about or {})  # how it was made: adapter, templates, hash of the weights of the model

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits of features of unit norm."""
        return self.scale * inputs @ self.weight.T + self.bias

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, folder / WEIGHTS)
        text = json.dumps({"schema": SCHEMA, "names": self.names, "scale": self.scale, "about": self.about}, indent=1)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LinearClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        try:
            about = read_object(folder / ABOUT)
            tensors = read_tensors(folder / WEIGHTS)
        except ValueError as error:
            raise ValueError(f"{folder} holds no classifier ({ABOUT} and {WEIGHTS}): {error}") from None
        if about.get("schema") != SCHEMA:
            raise ValueError(f"{folder / ABOUT}: schema {about.get('schema')!r}; this version reads {SCHEMA}")
        return cls(
            tensors["weight"], names=about["names"], scale=about["scale"], bias=tensors["bias"], about=about["about"]
        )
