"""A context shifted by style and content of the picture, alike for its views (GOPro, Singha et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from vlp.adapters.adapter import Given, Level
from vlp.adapters.prompted import ContextClassifier, finished, fitted_by, needed, refuse_other_backbone
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.task import Task
from vlp.adapters.three_views import MOCO, Views, three_views
from vlp.adapters.tuning import Tuner, autocast, frozen, seeded_linear
from vlp.data.augment import Augment


class Pictures(NamedTuple):
    """Unit features [B, D], and of every block's output the mean and standard deviation over tokens [B, width]."""

    features: Tensor
    mean: list[Tensor]
    std: list[Tensor]


class GOPro(Tuner):
    """Vectors v_m + rho(x) in front of the names, rho from all blocks of the image tower (2308.11605, section 3).

    Of block b: style S_b((mean + std) / 2) and content C_b(mean) over its tokens, S_b and C_b linear; rho weights the
    L means of both with L learned numbers and a bias. loss = CE + semantic * (mean (t - t')^2 + mean (t - t'')^2) +
    contrast * SimCLR(h(f), h(f')), t, t', t'' the class features for a crop, MoCo v3's view and AugMix of a crop. The
    image tower is frozen, so contrast reaches its own projection h (linear, BatchNorm) alone, and the prompts are the
    same without it; in the released code not even h learns. Ours: all views are made of the file, each picture has its
    own AugMix (theirs has views of the first one of the batch), sizes are the tower's. `separate`: a rho for each
    vector, where theirs share one. `zero_start`: rho is 0 at first, and so untrained it is zero-shot.
    """

    level: ClassVar[Level] = "towers"
    wants: ClassVar[tuple[Given, ...]] = ("support",)

    batch: int = Field(4, ge=1)
    words: str | None = "a photo of a"
    tokens: int | None = Field(None, ge=1)
    semantic: float = Field(1.0, ge=0)
    contrast: float = Field(0.1, ge=0)
    temperature: float = Field(0.1, gt=0)
    separate: bool = False
    zero_start: bool = False
    crop: Augment = Augment(scale=(0.08, 1.0), flip=0.5)
    strong: Augment = MOCO

    def usual_epochs(self, shots: int) -> int:
        """50."""
        return 50

    def fit(self, encoder: Any, task: Task) -> StyleClassifier:
        """A classifier that runs both towers for each picture, over pictures."""
        support = self.given(task, "support")
        prompts = self.prompts(encoder, task.names)
        learned = self._start(encoder, prompts, task)
        scale = encoder.scale

        def loss(views: Views) -> Tensor:
            with torch.no_grad():
                seen = [described(encoder, image) for image in (views.plain, views.strong, views.mixed)]
            text = [prompts.encode_each(learned.contexts(one)) for one in seen]
            logits = scale * torch.einsum("bd,bcd->bc", seen[0].features.to(text[0].dtype), text[0])
            value = cross_entropy(logits, views.label)
            value = value + self.semantic * (mse_loss(text[0], text[1]) + mse_loss(text[0], text[2]))
            if self.contrast and len(views.label) > 1:
                value = value + self.contrast * simclr(
                    *(learned.projected(one.features) for one in seen[:2]), temperature=self.temperature
                )
            return value

        shots = three_views(support, encoder, plain=self.crop, strong=self.strong, size=self.batch, seed=task.seed)
        with frozen(encoder):
            said = self.tune(encoder, learned, shots, loss, epochs=self.epochs_for(support))
        return self._classifier(encoder, task, learned.state_dict(), said)

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> StyleClassifier:
        """What was learned in front of other names."""
        made: GOPro = fitted_by(self, encoder, classifier)
        return made._classifier(encoder, task, classifier.learned, {"fitted": list(classifier.names)})

    def prompts(self, encoder: Any, names: Sequence[str]) -> ClassPrompts:
        """Around the words, or around random vectors."""
        return ClassPrompts(encoder, names, words=self.words, count=self.tokens)

    def _start(self, encoder: Any, prompts: ClassPrompts, task: Task) -> Shifted:
        rng = torch.Generator().manual_seed(task.seed)
        context = prompts.first(rng)
        made = Shifted(context, widths(encoder), encoder.dual.dim, heads=len(context) if self.separate else 1, rng=rng)
        if self.zero_start:
            nn.init.zeros_(made.rho.weight)
            nn.init.zeros_(made.rho.bias)
        return made.to(encoder.device)

    def _classifier(
        self, encoder: Any, task: Task, learned: Mapping[str, Tensor], said: dict[str, Any]
    ) -> StyleClassifier:
        prompts = self.prompts(encoder, task.names)
        with frozen(encoder), torch.no_grad(), autocast(encoder):
            weight = finished(prompts.encode(learned["context"].detach().to(encoder.device)))
        about = self.about(encoder, task, **said)
        return StyleClassifier(
            weight, encoder=encoder, learned=learned, names=task.names, scale=encoder.scale, about=about
        )


