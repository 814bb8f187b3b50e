"""A tuned model as a classifier: the backbone stays as it is, and tensors that differ from its own live here.

A state maps names of the model's tensors (`visual.*`, `text.*`) to tensors, and HEAD to class weights [C, D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.adapters import archive
from vlp.adapters.adapter import class_weights
from vlp.adapters.task import Task
from vlp.adapters.tuning import autocast, frozen, in_mode
from vlp.adapters.weights import State
from vlp.embed import Encoder
from vlp.text.batches import pad
from vlp.text.templates import fill

HEAD = "head.weight"
SIDES = {"image": "visual.", "text": "text."}
T = TypeVar("T")


class TunedClassifier:
    """A Classifier over pictures: uint8 [B, 3, H, W] through the encoder's towers with the tensors of `state`.

    The model itself is never changed: `functional_call` puts the tensors in its way while it runs.
    """

    needs = "pictures"
    kind = "tuned"

    def __init__(
        self,
        encoder: Any,
        state: State,
        *,
        names: Sequence[str],
        about: Mapping[str, Any] | None = None,
        scale: float | None = None,
    ) -> None:
        self.encoder, self.names, self.about = encoder, tuple(names), dict(about or {})
        self.scale = encoder.scale if scale is None else scale
        self.state = {name: tensor.detach().to(encoder.device) for name, tensor in state.items()}

    def __call__(self, inputs: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Logits of pictures, on the CPU."""
        return self.scale * self.features(inputs) @ self.state[HEAD].cpu().T  # all at once, as zero-shot

    def features(self, pictures: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit features of pictures by the tuned tower, on the CPU."""
        encoder, rows = self.encoder, []
        with torch.inference_mode(), frozen(encoder):
            for batch in pictures.split(encoder.batch_size):
                rows.append(features_and_weights(encoder, self.state, batch.to(encoder.device))[0].cpu())
        return torch.cat(rows)

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest, with the hash of the backbone, as JSON."""
        facts = {"names": self.names, "scale": self.scale, "weights_hash": self.encoder.weights_hash}
        tensors = {name: tensor.cpu().clone() for name, tensor in self.state.items()}
        archive.write(folder, tensors, {"kind": self.kind, **facts, "about": self.about})

    @classmethod
    def load(cls, folder: Path, encoder: Any) -> TunedClassifier:
        """The classifier that `save` wrote; ValueError if it is none, or was tuned from another model."""
        state, facts = archive.read(folder, kind=cls.kind, tensors=(HEAD,))
        refuse_other_backbone(folder, facts["weights_hash"], encoder)
        return cls(encoder, state, names=facts["names"], scale=facts["scale"], about=facts["about"])


def refuse_other_backbone(folder: Path, fitted: str, encoder: Any) -> None:
    """ValueError naming the folder unless what is in it was fitted on the weights of the encoder."""
    here = encoder.weights_hash
    if fitted != here:
        raise ValueError(
            f"{folder}: fitted on a model with weights {fitted}, and this one has {here}; use that model, or fit again"
        )


# -- running a model with other tensors -----------------------------------------------------------------------------


class _Runs(nn.Module):
    """Lets `functional_call` put tensors into a model while any function runs, not only its forward."""

    def __init__(self, dual: nn.Module) -> None:
        super().__init__()
        self.dual = dual

    def forward(self, body: Callable[[], Any]) -> Any:
        return body()


def with_tensors(dual: nn.Module, state: State, body: Callable[[], T]) -> T:
    """What `body()` returns while `dual` has the tensors of `state` in place of its own."""
    given = {f"dual.{name}": tensor for name, tensor in state.items() if name != HEAD}
    found: T = functional_call(_Runs(dual), given, (body,))
    return found


class Prompts(NamedTuple):
    """Token ids of M prompts of each of C classes, classes first."""

    ids: Int[Tensor, "C*M T"]
    mask: Bool[Tensor, "C*M T"]
    classes: int


def prompts(encoder: Any, task: Task, *, who: str) -> Prompts:
    """The task's prompts for a text tower that is tuned, on the encoder's device."""
    refuse_features(task, who=who)
    texts = [fill(template, name) for name in task.names for template in task.templates]
    ids, mask = pad(encoder.dual.tokenizer.encode(texts), encoder.dual.tokenizer)
    return Prompts(ids.to(encoder.device), mask.to(encoder.device), len(task.names))


def refuse_features(task: Task, *, who: str) -> None:
    """ValueError where the prompts are given as features, which no tuned text tower can make again."""
    if task.text is not None:
        raise ValueError(f"{who} encodes prompts itself, and the task holds text features; give templates")


def features_and_weights(
    encoder: Any, state: State, image: UInt8[Tensor, "B 3 H W"], words: Prompts | None = None
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "C D"]]:
    """Unit features of the pictures and class weights, with gradients: HEAD, or of `words` by the text tower."""
    dual = encoder.dual

    def body() -> tuple[Tensor, Tensor]:
        seen = dual.encode_image(image)
        return seen, seen.new_empty(0) if words is None else dual.encode_text(words.ids, words.mask)

    with autocast(encoder):
        seen, said = with_tensors(dual, state, body)
    features = normalize(seen.float(), dim=-1)
    if words is None:
        return features, state[HEAD]
    said = normalize(said.float(), dim=-1).unflatten(0, (words.classes, -1))
    return features, normalize(said.mean(dim=1), dim=-1)


