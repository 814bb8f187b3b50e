"""Fine-tuning of the towers as an adapter: the model stays as it is, the tuned tensors live in the classifier."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from vlp.adapters.fitting import PictureBatches, Recipe, minimise, picture_loss, seeded, steps_of
from vlp.adapters.task import Task
from vlp.adapters.tuned import (
    HEAD,
    TunedClassifier,
    own_state,
    prompts,
    running_statistics,
    tunable,
    with_own_head,
)
from vlp.adapters.tuning import in_mode
from vlp.adapters.weight_space import WeightSpace
from vlp.data.augment import Augment


class Finetune(WeightSpace):
    """All weights of the image tower and a head that starts as s times the zero-shot weights (WiSE-FT, 2109.01903).

    Cross-entropy of s f(x).w_c; AdamW, linear warm-up, cosine. The head is kept as w = H / s with the rate of H over s
    and its decay times s, which moves it as H would be moved, so that after no step the logits are the zero-shot ones
    bit for bit. `towers: both` also tunes the text tower, which then makes the class weights of the task's prompts
    anew each step, in place of a head. Ours: warm-up takes at most a tenth of all steps, and pictures are mirrored.
    """

    method: ClassVar[str] = "finetune"

    towers: Literal["image", "both"] = "image"
    train_head: bool = True  # false: class weights stay the zero-shot ones, as task vectors have it
    lr: float = Field(3e-5, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    epochs: int = Field(10, ge=0)
    batch_size: int = Field(512, ge=1)
    warmup: int = Field(500, ge=0, description="steps")
    augment: Augment | None = Augment(flip=0.5)

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier that holds the tuned tensors."""
        support = self.given(task, "support")
        both = self.towers == "both"
        words = prompts(encoder, task, who="finetune with towers: both") if both else None
        sides = ("image", "text") if both else ("image",)
        own = own_state(encoder, task, [name for side in sides for name in tunable(encoder.dual, side)])
        state = {name: tensor.clone() for name, tensor in own.items()}
        for side in sides:
            state.update(running_statistics(encoder.dual, side))
        towers = [state[name].requires_grad_() for name in own if name != HEAD]
        groups: list[dict[str, Any]] = [{"params": towers}]
        if not both and self.train_head:
            head = [state[HEAD].requires_grad_()]
            scale = encoder.scale
            groups.append({"params": head, "lr_scale": 1 / scale, "weight_decay": self.weight_decay * scale})
        steps = steps_of(self.epochs, len(support), self.batch_size)
        recipe = Recipe(steps, self.batch_size, self.lr, self.weight_decay, self.warmup)
        with seeded(encoder.device, task.seed) as rng, in_mode(encoder.dual, training=True):
            batches = PictureBatches(encoder, support, self.augment, rng, who=self.method)
            loss = picture_loss(encoder, batches, support.known, lambda: state, words=words)
            minimise(groups, loss, rows=len(support), recipe=recipe, rng=rng, what=self.method, quiet=encoder.quiet)
        tuned = {name: tensor.detach() for name, tensor in state.items()}
        return self.classifier(encoder, task, with_own_head(encoder, task, tuned))
