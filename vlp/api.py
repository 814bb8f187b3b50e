"""`vlp.load(PATH)`: a trained model for people who want features, class probabilities or similarities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoded, Encoder
from vlp.pictures import Picture
from vlp.text.templates import checked, checked_names, simple
from vlp.types import BadSampleError


def load(path: str | Path, *, weights: str | Path | None = None, device: str | None = None) -> VLP:
    """The model at `path`, ready to use; by default on the GPU when there is one.

    `path`: a run folder of ours, a folder with an open_clip model, an open_clip model name (with `weights`, its file),
    or a Hugging Face CLIP or SigLIP folder.
    """
    from vlp.models.pretrained import load as load_dual

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return VLP(load_dual(str(path), weights=weights), device=chosen, path=str(path), weights=weights)


class VLP:
    """A dual encoder with its transform and tokenizer: pictures and texts in, features or probabilities out.

    Pictures are paths, bytes or PIL images; one that cannot be read is an error that names it. Features lie on the CPU.
    """

    def __init__(
        self,
        dual: Any,
        *,
        device: str = "cpu",
        path: str = "",
        weights: str | Path | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.dual = dual
        self.path = path  # where it was loaded from; an index remembers it
        self.weights = str(weights) if weights is not None else None
        self.encoder = Encoder(dual, device=device, batch_size=batch_size, workers=workers, quiet=True)

    @property
    def weights_hash(self) -> str:
        """Hash of the weights: features of different hashes do not compare."""
        return self.encoder.weights_hash

    def embed_images(self, images: Picture | Iterable[Picture]) -> Float[Tensor, "n D"]:
        """Features of unit norm of paths, bytes or PIL images; one picture alone gives one row."""
        given = _several(images)
        if not given:
            return torch.empty(0, 0)
        found = self.encoder.images(given)
        if found.skips:
            raise BadSampleError(found.skips[0].reason, _explain(given, found))
        return found.features

    def embed_texts(self, texts: str | Sequence[str]) -> Float[Tensor, "n D"]:
        """Features of unit norm of the texts, in their order."""
        return self.encoder.texts([texts] if isinstance(texts, str) else list(texts))

    def embed_classes(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Float[Tensor, "C D"]:
        """Unit-norm mean of each class's prompts, as in CLIP; default: the seven simple templates of open_clip."""
        return self.classifier(names, templates).weight

    def classifier(self, names: Sequence[str], templates: Sequence[str] | None = None) -> LinearClassifier:
        """The zero-shot classifier of the classes, over features, at the model's own temperature."""
        if isinstance(names, str):
            raise ValueError(f'names is the text "{names}"; give a list of class names')
        prompts = checked(templates) if templates is not None else simple()
        return ZeroShot().fit(self.encoder, Task(checked_names(names), prompts))

    def classify(
        self,
        images: Picture | Iterable[Picture],
        names: Sequence[str],
        templates: Sequence[str] | None = None,
        *,
        top: int | None = 5,
    ) -> list[dict[str, float]]:
        """Probabilities of each picture's `top` classes (None: all), highest first; over all names they sum to 1."""
        classifier = self.classifier(names, templates)
        classes = classifier.names
        count = len(classes) if top is None else min(max(top, 1), len(classes))
        best = classifier(self.embed_images(images)).double().softmax(-1).topk(count, dim=-1)
        return [
            {classes[place]: value for place, value in zip(places, values, strict=True)}
            for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def similarity(self, images: Picture | Iterable[Picture], texts: str | Sequence[str]) -> Float[Tensor, "n m"]:
        """Cosine of every picture with every text."""
        return self.embed_images(images) @ self.embed_texts(texts).T


def _several(images: Any) -> list[Picture]:
    """A list of pictures; a path, bytes or a PIL image is one of them."""
    single = isinstance(images, str | bytes | Path) or not isinstance(images, Iterable)
    return [images] if single else list(images)


def _explain(given: Sequence[Picture], found: Encoded) -> str:
    """Which pictures could not be read, and why."""
    bad = sorted(set(range(len(given))) - set(found.kept))
    names = [str(given[i]) if isinstance(given[i], str | Path) else f"picture {i}" for i in bad[:3]]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{', '.join(names)}{more} cannot be read as a picture ({found.skips[0].detail or found.skips[0].reason})"
