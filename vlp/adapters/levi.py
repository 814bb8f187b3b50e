"""Layers of the frozen image tower beside a small model of the task alone (LEVI, Roh et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, gelu, group_norm, interpolate, layer_norm, linear, normalize

from vlp.adapters import archive
from vlp.adapters.adapter import Adapter, Given, Level, class_weights
from vlp.adapters.fitting import Recipe, minimise, pixels, steps_of
from vlp.adapters.selection import Score, choose, folds, score
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuned import refuse_other_backbone
from vlp.adapters.tuning import autocast, in_mode
from vlp.adapters.weight_space import NOT_CHOSEN

SIDE = 32  # of the pictures that the small model sees
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
UNCHOSEN = 1.0  # alpha where nothing can be held out
WEIGHT = "class.weight"
Parts = Mapping[str, Tensor]


class Views(NamedTuple):
    """What the heads see of n pictures: final features, pooled layers, and small pictures for the small model."""

    image: Float[Tensor, "n D"]  # unit norm
    layers: tuple[Tensor, ...]  # each [n, width], layer-normed
    small: Float[Tensor, "n 3 s s"]

    def only(self, rows: Int[Tensor, "m"]) -> Views:
        """These rows."""
        return Views(self.image[rows], tuple(layer[rows] for layer in self.layers), self.small[rows])


class Levi(Adapter):
    """Zero-shot logits + alpha sum_l p_l head_l([layer_l(x); small(x)]), p = softmax(a) (LEVI, 2402.04644).

    layer_l: `layers` blocks of the frozen image tower, evenly spaced, mean over places, and its final feature. small:
    three convolutions on 32 x 32 pixels, trained from scratch on the task. Each head learns by a cross-entropy of its
    own, and all and a by that of the sum. alpha: None chooses from 0, 0.25, ..., 1 on validation or by folds, 1 where
    nothing can be held out. Ours: heads are linear and start at zero, on top of zero-shot logits, where the paper has
    adapting layers of its own; the small model joins at its end, not layer by layer; pictures are not augmented, so
    that the tower runs once.
    """

    level: ClassVar[Level] = "towers"
    wants: ClassVar[tuple[Given, ...]] = ("support",)

    layers: int = Field(4, ge=1)
    width: int = Field(32, ge=1, description="channels of the small model")
    alpha: float | None = Field(None, ge=0)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    epochs: int = Field(30, ge=0)
    batch_size: int = Field(64, ge=1)

    def fit(self, encoder: Any, task: Task) -> LeviClassifier:
        """A classifier over pictures; with alpha 0, or no epochs, the zero-shot one bit for bit."""
        support = self.given(task, "support")
        weight = class_weights(encoder, task)
        alpha, selection = self.alpha, NOT_CHOSEN
        whole: Parts | None = None
        if alpha is None:
            alpha, selection, whole = self._choose(encoder, task, weight)
        if whole is None:
            whole = self._learn(encoder, task, support, weight)
        about = {
            "adapter": "levi",
            "settings": self.model_dump(mode="json"),
            "seed": task.seed,
            "templates_hash": task.templates_hash,
            "selection": selection,
        }
        tensors = {**whole, WEIGHT: weight}
        return LeviClassifier(encoder, tensors, names=task.names, alpha=alpha, layers=self.layers, about=about)

    def _choose(
        self, encoder: Any, task: Task, weight: Float[Tensor, "C D"]
    ) -> tuple[float, dict[str, Any], Parts | None]:
        """Alpha, how it was chosen, and what was learned if that was from the whole support."""
        found = folds(task)
        if not found.folds:
            return UNCHOSEN, NOT_CHOSEN, None
        zero, added = [], []
        parts: Parts = {}
        for fold in found.folds:
            parts = self._learn(encoder, task, fold.learn, weight)
            views = views_of(encoder, pixels(encoder, fold.judge, who="levi"), self.layers)
            with torch.no_grad():
                zero.append(encoder.scale * views.image @ weight.T)
                added.append(mixture(heads(parts, views), parts))
        label = torch.cat([fold.judge.known for fold in found.folds])

        def judge(alpha: float) -> Score:
            return score(torch.cat(zero) + alpha * torch.cat(added), label)

        chosen = choose(GRID, judge, split=found.split, unchosen=UNCHOSEN)
        return chosen.value, chosen.selection, parts if found.split == "validation" else None

    def _learn(self, encoder: Any, task: Task, support: Examples, weight: Float[Tensor, "C D"]) -> Parts:
        views = views_of(encoder, pixels(encoder, support, who="levi"), self.layers)
        rng = torch.Generator().manual_seed(task.seed)
        parts = start(views, classes=len(task.names), width=self.width, rng=rng)
        zero, label = encoder.scale * views.image @ weight.T, support.known

        def loss(rows: Tensor, step: int) -> Tensor:
            each = heads(parts, views.only(rows))
            own = torch.stack([cross_entropy(zero[rows] + head, label[rows]) for head in each]).mean()
            return own + cross_entropy(zero[rows] + mixture(each, parts), label[rows])

        steps = steps_of(self.epochs, len(support), self.batch_size)
        recipe = Recipe(steps, self.batch_size, self.lr, self.weight_decay)
        groups = [{"params": list(parts.values())}]
        minimise(groups, loss, rows=len(support), recipe=recipe, rng=rng, what="levi", quiet=encoder.quiet)
        return {name: tensor.detach() for name, tensor in parts.items()}


class LeviClassifier:
    """A Classifier over uint8 pictures [B, 3, H, W]: zero-shot logits and alpha times those of the heads."""

    needs = "pictures"
    kind = "levi"

    def __init__(
        self,
        encoder: Any,
        tensors: Parts,
        *,
        names: Sequence[str],
        alpha: float,
        layers: int,
        about: Mapping[str, Any] | None = None,
        scale: float | None = None,
    ) -> None:
        self.encoder, self.names, self.about = encoder, tuple(names), dict(about or {})
        self.alpha, self.layers = alpha, layers
        self.scale = encoder.scale if scale is None else scale
        self.tensors = dict(tensors)

    def __call__(self, inputs: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Logits of pictures, on the CPU."""
        views = views_of(self.encoder, inputs, self.layers)
        logits = self.scale * views.image @ self.tensors[WEIGHT].T
        with torch.no_grad():
            return logits + self.alpha * mixture(heads(self.tensors, views), self.tensors)

    def save(self, folder: Path) -> None:
        """Writes heads and small model as safetensors and the rest, with the hash of the backbone, as JSON."""
        facts = {"names": self.names, "scale": self.scale, "alpha": self.alpha, "layers": self.layers}
        here = {"weights_hash": self.encoder.weights_hash, "about": self.about}
        archive.write(folder, self.tensors, {"kind": self.kind, **facts, **here})

    @classmethod
    def load(cls, folder: Path, encoder: Any) -> LeviClassifier:
        """The classifier that `save` wrote; ValueError if it is none, or of another model."""
        tensors, facts = archive.read(folder, kind=cls.kind, tensors=(WEIGHT,))
        refuse_other_backbone(folder, facts["weights_hash"], encoder)
        kept = {key: facts[key] for key in ("names", "scale", "alpha", "layers", "about")}
        return cls(encoder, tensors, **kept)