# -- states ---------------------------------------------------------------------------------------------------------


def own_state(encoder: Any, task: Task, names: Sequence[str]) -> dict[str, Tensor]:
    """The backbone's own tensors of these names, and the zero-shot class weights, on its device."""
    whole = encoder.dual.state_dict()
    state = {name: whole[name].detach() for name in names if name != HEAD}
    return {**state, HEAD: class_weights(encoder, task).to(encoder.device)}


def with_own_head(encoder: Any, task: Task, state: State) -> dict[str, Tensor]:
    """The state; where it moves the text tower, with the class weights that this tower gives the task's prompts."""
    if not any(name.startswith(SIDES["text"]) for name in state):
        return dict(state)
    refuse_features(task, who="a tuned model")
    plain = Encoder(  # without a cache, which would keep features of every state that is tried
        encoder.dual,
        device=encoder.device,
        batch_size=encoder.batch_size,
        precision=encoder.precision,
        quiet=True,
    )
    weight = with_tensors(encoder.dual, state, lambda: class_weights(plain, task))
    return {**state, HEAD: weight.to(encoder.device)}


def tunable(dual: Any, side: str) -> list[str]:
    """Names of the tower's floating parameters, "image" or "text"; what is locked stays out, unless all of it is."""
    found = [(name, p) for name, p in dual.tower_parameters(side) if p.is_floating_point()]
    return [name for name, p in found if p.requires_grad] or [name for name, _ in found]


def running_statistics(dual: nn.Module, side: str) -> dict[str, Tensor]:
    """Copies of what the tower's BatchNorms keep beside parameters; empty where it has none."""
    kept = {}
    for name, module in dual.named_modules():
        if name.startswith(SIDES[side]) and isinstance(module, _BatchNorm):
            kept.update({f"{name}.{key}": buffer.clone() for key, buffer in module.named_buffers()})
    return kept


@torch.no_grad()
def measured_again(encoder: Any, state: State, image: UInt8[Tensor, "n 3 H W"]) -> dict[str, Tensor]:
    """The state with BatchNorm statistics of these pictures, for weights that no batch has gone through."""
    dual = encoder.dual
    norms = {
        name: module
        for name, module in dual.named_modules()
        if isinstance(module, _BatchNorm) and f"{name}.running_mean" in state
    }
    if not norms:
        return dict(state)
    whole = {**dual.state_dict(), **state}
    counters = {f"{name}.num_batches_tracked": whole[f"{name}.num_batches_tracked"] for name in norms}
    moving = [f"{name}.{key}" for name in norms for key in ("running_mean", "running_var")]
    fresh = {**state, **{name: torch.zeros_like(whole[name]) for name in [*moving, *counters]}}
    momenta = [(module, module.momentum) for module in norms.values()]
    with in_mode(dual, training=False):
        try:
            for module in norms.values():
                module.training, module.momentum = True, None  # None: the plain mean over batches
            for batch in image.tensor_split(-(-len(image) // encoder.batch_size)):  # evenly: none of one picture
                features_and_weights(encoder, fresh, batch.to(encoder.device))
        finally:
            for module, momentum in momenta:
                module.momentum = momentum
    return {**fresh, **counters}
