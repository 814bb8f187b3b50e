"""Image towers: pictures to the pooled vector and, when asked, to one vector per patch in the joint space.

The modules are open_clip's own, so weights keep their names; what is here is only how they are run.
The class token is never among the tokens. open_clip's `output_tokens` stops before the projection; here it is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.models.blocks import can_pool_early, pooled_block, run_blocks


class ImageOutput(NamedTuple):
    """What an image tower makes of [B, 3, H, W]; nothing is normalised yet."""

    pooled: Tensor  # [B, D]
    tokens: Tensor | None = None  # [B, P, D], projected
    hidden: Tensor | None = None  # [B, P, width], before the projection


class ImageTower(Protocol):
    """How a module with open_clip's weights is run."""

    width: int

    @property
    def blocks(self) -> Sequence[nn.Module]: ...
    def run(self, image: Tensor, *, tokens: bool) -> ImageOutput: ...
    def checkpoint_blocks(self) -> None: ...


def image_tower(visual: nn.Module) -> ImageTower:
    """The way to run `visual`, chosen by its type."""
    import open_clip
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel

    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return ViT(visual)
    if isinstance(visual, ModifiedResNet):
        return ResNet(visual)
    if isinstance(visual, TimmModel):
        return Timm(visual)
    raise TypeError(
        f"no image tower for a {type(visual).__name__}; known: VisionTransformer, ModifiedResNet, TimmModel"
    )


class PatchDropout(nn.Module):
    """Keeps a random share of the patches of each picture while training, and the class token (FLIP, 2212.00794).

    Draws from the default generator of the picture's device, so that reseeding it repeats the choice.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        patches = x[:, 1:]
        keep = max(1, int(patches.shape[1] * (1 - self.prob)))
        index = torch.rand(patches.shape[:2], device=x.device).topk(keep, dim=1).indices
        kept = patches.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, :1], kept], dim=1)


class ViT:
    """open_clip's VisionTransformer."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.width = int(visual.conv1.out_channels)
        self.checkpointing = False

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.visual.transformer.resblocks)

    def checkpoint_blocks(self) -> None:
        self.checkpointing = True

    def embed(self, image: Tensor) -> Tensor:
        """[B, 1 + P, width]: class token and patches with positions, ready for the first block."""
        v = self.visual
        x = v.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        return v.ln_pre(v.patch_dropout(x + v.positional_embedding.to(x.dtype)))  # type: ignore[no-any-return]

    def run(self, image: Tensor, *, tokens: bool) -> ImageOutput:
        v, x = self.visual, self.embed(image)
        blocks = self.blocks
        if not tokens and v.attn_pool is None and v.pool_type == "tok" and can_pool_early(blocks[-1]):
            x = run_blocks(blocks[:-1], x, None, checkpointing=self.checkpointing)
            at = torch.zeros(len(x), dtype=torch.long, device=x.device)
            return ImageOutput(self._project(v.ln_post(pooled_block(blocks[-1], x, at, causal=False))))
        x = run_blocks(blocks, x, None, checkpointing=self.checkpointing)
        pooled, patches = v._pool(x)
        if not tokens:
            return ImageOutput(self._project(pooled))
        if v.final_ln_after_pool and v.attn_pool is None:
            patches = v.ln_post(patches)  # open_clip norms only the mean here; a token is the mean of itself
        return ImageOutput(self._project(pooled), self._project(patches), patches)

    def _project(self, x: Tensor) -> Tensor:
        return x if self.visual.proj is None else x @ self.visual.proj


class ResNet:
    """open_clip's ModifiedResNet. A token is the value path of the attention pool at one place (MaskCLIP)."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.width = int(visual.attnpool.c_proj.in_features)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        v = self.visual
        return [v.layer1, v.layer2, v.layer3, v.layer4]

    def checkpoint_blocks(self) -> None:
        raise ValueError(
            "model.grad_checkpointing: a ModifiedResNet cannot recompute its blocks, since its BatchNorm statistics "
            "would be updated twice; leave it off for this arch"
        )

    def run(self, image: Tensor, *, tokens: bool) -> ImageOutput:
        v = self.visual
        x = v.stem(image)
        for layer in self.blocks:
            x = layer(x)
        pooled = v.attnpool(x)
        if not tokens:
            return ImageOutput(pooled)
        hidden = x.flatten(2).transpose(1, 2)
        return ImageOutput(pooled, v.attnpool.c_proj(v.attnpool.v_proj(hidden)), hidden)


class Timm:
    """open_clip's TimmModel. A token is what the pooling head makes of one place alone, whatever the head is."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.width = int(visual.trunk.num_features)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        for name in ("blocks", "stages", "layers"):
            if isinstance(found := getattr(self.visual.trunk, name, None), (nn.Sequential, nn.ModuleList)):
                return list(found)
        return [m for name in ("layer1", "layer2", "layer3", "layer4") if (m := getattr(self.visual.trunk, name, None))]

    def checkpoint_blocks(self) -> None:
        live = [m for m in self.visual.trunk.modules() if isinstance(m, _BatchNorm) and m.training]
        if any(norm.track_running_stats for norm in live):
            raise ValueError(
                f"model.grad_checkpointing: the BatchNorm statistics of this {self._name} would be updated twice; set "
                "model.frozen_batchnorm=true, lock the image tower, or leave it off"
            )
        try:
            self.visual.trunk.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"model.grad_checkpointing: this timm tower cannot recompute its blocks: {error}"
            ) from None

    def run(self, image: Tensor, *, tokens: bool) -> ImageOutput:
        v = self.visual
        if not tokens:
            return ImageOutput(v(image))
        x = v.trunk.forward_features(image)
        pooled = v.head(v.trunk.forward_head(x))
        prefix = x[:, : self._prefix_tokens] if isinstance(x, Tensor) and x.ndim == 3 else None
        hidden = x[:, prefix.shape[1] :] if prefix is not None else self._flat(x)
        B, P, C = hidden.shape
        place = hidden.reshape(B * P, 1, C)
        if x.ndim == 4:
            place = place.unsqueeze(1) if self._channels_last(x) else place.transpose(1, 2).unsqueeze(-1)
        elif prefix is not None and prefix.shape[1] and v.trunk.global_pool not in ("token", "map"):
            place = torch.cat([prefix.repeat_interleave(P, dim=0), place], dim=1)  # the pool skips the prefix tokens
        return ImageOutput(pooled, v.head(v.trunk.forward_head(place)).reshape(B, P, -1), hidden)

    @property
    def _prefix_tokens(self) -> int:
        found = getattr(self.visual.trunk, "num_prefix_tokens", None)
        if found is None:
            raise ValueError(f"image tokens: {self._name} does not say which of its tokens are patches")
        return int(found)

    @property
    def _name(self) -> str:
        return type(self.visual.trunk).__name__

    def _channels_last(self, x: Tensor) -> bool:
        return x.shape[3] == self.width != x.shape[1]  # Swin's maps

    def _flat(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 4 or self.width not in (x.shape[1], x.shape[3]):
            given = f"a map of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(f"image tokens: {self._name} gives {given}")
        return x.flatten(1, 2) if self._channels_last(x) else x.flatten(2).transpose(1, 2)
