"""CTP's companion of a model that goes on to another domain: a momentum copy between now and the domain before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlp.models import pretrained
from vlp.models.dual import Dual
from vlp.models.momentum import Momentum, MomentumState, moving
from vlp.models.teacher import refuse_other_input
from vlp.types import Batch

HASH = "reference"  # its place in the state, beside the copy's weights


class CompatibleMomentum(Momentum):
    """Compatible momentum of CTP (arXiv 2308.07146): copy <- m copy + a model + b reference, m + a + b = 1.

    The reference is a frozen model, that of the previous domain. Beside the columns of `momentum` the batch gets the
    reference's unit features "reference/image" [B, D] and "reference/text" [B, K, D]; empty slots and absent captions
    are zero. The copy begins as the model does.

    Deviation: the copy follows after the optimizer's step, in the authors' code at the start of the next one.
    """

    pretrained: str = Field(description="the reference: a run of ours, or any folder that `model.pretrained` takes")
    momentum: float = Field(0.9, ge=0.0, le=1.0, description="m, share of itself that the copy keeps at a step")
    model: float = Field(0.05, ge=0.0, le=1.0, description="a, share of the model's weights")
    reference: float = Field(0.05, ge=0.0, le=1.0, description="b, share of the reference's weights")

    @model_validator(mode="after")
    def _shares(self) -> CompatibleMomentum:
        total = self.momentum + self.model + self.reference
        if abs(total - 1) > 1e-6:
            raise ValueError(f"momentum + model + reference is {total:g}; the three shares must add up to 1")
        return self

    def build(self, dual: Dual) -> CompatibleState:
        return CompatibleState(self, dual)


class CompatibleState(MomentumState):
    """Copy and reference. Of the reference only a hash is saved, and a resumed run must have the same one."""

    settings: CompatibleMomentum

    def __init__(self, settings: CompatibleMomentum, dual: Dual) -> None:
        super().__init__(settings, dual)
        reference = pretrained.load(settings.pretrained)
        refuse_other_input(dual, reference, where=settings.pretrained)
        self.reference = reference.requires_grad_(False).to(dual.logit_scale.device)
        self.hash = pretrained.weights_hash(reference)
        found = reference.state_dict()
        self._refuse_other_towers(dual, found)
        if reference.prefix is not None and dual.prefix is not None:
            reference.prefix.table = dual.prefix.table  # which kind each of this run's sources is of
        self.anchors = [found[name] for name in self.names]

    def _refuse_other_towers(self, dual: Dual, found: Mapping[str, Tensor]) -> None:
        own = {name: tensor.shape for name, tensor in moving(dual)}
        odd = [name for name, shape in own.items() if name not in found or found[name].shape != shape]
        if odd:
            raise ValueError(
                f"compatible_momentum: {self.settings.pretrained} has other towers than the model ({odd[0]} and "
                f"{len(odd) - 1} more weights differ); the reference must be of the same architecture"
            )

    def _features(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield from super()._features(batch)
        seen = self.reference(batch)
        real = batch.valid[:, None] & batch.caption_mask
        yield "reference/image", torch.where(batch.valid[:, None], _float(seen.image), 0.0)
        yield "reference/text", torch.where(real[..., None], _float(seen.text), 0.0)

    @torch.no_grad()
    def after_step(self, model: nn.Module, *, step: int, batch: Batch) -> None:
        """Every weight a part of the way to the model's and a part of the way to the reference's."""
        now, shares, copies = dict(moving(model)), self.settings, self.weights()
        torch._foreach_mul_(copies, shares.momentum)
        torch._foreach_add_(copies, [now[name].detach() for name in self.names], alpha=shares.model)
        torch._foreach_add_(copies, self.anchors, alpha=shares.reference)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), HASH: torch.tensor(list(bytes.fromhex(self.hash)), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if HASH not in state:
            raise ValueError("compatible_momentum: the state has no reference; it is that of another companion")
        saved = bytes(state[HASH].tolist()).hex()
        if saved != self.hash:
            raise ValueError(
                f"compatible_momentum: {self.settings.pretrained} has the hash {self.hash}, the run began with a "
                f"reference of hash {saved}; give it that one again, or start a new run"
            )
        weights = {name: tensor for name, tensor in state.items() if name != HASH}
        if odd := sorted(weights.keys() ^ set(self.names)):
            raise ValueError(
                f"compatible_momentum: {len(odd)} weights are not in both checkpoint and model: {', '.join(odd[:4])}"
            )
        with torch.no_grad():
            for copy, name in zip(self.weights(), self.names, strict=True):
                copy.copy_(weights[name])


def _float(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype is torch.bfloat16 else rows
