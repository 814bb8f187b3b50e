"""A context tuned to each picture while it is classified (TPT, Shu et al. 2022)."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.adapter import Adapter, Level
from vlp.adapters.prompted import ContextClassifier, finished, needed, refuse_other_backbone
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.task import Task
from vlp.adapters.tuning import autocast, frozen
from vlp.data.augment import Augment, augmented
from vlp.data.augmix import augmix


class TPT(Adapter):
    """Steps of AdamW on the entropy of the mean prediction over sure views of a picture (2209.07511, section 3.2).

    `copies` random views and the picture itself are encoded once; the context is tuned to the `keep` part of them that
    has the lowest entropy under the context all pictures start from, and reset for the next picture. Nothing is learned
    from other pictures. Ours: views are cut from the picture at the model's size, where theirs are cut from the file,
    and what is drawn depends on seed and pixels alone; pictures go through the text tower several at a time, which
    changes nothing, as AdamW treats every number by itself. `mix`: AugMix behind crop and mirror.
    """

    level: ClassVar[Level] = "towers"
    by_seed: ClassVar[bool] = True

    words: str | None = "a photo of a"
    tokens: int | None = Field(None, ge=1)
    lr: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    steps: int = Field(1, ge=0)
    copies: int = Field(63, ge=1)
    keep: float = Field(0.1, gt=0, le=1)
    augment: Augment = Augment(scale=(0.08, 1.0), flip=0.5)
    mix: bool = False

    def fit(self, encoder: Any, task: Task) -> PerPictureClassifier:
        """A classifier over pictures that tunes the context for each of them; without steps it is zero-shot."""
        prompts = self.prompts(encoder, task)
        context = prompts.first(torch.Generator().manual_seed(task.seed))
        with frozen(encoder), torch.no_grad(), autocast(encoder):
            weight = finished(prompts.encode(context.to(encoder.device)))
        about = {
            "adapter": "tpt",
            "settings": self.model_dump(mode="json"),
            "weights_hash": encoder.weights_hash,
            "seed": task.seed,
            "selection": {"split": "none"},
        }
        return PerPictureClassifier(
            weight, encoder=encoder, learned={"context": context}, names=task.names, scale=encoder.scale, about=about
        )

    def prompts(self, encoder: Any, task: Any) -> ClassPrompts:
        """Around the words, or around random vectors."""
        return ClassPrompts(encoder, task.names, words=self.words, count=self.tokens)

    def cuts(self, encoder: Any, image: UInt8[Tensor, "3 H W"], seed: int) -> UInt8[Tensor, "n 3 H W"]:
        """The picture and its copies; the same pixels and seed give the same ones."""
        pixels = int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:8], "big")
        drawn = [np.random.default_rng([seed, pixels, number]) for number in range(self.copies)]
        made = augmented(image, [(self.augment, rng) for rng in drawn], encoder.dual.transform)
        if self.mix:
            made = [augmix(view, rng) for view, rng in zip(made, drawn, strict=True)]
        return torch.stack([image, *made])


class PerPictureClassifier(ContextClassifier):
    """A Classifier over uint8 pictures; `weight` [C, D] are the class weights that all pictures start from."""

    kind = "test_time_context"
    needs = "pictures"

    def __init__(self, weight: Float[Tensor, "C D"], *, encoder: Any, **given: Any) -> None:
        super().__init__(weight, **given)
        refuse_other_backbone(self, encoder)
        self.encoder, self.part = encoder, TPT.model_validate(self.about["settings"])
        self._prompts = self.part.prompts(encoder, self)

    @classmethod
    def load(cls, folder: Path, encoder: Any = None) -> Self:
        """What `save` wrote, with the model it was fitted on; ValueError without it, or with another."""
        return cls(encoder=needed(encoder, folder), **cls.read(folder))

    def __call__(self, inputs: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Logits of pictures as the model's transform makes them, some at a time."""
        encoder = self.encoder
        at_once = max(1, encoder.batch_size * encoder.dual.context // (len(self.names) * self._prompts.tokens))
        with torch.inference_mode(False), frozen(encoder):
            if not self.part.steps:
                return super().__call__(torch.cat([self._encode(part) for part in inputs.split(encoder.batch_size)]))
            return torch.cat([self._tuned(part) for part in inputs.split(at_once)])

    def _encode(self, pictures: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n D"]:
        encoder = self.encoder
        with torch.no_grad(), autocast(encoder):
            return normalize(encoder.dual.encode_image(pictures.to(encoder.device)).float(), dim=-1).cpu()

    def _tuned(self, pictures: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b C"]:
        """Logits of a few pictures, each with a context of its own."""
        device = self.encoder.device
        first, kept = [], []
        for picture in pictures.cpu():
            views = self.part.cuts(self.encoder, picture, self.about["seed"])
            features = torch.cat([self._encode(part) for part in views.split(self.encoder.batch_size)])
            first.append(features[0])
            kept.append(features[surest(super().__call__(features), self.part.keep)])
        text = self._text(torch.stack(kept).to(device))
        return self.scale * torch.einsum("bd,bcd->bc", torch.stack(first), text)

    def _text(self, kept: Float[Tensor, "b n D"]) -> Float[Tensor, "b C D"]:
        """Class weights for each picture after its steps, on the CPU."""
        encoder, part = self.encoder, self.part
        start = self.learned["context"].to(encoder.device)
        contexts = torch.nn.Parameter(start.expand(len(kept), -1, -1).clone())
        optimizer = torch.optim.AdamW([contexts], lr=part.lr, weight_decay=part.weight_decay)
        scaler = torch.amp.GradScaler(encoder.device.type, init_scale=1000, enabled=encoder.precision == "fp16")
        for _ in range(part.steps):
            optimizer.zero_grad()
            with torch.enable_grad(), autocast(encoder):
                text = self._prompts.encode_each(contexts)
                logits = self.scale * torch.einsum("bnd,bcd->bnc", kept.to(text.dtype), text)
                value = mean_entropy(logits).sum()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        with torch.no_grad(), autocast(encoder):
            return normalize(self._prompts.encode_each(contexts).float(), dim=-1).cpu()


def surest(logits: Float[Tensor, "n C"], part: float) -> Tensor:
    """Rows of the `part` of the views with the lowest entropy, at least one; of equals the first."""
    said = logits.log_softmax(dim=1)
    entropy = -(said.exp() * said).sum(dim=1)
    return entropy.argsort(stable=True)[: max(1, int(len(logits) * part))]


def mean_entropy(logits: Float[Tensor, "b n C"]) -> Float[Tensor, "b"]:
    """Entropy of the mean probability over n views."""
    mean = logits.float().log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])
    return -(mean.exp() * mean).sum(dim=-1)