class Shifted(nn.Module):
    """What is learned: the context [M, width], the maps of every block, the weights of blocks, and the projection."""

    def __init__(
        self, context: Float[Tensor, "M w"], widths: Sequence[int], dim: int, *, heads: int, rng: torch.Generator
    ) -> None:
        super().__init__()
        width = context.shape[1]
        self.context = nn.Parameter(context)
        self.style = nn.ModuleList(seeded_linear(own, width, rng) for own in widths)
        self.content = nn.ModuleList(seeded_linear(own, width, rng) for own in widths)
        self.rho = seeded_linear(len(widths), heads, rng)
        self.projection, self.norm = seeded_linear(dim, dim, rng), nn.BatchNorm1d(dim)

    def contexts(self, seen: Pictures) -> Float[Tensor, "B M w"]:
        """The context of each picture."""
        rows = [
            (style((mean + std) / 2) + content(mean)) / 2
            for style, content, mean, std in zip(self.style, self.content, seen.mean, seen.std, strict=True)
        ]
        shift: Tensor = self.rho(torch.stack(rows, dim=-1)).transpose(1, 2)  # [B, 1 or M, width]
        return self.context + shift

    def projected(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Unit vectors that are contrasted."""
        return normalize(self.norm(self.projection(features)), dim=-1)


def simclr(one: Float[Tensor, "B D"], other: Float[Tensor, "B D"], *, temperature: float) -> Tensor:
    """Each of 2 B unit vectors against the other view of its picture, among all but itself (2002.05709, eq. 1)."""
    both = torch.cat([one, other])
    alike = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(alike, torch.arange(len(both), device=both.device).roll(len(one)))


def described(encoder: Any, image: Tensor) -> Pictures:
    """Features and statistics of uint8 pictures [B, 3, H, W]; ValueError for a tower without tokens."""
    with block_outputs(encoder.dual.image_blocks) as outputs:
        features = encoder.dual.encode_image(image.to(encoder.device))
    if any(x.ndim != 3 for x in outputs):
        raise ValueError("GOPro takes style and content from tokens, and this image tower has maps; use a transformer")
    tokens = [x.float() for x in outputs]
    return Pictures(features.float(), [x.mean(dim=1) for x in tokens], [x.std(dim=1, correction=0) for x in tokens])


@contextmanager
def block_outputs(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While open, what each block makes is put into the list, by hooks that are gone afterwards."""
    found: list[Tensor] = []
    take: Callable[..., None] = lambda module, inputs, output: found.append(output)  # noqa: E731
    handles = [block.register_forward_hook(take) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def widths(encoder: Any) -> list[int]:
    """Of the output of each block of the image tower."""
    blank = torch.zeros(1, 3, *encoder.dual.transform.size, dtype=torch.uint8)
    with frozen(encoder), torch.no_grad(), autocast(encoder):
        return [mean.shape[1] for mean in described(encoder, blank).mean]


class StyleClassifier(ContextClassifier):
    """A Classifier over uint8 pictures, through both towers; `weight` [C, D] are its class weights without a shift."""

    kind = "style_context"
    needs = "pictures"

    def __init__(self, weight: Float[Tensor, "C D"], *, encoder: Any, **given: Any) -> None:
        super().__init__(weight, **given)
        refuse_other_backbone(self, encoder)
        self.encoder = encoder
        part = GOPro.model_validate(self.about["settings"])
        self._prompts = part.prompts(encoder, self.names)
        maps = [self.learned[f"style.{b}.weight"].shape[1] for b in range(self.learned["rho.weight"].shape[1])]
        heads, dim = len(self.learned["rho.weight"]), len(self.learned["projection.bias"])
        self._shifted = Shifted(self.learned["context"], maps, dim, heads=heads, rng=torch.Generator())
        self._shifted.load_state_dict(self.learned)
        self._shifted.to(encoder.device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, encoder: Any = None) -> Self:
        """What `save` wrote, with the model it was fitted on; ValueError without it, or with another."""
        return cls(encoder=needed(encoder, folder), **cls.read(folder))

    def __call__(self, inputs: Tensor) -> Float[Tensor, "B C"]:
        """Logits of uint8 pictures [B, 3, H, W], some at a time."""
        encoder, rows = self.encoder, []
        at_once = max(1, encoder.batch_size * encoder.dual.context // (len(self.names) * self._prompts.tokens))
        with frozen(encoder), torch.no_grad(), autocast(encoder):
            for part in inputs.split(min(at_once, encoder.batch_size)):
                seen = described(encoder, part)
                text = self._prompts.encode_each(self._shifted.contexts(seen)).float()
                rows.append((seen.features[:, None] * text).sum(dim=2).cpu())  # in fp32, whatever the towers run in
        return self.scale * torch.cat(rows)