# -- what the heads see ---------------------------------------------------------------------------------------------


def views_of(encoder: Any, image: UInt8[Tensor, "n 3 H W"], layers: int) -> Views:
    """Features, pooled layers and small pictures, on the CPU, from one pass through the frozen tower."""
    dual = encoder.dual
    blocks = spaced(list(dual.image_blocks)[:-1], layers)  # the end of the last block is the final feature
    features, pooled, small = list[Tensor](), list[list[Tensor]](), list[Tensor]()
    with torch.inference_mode(), in_mode(dual, training=False), outputs_of(blocks) as seen, autocast(encoder):
        for batch in image.split(encoder.batch_size):
            seen.clear()
            batch = batch.to(encoder.device)
            final = normalize(dual.encode_image(batch).float(), dim=-1)
            features.append(final.cpu())
            outputs = [seen[place] for place in range(len(blocks))]
            last = channels_last(outputs, blocks)
            rows = [*(mean_over_places(output, last=last).float() for output in outputs), final]
            pooled.append([layer_norm(row, row.shape[1:]).cpu() for row in rows])
            shrunk = interpolate(batch.float() / 255 - 0.5, size=(SIDE, SIDE), mode="bilinear", antialias=True)
            small.append(shrunk.cpu())
    layered = tuple(torch.cat(parts).clone() for parts in zip(*pooled))
    return Views(torch.cat(features).clone(), layered, torch.cat(small).clone())  # clones: ordinary tensors


