"""The two towers as one module with one `forward`, and the hooks that prompt methods need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp.data.transforms import Preprocess, normalized
from vlp.models.groups import Captions, run_captions, together
from vlp.models.image import ImageOutput, ImageTower, image_tower
from vlp.models.prefix import Prefixes, has_start, make_room, prefixed, run_behind
from vlp.models.prompting import Prompted
from vlp.models.text_clip import ClipText, TextOutput, TextTower
from vlp.registry import nearest
from vlp.text.tokenizers import TokenizerPart
from vlp.types import Batch, Features, Tokenizer

NEEDS = frozenset({"image_tokens", "text_tokens", "image_hidden", "text_hidden", "bias"})
MAX_SCALE = math.log(100.0)


class Towers(NamedTuple):
    """What a head sees inside the one forward: the features so far, tokens before projection, and the model."""

    features: Features
    image_hidden: Tensor | None  # [B, P, width], when a loss needs "image_hidden"
    text_hidden: Tensor | None  # [B, K, T, width], when a loss needs "text_hidden"
    dual: Dual
    memo: dict[str, Any]  # what heads share within this forward: the towers' outputs for extra views
    image_pooled: Tensor  # [B, D], what is made of unit norm in `features.image`


class Dual(Prompted, nn.Module):
    """Image and text tower, scale, bias, and the heads of the run's losses.

    Parameters are named as open_clip's CustomTextCLIP names them (`visual.*`, `text.*`, `logit_scale`), the heads
    `heads.<name>.*`. `logit_scale` and `logit_bias` have one dimension of one element, for FSDP.
    """

    transform: Preprocess
    prefix: Prefixes | None
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        visual: nn.Module,
        text: nn.Module,
        *,
        config: Mapping[str, Any],
        transform: Preprocess,
        tokenizer: Tokenizer | TokenizerPart,
        base: Path | None = None,
        init_scale: float = math.log(1 / 0.07),
        init_bias: float | None = None,
        text_groups: int = 4,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.text = text
        self.logit_scale = nn.Parameter(torch.full((1,), float(init_scale)))
        self.logit_bias = None if init_bias is None else nn.Parameter(torch.full((1,), float(init_bias)))
        self.heads = nn.ModuleDict(dict(heads or {}))
        self.prefix = None  # learned vectors among the words, by kind of source; see assemble.py
        self.config = dict(config)  # open_clip's model_cfg
        self.extra_config: dict[str, Any] = {}  # what of ours open_clip's format cannot say; see pretrained.py
        self.transform = transform
        self.tokenizer_source = tokenizer  # a part until it is first used
        self.tokenizer_base = base  # folder that the part's relative paths refer to
        self.text_groups = text_groups
        self.mismatches: tuple[str, ...] = ()  # what of it is not as its weights were trained; see mismatch.py
        self.needs: frozenset[str] = frozenset()
        self.held: tuple[nn.Module, ...] = ()  # stay in eval mode; see freeze.py
        if hasattr(text, "trims"):  # a module of ours, whose encoder may name another padding, or none
            text.pad = self._known_pad  # type: ignore[assignment]
        self._ways: dict[str, Any] = {}  # how the towers are run; in a dict, so that no module is registered twice
        self.register_buffer("_mean", torch.tensor(transform.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(transform.std).reshape(3, 1, 1), persistent=False)

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """Made when first asked for: features of given ids need none, and some have to be fetched."""
        if isinstance(self.tokenizer_source, TokenizerPart):
            self.tokenizer_source = self.tokenizer_source.build(self.tokenizer_base)
        return self.tokenizer_source

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | TokenizerPart) -> None:
        self.tokenizer_source = tokenizer

    @property
    def image_tower(self) -> ImageTower:
        """How `visual` is run."""
        if "image" not in self._ways:
            self._ways["image"] = image_tower(self.visual)
        way: ImageTower = self._ways["image"]
        return way

    @property
    def text_tower(self) -> TextTower:
        """How `text` is run; a text module of ours runs itself."""
        if hasattr(self.text, "trims"):
            return self.text  # type: ignore[return-value]
        if "text" not in self._ways:
            self._ways["text"] = ClipText(self.text, pad=self._pad)
        way: TextTower = self._ways["text"]
        return way

    def _pad(self) -> int:
        return self.tokenizer.pad

    def _known_pad(self) -> int | None:
        """What fills rows of ids that the tokenizer made; None where it is not made yet, so that others' are given."""
        return None if isinstance(self.tokenizer_source, TokenizerPart) else self.tokenizer_source.pad

    @property
    def image_blocks(self) -> Sequence[nn.Module]:
        """Blocks of the image tower, input first."""
        return self.image_tower.blocks

    @property
    def text_blocks(self) -> Sequence[nn.Module]:
        """Blocks of the text tower, input first."""
        return self.text_tower.blocks

    @property
    def trims(self) -> bool:
        """Whether text may be cut to its natural length without changing its features."""
        return self.text_tower.trims

    @property
    def context(self) -> int:
        return self.text_tower.context

    @property
    def dim(self) -> int:
        """Width D of the joint space."""
        return int(self.config["embed_dim"])

    def set_needs(self, needs: Iterable[str]) -> None:
        """State which outputs beyond the pooled features the losses read; others are not computed."""
        needs = frozenset(needs)
        if odd := needs - NEEDS:
            raise ValueError(f'no output "{min(odd)}" of the model{nearest(min(odd), NEEDS)}')
        if "bias" in needs and self.logit_bias is None:
            raise ValueError("a loss needs the logit bias, but the model has none: set model.init_bias (SigLIP: -10)")
        self.needs = needs
        if self.logit_bias is not None:  # without a loss that reads it DDP would wait for its gradient
            self.logit_bias.requires_grad_("bias" in needs)

    def train(self, mode: bool = True) -> Dual:
        """As of every module, but what is held frozen stays in eval mode."""
        super().train(mode)
        for module in self.held:
            module.eval()
        return self

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale within [1, 100], after each optimizer step."""
        self.logit_scale.clamp_(0.0, MAX_SCALE)

    # -- one forward ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Features:
        """Everything that the losses of the run read, from one pass over the batch."""
        captions = self._captions(batch)  # first: it waits for the device, which has nothing to do yet
        image = self._run_image(batch.image, tokens=bool(self.needs & {"image_tokens", "image_hidden"}))
        text = self._run_text(captions, batch.caption_mask.shape)
        patches = image.tokens if "image_tokens" in self.needs else None
        features = Features(
            image=normalize(image.pooled, dim=-1),
            text=text.pooled,
            scale=self.logit_scale.exp(),
            bias=self.logit_bias,
            image_tokens=None if patches is None else normalize(patches, dim=-1),
            text_tokens=text.tokens,
        )
        extra: dict[str, Tensor] = {}
        towers = Towers(features, image.hidden, text.hidden, self, {}, image.pooled)
        for head in self.heads.values():
            extra.update(head(batch, towers))
        if "text_tokens" not in self.needs:
            features = features._replace(text_tokens=None)
        return features._replace(extra=extra)

    def _captions(self, batch: Batch) -> Captions:
        """Which caption slots run together, by length (absent captions in none), each with its source's prefix."""
        ids, mask, real = (x.flatten(0, 1) for x in (batch.text, batch.token_mask, batch.caption_mask))
        kind, at = None, 0
        if self.prefix is not None:
            ids, mask, _ = make_room(ids, mask, mask.sum(1).sub(1).clamp_min(0), room=self.context - self.prefix.length)
            kind, at = self.prefix.kinds(batch.source).repeat_interleave(batch.text.shape[1]), self.prefix_at
        made = together(mask, real, groups=self.text_groups, trims=self.trims)
        return Captions(ids, mask, made, self.prefix, kind, at)

    def _run_text(self, captions: Captions, shape: Sequence[int]) -> TextOutput:
        """Unit features [B, K, D] and tokens [B, K, T, D]; zeros where there is no caption or token."""
        tokens = bool(self.needs & {"text_tokens", "text_hidden"})
        out = run_captions(self.text_tower, captions, tokens=tokens)
        return TextOutput(*(None if x is None else x.unflatten(0, tuple(shape)) for x in out))  # type: ignore[arg-type]

    # -- single towers ----------------------------------------------------------------------------------------------

    def pixels(self, image: Tensor) -> Tensor:
        """Normalised floats [B, 3, H, W] of uint8 pictures; floats are taken as normalised already."""
        if image.dtype == torch.uint8:
            image = normalized(image, self._mean, self._std)
        elif not image.is_floating_point():
            raise TypeError(f"pictures are uint8, or floats that are normalised already, not {image.dtype}")
        return image.to(next(self.visual.parameters()).dtype)

    def _run_image(self, image: Tensor, *, tokens: bool) -> ImageOutput:
        return self.image_tower.run(self.pixels(image), tokens=tokens)

    def encode_image(self, image: Tensor) -> Tensor:
        """Unit features [B, D] of uint8 or already normalised float pictures [B, 3, H, W]."""
        return normalize(self._run_image(image, tokens=False).pooled, dim=-1)

    def encode_image_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features [B, D] and unit patch tokens [B, P, D] in the joint space, without the class token."""
        out = self._run_image(image, tokens=True)
        assert out.tokens is not None
        return normalize(out.pooled, dim=-1), normalize(out.tokens, dim=-1)

    def encode_text(self, ids: Tensor, mask: Tensor | None = None, prefix: Tensor | None = None) -> Tensor:
        """Unit features [n, D] of token ids [n, T].

        mask: bool [n, T], up to and including the end token; without it open_clip's own rule finds the end.
        prefix: [p, width] for all texts or [n, p, width], put behind the start token; texts too long for the context
        then lose words before their end token. None: the model's own of the current kind, if it has prefixes.
        """
        return normalize(self._encode_text(ids, mask, prefix, tokens=False)[0].pooled, dim=-1)

    def encode_text_tokens(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features [n, D], unit tokens [n, T, D] (zero behind the end), and their mask [n, T].

        T is shorter than that of `ids` where a prefix of the model takes the room.
        """
        out, mask = self._encode_text(ids, mask, None, tokens=True)
        assert out.tokens is not None
        return normalize(out.pooled, dim=-1), normalize(out.tokens, dim=-1) * mask[..., None], mask

    def _encode_text(
        self, ids: Tensor, mask: Tensor | None, prefix: Tensor | None, *, tokens: bool
    ) -> tuple[TextOutput, Tensor]:
        """Output of the tower behind a prefix, without its positions, and the mask of what is left of the texts."""
        tower = self.text_tower
        end = tower.end(ids, mask)
        mask = tower.mask(ids) if mask is None else mask
        if prefix is None and self.prefix is not None:
            prefix = self.prefix.now()
        if prefix is not None:
            ids, mask, end = make_room(ids, mask, end, room=tower.context - prefix.shape[-2])
        if tower.trims and len(ids) and not tokens:
            longest = max(int(end.max()) + 1, 1)
            ids, mask = ids[:, :longest], mask[:, :longest]
        at = 0 if prefix is None else self.prefix_at
        return run_behind(prefix, tower, (self.embed(ids), mask, end), at=at, tokens=tokens), mask

    @property
    def prefix_kind(self) -> str | None:
        """The kind of source whose prefix single texts get: "caption" outside of `prefixed`; None without prefixes."""
        return None if self.prefix is None else self.prefix.kind

    def prefixed(self, kind: str) -> AbstractContextManager[None]:
        """While open, single texts are encoded with the prefix of `kind`: "label" shows what captions did not teach."""
        return prefixed(self.prefix, kind)

    @property
    def prefix_at(self) -> int:
        """Where a prefix goes: behind the start token, or in front where the tokenizer sets none."""
        return int(has_start(self.tokenizer))

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [n, T, width], without positions."""
        return self.text_tower.embed(ids)

    def encode_embeds(self, embeds: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        """Unit features [n, D] of token embeddings [n, T, width] whose end token stands at `end` [n].

        Positions are added here, so a prompt method may put its own vectors among those of `embed`; no prefix is.
        """
        return normalize(self.text_tower.run(embeds, mask, end, tokens=False).pooled, dim=-1)

    def tower_parameters(self, side: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the "image" or the "text" tower, for per-tower optimizer groups."""
        module = {"image": "visual", "text": "text"}[side]
        for name, parameter in getattr(self, module).named_parameters():
            yield f"{module}.{name}", parameter
