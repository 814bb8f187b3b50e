"""What a fitted adapter means beyond its classes: features of a changed image tower, and a vector for each class."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.saved import FILE, kind_of
from vlp.adapters.tuned import HEAD, SIDES, TunedClassifier, with_tensors
from vlp.embed import Encoder

CALLS = (LinearClassifier.__call__, TowerClassifier.__call__)  # of those whose logits are features by class vectors


class AdaptedEncoder(Encoder):
    """An Encoder whose pictures go through the image tower as the classifier changed it.

    Texts go through the text tower, with the tensors that were tuned, if some were; learned context stands before
    class names alone, so free words do without it. ValueError for a classifier that leaves the image tower as it is.
    """

    def __init__(self, encoder: Encoder, classifier: Any, *, hash_: str, **changed: Any) -> None:
        check_image_tower(classifier)
        own = ("device", "batch_size", "workers", "precision", "token_gb", "quiet")
        super().__init__(encoder.dual, **{**{name: getattr(encoder, name) for name in own}, **changed})
        self.classifier, self._hash = classifier, hash_

    @property
    def weights_hash(self) -> str:
        """Of the weights and the adapter: features of others do not compare."""
        return hashlib.sha256(f"{super().weights_hash} {self._hash}".encode()).hexdigest()[:16]

    def _image(self, image: Tensor) -> Tensor:
        found: Tensor = self.classifier.features(image)
        return found

    def _encode_texts(self, texts: Any) -> Tensor:
        state = getattr(self.classifier, "state", {})
        tuned = {name: tensor for name, tensor in state.items() if name.startswith(SIDES["text"])}
        plain = super()._encode_texts
        return with_tensors(self.dual, tuned, lambda: plain(texts)) if tuned else plain(texts)


def changes_image_tower(classifier: Any) -> bool:
    """Whether pictures have other features with it than the model's own."""
    return isinstance(classifier, TowerClassifier | TunedClassifier)


def check_image_tower(classifier: Any) -> None:
    """ValueError unless the classifier changed the image tower, and so has features of its own."""
    if changes_image_tower(classifier):
        return
    kind = kind_of(classifier)
    why = {
        "patches": "it scores patches, not pictures",
        "features": "it works on the model's own features and changes nothing in the image tower",
    }.get(classifier.needs, "it makes no features of a picture alone")
    raise ValueError(f"a fitted {kind} has no picture features of its own: {why}; embed with the model without it")


def class_vectors(classifier: Any) -> Float[Tensor, "C D"]:
    """Unit vectors whose cosine with the features of pictures orders these as the logits of that class do.

    ValueError for a classifier that has none, as its logits are no linear function of features.
    """
    if isinstance(classifier, TunedClassifier):
        return normalize(classifier.state[HEAD].detach().float().cpu(), dim=-1)
    if isinstance(classifier, LinearClassifier) and type(classifier).__call__ in CALLS:
        return normalize(classifier.weight.detach().float().cpu(), dim=-1)
    raise ValueError(
        f"a fitted {kind_of(classifier)} has no vector for each class: what it says depends on the picture in another "
        "way; `classify` pictures with it"
    )


def folder_hash(folder: Path) -> str:
    """16 hex digits of everything that was saved of a fitted adapter."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("classifier.json"), folder / FILE]):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
