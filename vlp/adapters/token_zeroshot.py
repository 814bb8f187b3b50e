"""Zero-shot classification by tokens: late interaction of a picture with every prompt (FILIP, 2111.07783)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.adapter import Adapter, Level
from vlp.adapters.task import Task
from vlp.adapters.tuned import refuse_features
from vlp.embed import Encoder
from vlp.kernels.late import PadMax
from vlp.text.templates import fill
from vlp.token_scores import token_scores
from vlp.token_store import ImageTokens, TextTokens

Combine = Literal["mean_sim", "mean_prob"]


class TokenZeroShot(Adapter):
    """score(c) = mean over templates k of S^I(picture, prompt_kc), S^I the mean over patches of the best word.

    Similarities are averaged, not features, since tokens of two templates do not correspond; `mean_prob` averages the
    softmax over classes instead (Wukong). `blend` is the share of the pooled head in each logit: 0 tokens alone, 1 the
    pooled head alone, with `mean_sim` that of `zeroshot`. Tokens have the scale of the loss that compared them, if it
    has one of its own or a fixed temperature; else, and in the pooled head, it is the model's.
    """

    level: ClassVar[Level] = "towers"

    combine: Combine = "mean_sim"
    blend: float = Field(0.0, ge=0.0, le=1.0)
    pad_max: PadMax = "exclude"

    def fit(self, encoder: Encoder, task: Task) -> TokenClassifier:
        """A classifier over ImageTokens; it holds templates * C prompts, which `encoder.token_gb` bounds."""
        refuse_features(task, who="token_zeroshot")
        prompts = [fill(template, name) for template in task.templates for name in task.names]
        return TokenClassifier(
            encoder.text_tokens(prompts),
            names=task.names,
            scale=encoder.scale,
            token_scale=encoder.token_scale,
            settings=self,
            device=encoder.device,
            about={
                "adapter": "token_zeroshot",
                "templates": list(task.templates),
                "templates_hash": task.templates_hash,
                **self.model_dump(),
            },
        )


class TokenClassifier:
    """A Classifier over the features and tokens of pictures, with the prompts of one template after the other."""

    needs = "tokens"

    def __init__(
        self,
        prompts: TextTokens,
        *,
        names: tuple[str, ...] | Any,
        scale: float,
        token_scale: float,
        settings: TokenZeroShot,
        device: torch.device | str = "cpu",
        about: dict[str, Any] | None = None,
    ) -> None:
        self.prompts, self.names, self.settings = prompts, tuple(names), settings
        self.scale, self.token_scale = scale, token_scale
        self.device, self.about = device, dict(about or {})
        features = prompts.features.unflatten(0, (-1, len(self.names)))
        ensemble = normalize(features.mean(dim=0), dim=-1)  # of pooled features the mean over templates means something
        self.pooled = ensemble.expand_as(features) if settings.combine == "mean_sim" else features

    @property
    def head(self) -> str:
        """What scores, for records."""
        blend = self.settings.blend
        return {0.0: "tokens", 1.0: "global"}.get(blend, f"{1 - blend:g} tokens + {blend:g} global")

    def __call__(self, inputs: ImageTokens) -> Float[Tensor, "B C"]:
        """Logits; of `mean_prob` the logarithms of the mean probabilities."""
        total = torch.zeros(len(inputs.features), len(self.names))
        for number, pooled in enumerate(self.pooled):
            logits = self._logits(inputs, number, pooled)
            total += logits.softmax(dim=1) if self.settings.combine == "mean_prob" else logits
        mean = total / len(self.pooled)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log() if self.settings.combine == "mean_prob" else mean

    def _logits(self, inputs: ImageTokens, number: int, pooled: Tensor) -> Tensor:
        """[B, C] with the prompts of one template."""
        blend, rows = self.settings.blend, slice(number * len(self.names), (number + 1) * len(self.names))
        coarse = self.scale * inputs.features @ pooled.T
        if blend == 1.0:
            return coarse
        fine = self.token_scale * token_scores(
            inputs.tokens,
            self.prompts.tokens[rows],
            self.prompts.mask[rows],
            want="rows",
            pad_max=self.settings.pad_max,
            device=self.device,
        )
        return torch.lerp(fine, coarse, blend) if blend else fine
