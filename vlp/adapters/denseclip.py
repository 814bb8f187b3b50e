"""DenseCLIP: words that look at the picture, and a segmentation head that sees their scores (2112.01518)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize, relu

from vlp.adapters import archive
from vlp.adapters.dense_task import DenseAdapter, DenseTask, PatchMaps
from vlp.adapters.fitting import seeded
from vlp.adapters.pixel_training import Course, judge_of, pixel_loss, train
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.tuning import frozen


class DenseClip(DenseAdapter):
    """Context-aware pixel-text prompts and a segmentation head on a frozen tower (section 3, equations 2 to 5).

    t: names behind `context` learned vectors (0: in the task's templates, fixed). `layers` of a transformer decoder let
    t look at [mean patch, patches]: t <- norm(t + gamma Dec(t, v)), gamma a channel's own, `gamma` at first. Score map
    s = patches . t. `head` reads the patches before the projection with s beside them, and is trained by cross-entropy;
    s / temperature by the same, times `auxiliary`. Without a head s / temperature is the result; temperature None: the
    model's, with which gamma 0, context 0 and 0 epochs give the zero-shot mask.

    Ours: the image tower stays frozen (theirs learns at a tenth of the rate), so its features are encoded once and
    pictures are not augmented; names end in a full stop; the head has one scale, enlarged twice by 2; the context
    starts at a standard deviation of 0.02, not 1; the mean patch stands in for the pooled feature, which a window of a
    tower that pools by a class token lacks. With validation the epoch of the best mean IoU counts, else the last.
    """

    context: int = Field(8, ge=0)
    layers: int = Field(3, ge=0)
    width: int = Field(256, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    gamma: float = Field(1e-4, ge=0)
    head: bool = True
    head_width: int = Field(256, ge=1)
    temperature: float | None = Field(0.07, gt=0)
    auxiliary: float = Field(0.4, ge=0)
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    epochs: int = Field(20, ge=0)
    batch: int = Field(32, ge=1)

    @property
    def hidden(self) -> bool:
        return self.head

    def fit(self, encoder: Any, task: DenseTask) -> DenseClipClassifier:
        """A classifier of patches; the text tower is not needed any more."""
        support, device = self.support(task), encoder.device
        fixed = task.weights(encoder).to(device)
        hidden = None if support.maps.hidden is None else support.maps.hidden.shape[-1]
        with frozen(encoder), seeded(device, task.seed):
            part = PixelText(self, classes=len(fixed), dim=fixed.shape[1], hidden=hidden, scale=encoder.scale)
            whole = nn.ModuleDict({"part": part.to(device)})
            prompts = ClassPrompts(encoder, task.names, count=self.context) if self.context else None
            context = nn.ParameterList()
            if prompts is not None:
                context.append(prompts.first(torch.Generator().manual_seed(task.seed)))
                whole["context"] = context

            def words() -> Tensor:
                return fixed if prompts is None else prompts.encode(context[0])

            def loss(rows: Tensor) -> Tensor:
                mask = support.mask[rows].long().to(device)
                found = part(support.maps.only(rows, device=device), words())
                main = pixel_loss(found.scores, mask)
                return main + self.auxiliary * pixel_loss(found.map, mask) if self.head else main

            selection = train(
                whole,
                torch.optim.AdamW(_groups(whole, self.weight_decay), lr=self.lr),
                loss,
                pictures=len(support),
                course=Course(self.epochs, self.batch, power=0.9),
                seed=task.seed,
                judge=judge_of(lambda maps: part(maps, words()).scores, task, batch=self.batch, device=device),
            )
            with torch.no_grad():
                learned = words().detach()
        about = {"adapter": "denseclip", "settings": self.model_dump(mode="json"), "selection": selection}
        return DenseClipClassifier(part.cpu().requires_grad_(False), learned.cpu(), names=task.names, about=about)


def _groups(whole: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Norms, biases and gamma do not decay."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in whole.parameters():
        kinds[parameter.ndim < 2].append(parameter)
    return [{"params": kinds[0], "weight_decay": decay}, {"params": kinds[1], "weight_decay": 0.0}]


class Scored(NamedTuple):
    """Scores of pixels, and the score map of the patches behind the auxiliary loss, [B, C, ., .]."""

    scores: Tensor
    map: Tensor


class PixelText(nn.Module):
    """Everything that is learned but for the context vectors."""

    def __init__(self, settings: DenseClip, *, classes: int, dim: int, hidden: int | None, scale: float) -> None:
        super().__init__()
        self.sizes = {"classes": classes, "dim": dim, "hidden": hidden, "scale": scale}
        self.scale = scale if settings.temperature is None else 1 / settings.temperature
        self.decoder = ContextDecoder(settings, dim) if settings.layers else None
        self.gamma = nn.Parameter(torch.full((dim,), settings.gamma))
        self.head = None
        if settings.head:
            assert hidden is not None
            self.head = SegmentationHead(hidden + classes, settings.head_width, classes)

    def forward(self, maps: PatchMaps, words: Float[Tensor, "C D"]) -> Scored:
        """Scores of the pixels of pictures."""
        seen = self.in_context(maps, words)
        logits = maps.as_map(self.scale * maps.patches @ seen.transpose(-1, -2))
        if self.head is None:
            return Scored(logits, logits)
        assert maps.hidden is not None
        beside = torch.cat([maps.as_map(maps.hidden), logits / self.scale], dim=1)
        return Scored(self.head(beside), logits)

    def in_context(self, maps: PatchMaps, words: Float[Tensor, "C D"]) -> Tensor:
        """Unit words after they looked at the pictures [B, C, D]; where gamma is 0 the words as they are, [C, D]."""
        if self.decoder is None or (not self.training and not self.gamma.any()):
            return words
        whole = normalize(maps.patches.mean(dim=1, keepdim=True), dim=-1)
        texts = words.expand(len(maps), -1, -1)
        found = self.decoder(texts, torch.cat([whole, maps.patches], dim=1))
        return normalize(texts + self.gamma * found, dim=-1)


class ContextDecoder(nn.Module):
    """Texts [B, C, D] that attend to each other and to visual tokens [B, N, D], in a narrower space."""

    def __init__(self, settings: DenseClip, dim: int) -> None:
        super().__init__()
        width = settings.width
        self.memory = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.LayerNorm(width))
        self.texts = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                settings.heads,
                4 * width,
                settings.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, texts: Float[Tensor, "B C D"], visual: Float[Tensor, "B N D"]) -> Float[Tensor, "B C D"]:
        """What the texts found."""
        seen, x = self.memory(visual), self.texts(texts)
        for layer in self.layers:
            x = layer(x, seen)
        found: Tensor = self.out(x)
        return found


class SegmentationHead(nn.Module):
    """Panoptic FPN's branch for one scale (1901.02446): convolution, group norm, ReLU, twice as large; two times."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(channels, width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(32, width), width) for _ in range(2))
        self.classes = nn.Conv2d(width, classes, 1)

    def forward(self, x: Float[Tensor, "B W h w"]) -> Float[Tensor, "B C H W"]:
        """Scores of four times as many places a side."""
        x = self.lateral(x)
        for conv, norm in zip(self.convs, self.norms):
            x = interpolate(relu(norm(conv(x))), scale_factor=2, mode="bilinear", align_corners=False)
        found: Tensor = self.classes(x)
        return found


class DenseClipClassifier:
    """A classifier of patches: what DenseCLIP learned, with the words [C, D] as its context vectors made them."""

    needs = "patches"

    def __init__(
        self,
        part: PixelText,
        words: Float[Tensor, "C D"],
        *,
        names: Sequence[str],
        about: Mapping[str, Any],
    ) -> None:
        self.part, self.words, self.names, self.about = part.eval(), words, tuple(names), dict(about)

    @torch.no_grad()
    def __call__(self, maps: PatchMaps) -> Float[Tensor, "B C h w"]:
        """Logits: with a head of four times the grid's places a side, else of patches."""
        device = maps.patches.device
        found: Scored = self.part.to(device)(maps, self.words.to(device))
        return found.scores

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        tensors = {f"part.{name}": value.cpu() for name, value in self.part.state_dict().items()}
        facts = {"kind": "denseclip", "names": self.names, "sizes": self.part.sizes, "about": self.about}
        archive.write(folder, {**tensors, "words": self.words}, facts)

    @classmethod
    def load(cls, folder: Path) -> DenseClipClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        tensors, facts = archive.read(folder, kind="denseclip", tensors=("words",))
        words = tensors.pop("words")
        part = PixelText(DenseClip.model_validate(facts["about"]["settings"]), **facts["sizes"])
        part.load_state_dict({name.removeprefix("part."): value for name, value in tensors.items()})
        return cls(part.requires_grad_(False), words, names=facts["names"], about=facts["about"])
