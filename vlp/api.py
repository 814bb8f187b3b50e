"""`vlp.load(PATH)`: a trained model for people who want features, class probabilities or similarities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vlp.adapters import saved
from vlp.adapters.adapted import AdaptedEncoder, changes_image_tower, class_vectors, folder_hash
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.pseudo_shots import logits_over
from vlp.adapters.restricted import Restricted
from vlp.adapters.task import Examples, Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoded, Encoder
from vlp.pictures import Decoded, Picture
from vlp.registry import nearest
from vlp.text.templates import checked, checked_names, simple
from vlp.types import BadSampleError, Skip, Tokenizer


class Classified(NamedTuple):
    """Probabilities by class of the pictures that could be read, which ones they are, and why the others could not."""

    classes: list[dict[str, float]]
    kept: list[int]  # positions in what was given, ascending
    skips: list[Skip]


def load(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    adapter: str | Path | None = None,
    any_backbone: bool = False,
    **unknown: Any,
) -> VLP:
    """The model at `path`, ready to use; by default on the GPU when there is one. TypeError for `unknown` words.

    `path`: a run folder of ours, a folder with an open_clip model, an open_clip model name (with `weights`, its file),
    or a Hugging Face CLIP or SigLIP folder. adapter: a folder that `vlp tune --out` wrote, refused where it was fitted
    on another model; `any_backbone` takes one of stored features that do not say which model they are of.
    """
    from vlp.trained import load as load_dual

    for name, value in unknown.items():
        known = ("weights", "device", "adapter", "any_backbone")
        said = f"; weights=FILE is what open_clip has as pretrained={value!r}" if name == "pretrained" else ""
        raise TypeError(f'load() has no "{name}"{said or nearest(name, known)}')
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = VLP(load_dual(str(path), weights=weights), device=chosen, path=str(path), weights=weights)
    return found if adapter is None else found.adapted(adapter, any_backbone=any_backbone)


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
        self.plain = self.encoder  # without what an adapter changes in the image tower
        self.adapter: str | None = None  # folder of the fitted adapter
        self.fitted: Any = None

    def adapted(self, folder: str | Path, *, any_backbone: bool = False) -> VLP:
        """This model with a fitted adapter; ValueError where it is of another model, or scores no whole pictures.

        One that changes the image tower changes what pictures and texts are embedded as. Any other leaves that alone,
        and says what `classify` says.
        """
        folder = Path(folder)
        fitted = saved.load(folder, self.plain, any_backbone=any_backbone)
        if fitted.needs == "patches":
            raise ValueError(f"{folder}: a {saved.kind_of(fitted)} scores patches; `vlp eval` with a suite uses it")
        found = copy(self)
        found.adapter, found.fitted, found.encoder = str(folder), fitted, self.plain
        if changes_image_tower(fitted):
            found.encoder = AdaptedEncoder(self.plain, fitted, hash_=folder_hash(folder))
        return found

    @property
    def weights_hash(self) -> str:
        """Hash of the weights, and of an adapter that changes them: features of different hashes do not compare."""
        return self.encoder.weights_hash

    def preprocess(self, picture: Picture) -> Float[Tensor, "3 H W"]:
        """What the image tower reads of a path, bytes or a PIL image: resized, cropped, normalised, on the CPU."""
        transform = self.dual.transform
        found: Tensor = transform.normalize(transform(Path(picture) if isinstance(picture, str) else picture))
        return found

    @property
    def tokenizer(self) -> Tokenizer:
        """Called with texts it gives the padded token ids, long [n, context], as open_clip's tokenizers do."""
        found: Tokenizer = self.dual.tokenizer
        return found

    def encoder_for(self, *, batch_size: int, workers: int, quiet: bool) -> Encoder:
        """One that encodes many pictures; ValueError with an adapter that leaves the image tower as it is."""
        given: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "quiet": quiet}
        if self.fitted is None:
            return Encoder(self.dual, device=self.plain.device, **given)
        return AdaptedEncoder(self.plain, self.fitted, hash_=folder_hash(Path(str(self.adapter))), **given)

    def embed_images(self, images: Picture | Iterable[Picture]) -> Float[Tensor, "n D"]:
        """Features of unit norm of paths, bytes or PIL images; one picture alone gives one row."""
        given = _several(images)
        return self._embedded(given, self.encoder) if given else torch.empty(0, self._width)

    @property
    def _width(self) -> int:
        """Numbers in a picture's features: of some adapters those of another space than the model's own."""
        return self.dual.dim if self.encoder is self.plain else class_vectors(self.fitted).shape[1]

    def _embedded(self, given: list[Picture], encoder: Encoder) -> Float[Tensor, "n D"]:
        found = encoder.images(given)
        if found.skips:
            raise BadSampleError(found.skips[0].reason, _explain(given, found))
        return found.features

    def embed_texts(self, texts: str | Sequence[str]) -> Float[Tensor, "n D"]:
        """Features of unit norm of the texts, in their order."""
        given = [texts] if isinstance(texts, str) else list(texts)
        return self.encoder.texts(given) if given else torch.empty(0, self.dual.dim)

    def embed_classes(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Float[Tensor, "C D"]:
        """Unit-norm mean of each class's prompts, as in CLIP; default: the seven simple templates of open_clip."""
        return self.classifier(names, templates).weight

    def embed_class(self, name: str) -> Float[Tensor, "D"]:
        """The unit vector that the adapter compares features with for one of its classes; ValueError without one."""
        if self.fitted is None:
            raise ValueError(f'class "{name}" is asked of a fitted adapter, and there is none: give its folder')
        vectors = class_vectors(self.fitted)
        return vectors[Restricted(self.fitted, [name]).places[0]]

    def classifier(self, names: Sequence[str], templates: Sequence[str] | None = None) -> LinearClassifier:
        """The zero-shot classifier of the classes, over features, at the model's own temperature."""
        if isinstance(names, str):
            raise ValueError(f'names is the text "{names}"; give a list of class names')
        prompts = checked(templates) if templates is not None else simple()
        return ZeroShot().fit(self.encoder, Task(checked_names(names), prompts))

    def classify(
        self,
        images: Picture | Iterable[Picture],
        names: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        *,
        top: int | None = 5,
    ) -> list[dict[str, float]]:
        """Probabilities of each picture's `top` classes (None: all), highest first; over all names they sum to 1.

        names: of any classes; with an adapter of those it was fitted to (None: all), and templates are its own.
        """
        given = _several(images)
        found = self.classify_readable(given, names, templates, top=top)
        if found.skips:
            raise BadSampleError(found.skips[0].reason, _explain(given, found))
        return found.classes

    def classify_readable(
        self,
        images: Iterable[Picture],
        names: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        *,
        top: int | None = 5,
    ) -> Classified:
        """As `classify`, but a picture that cannot be read is left out and listed in `skips`."""
        classifier, given = self._classifier(names, templates), list(images)
        classes = classifier.names
        count = len(classes) if top is None else min(max(top, 1), len(classes))
        logits, kept, skips = self._logits(classifier, given)
        best = logits.double().softmax(-1).topk(count, dim=-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        said = [{classes[place]: value for place, value in zip(*row, strict=True)} for row in rows]
        return Classified(said, kept, skips)

    def _classifier(self, names: Sequence[str] | None, templates: Sequence[str] | None) -> Any:
        """The fitted one, over these of its names; without an adapter the zero-shot one."""
        if self.fitted is None:
            if names is None:
                raise ValueError("which classes? give names, or a model with a fitted adapter")
            return self.classifier(names, templates)
        if templates is not None:
            raise ValueError(
                f"{self.adapter}: a fitted adapter has the prompts it was fitted with; leave templates out"
            )
        return self.fitted if names is None else Restricted(self.fitted, checked_names(names))

    def _logits(self, classifier: Any, images: list[Picture]) -> tuple[Float[Tensor, "n C"], list[int], list[Skip]]:
        """Logits of the pictures that can be read, which ones these are, and why the others cannot."""
        if classifier.needs == "features":
            features, kept, skips = self.plain.images(images)
            return classifier(features) if kept else torch.empty(0, len(classifier.names)), kept, skips
        decoded, kept, skips = Decoded(images, self.dual.transform), [], []
        for place in range(len(images)):
            found = decoded[place][1]  # pixels are not kept: all of them may be more than there is memory for
            if isinstance(found, Skip):
                skips.append(found)
            else:
                kept.append(place)
        if not kept:
            return torch.empty(0, len(classifier.names)), kept, skips
        examples = Examples(torch.empty(len(kept), 0), pictures=[images[place] for place in kept])
        return logits_over(classifier, self.plain, examples, who="vlp"), kept, skips

    def similarity(self, images: Picture | Iterable[Picture], texts: str | Sequence[str]) -> Float[Tensor, "n m"]:
        """Cosine of every picture with every text."""
        return self.embed_images(images) @ self.embed_texts(texts).T


def _several(images: Any) -> list[Picture]:
    """A list of pictures; a path, bytes or a PIL image is one of them."""
    single = isinstance(images, str | bytes | Path) or not isinstance(images, Iterable)
    return [images] if single else list(images)


def _explain(given: Sequence[Picture], found: Encoded | Classified) -> str:
    """Which pictures could not be read, and why."""
    bad = sorted(set(range(len(given))) - set(found.kept))
    names = [str(given[i]) if isinstance(given[i], str | Path) else f"picture {i}" for i in bad[:3]]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{', '.join(names)}{more} cannot be read as a picture ({found.skips[0].detail or found.skips[0].reason})"