def spaced(blocks: Sequence[nn.Module], count: int) -> list[nn.Module]:
    """At most `count` of the blocks at even distances, the last one among them."""
    count = min(count, len(blocks))
    return [blocks[(place + 1) * len(blocks) // count - 1] for place in range(count)]


@contextmanager
def outputs_of(blocks: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """While open the dict gets the output of each block as it is called, by place; afterwards the hooks are gone."""
    seen: dict[int, Tensor] = {}

    def keep(place: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen[place] = output

        return hook

    handles = [block.register_forward_hook(keep(place)) for place, block in enumerate(blocks)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def channels_last(outputs: Sequence[Tensor], blocks: Sequence[nn.Module]) -> bool:
    """Whether a tower's maps are [B, h, w, width], as Swin has them: the widths of its blocks' norms and biases tell.

    All maps together, as one of them may have as many rows as channels.
    """
    widths = [{len(weight) for weight in block.parameters() if weight.ndim == 1} for block in blocks]
    maps = [(output.shape, known) for output, known in zip(outputs, widths, strict=True) if output.ndim == 4]
    fits_last = all(shape[3] in known for shape, known in maps)
    return fits_last and not all(shape[1] in known for shape, known in maps)


def mean_over_places(output: Tensor, *, last: bool) -> Float[Tensor, "B width"]:
    """Mean of tokens [B, T, width], or of a map, [B, h, w, width] if its channels are last, else [B, width, h, w]."""
    if output.ndim == 3:
        return output.mean(dim=1)
    return output.mean(dim=(1, 2) if last else (2, 3))


# -- what is learned ------------------------------------------------------------------------------------------------


def start(views: Views, *, classes: int, width: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Leaves: convolutions drawn within 1 / sqrt(inputs), heads at zero, and their mixture even."""
    parts: dict[str, Tensor] = {"mixture": torch.zeros(len(views.layers))}
    for place, inputs in enumerate((3, width, width)):
        bound = 1 / math.sqrt(9 * inputs)
        parts[f"small.{place}.weight"] = torch.empty(width, inputs, 3, 3).uniform_(-bound, bound, generator=rng)
        parts[f"small.{place}.gain"], parts[f"small.{place}.bias"] = torch.ones(width), torch.zeros(width)
    for place, layer in enumerate(views.layers):
        parts[f"head.{place}.weight"] = torch.zeros(classes, layer.shape[1] + width)
        parts[f"head.{place}.bias"] = torch.zeros(classes)
    return {name: tensor.requires_grad_() for name, tensor in parts.items()}


def small_model(parts: Parts, pictures: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n width"]:
    """Three convolutions that halve the picture, each normed over all of it, and the mean over what is left."""
    x = pictures
    for place in range(3):
        x = conv2d(x, parts[f"small.{place}.weight"], stride=2, padding=1)
        x = gelu(group_norm(x, 1, parts[f"small.{place}.gain"], parts[f"small.{place}.bias"]))
    return x.mean(dim=(2, 3))


def heads(parts: Parts, views: Views) -> list[Float[Tensor, "n C"]]:
    """What every head adds to the logits."""
    small = small_model(parts, views.small)
    return [
        linear(torch.cat([layer, small], dim=1), parts[f"head.{place}.weight"], parts[f"head.{place}.bias"])
        for place, layer in enumerate(views.layers)
    ]


def mixture(each: Sequence[Float[Tensor, "n C"]], parts: Parts) -> Float[Tensor, "n C"]:
    """The heads' logits, weighted by the softmax of what was learned."""
    return sum((p * head for p, head in zip(parts["mixture"].softmax(dim=0), each)), torch.zeros_like(each[0]))
