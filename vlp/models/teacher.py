"""A frozen model beside the run, whose features of each batch losses may read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.models import pretrained
from vlp.models.dual import Dual
from vlp.registry import Part
from vlp.text.tokenizers import fingerprint_at
from vlp.types import Batch, Features

_SEEN = ("size", "interpolation", "resize_mode", "fill", "exif")  # of a transform; mean and std are each model's own


class Teacher(Part):
    """A live teacher: columns "teacher/image" [B, E] and "teacher/text" [B, K, E], and its "teacher/scale".

    A second one needs a `prefix` of its own in place of "teacher".

    It sees the student's batch, augmentation included, so both must read pictures and texts alike: same size, same way
    of resizing, same token ids. Normalisation is each one's own.
    """

    pretrained: str = Field(description="an open_clip file or folder, a Hugging Face CLIP or SigLIP, a run of ours")
    arch: str | None = Field(None, description="where `pretrained` is a file of weights that does not say it")
    micro_batch: int | None = Field(None, ge=1, description="slots at once; None: all of the rank's")
    precision: Literal["no", "bf16"] = "no"
    prefix: str = Field("teacher", min_length=1, description="of its columns: PREFIX/image, PREFIX/text, PREFIX/scale")

    def build(self, dual: Dual) -> TeacherState:
        if self.arch is None:
            teacher = pretrained.load(self.pretrained)
        else:
            teacher = pretrained.load(self.arch, weights=self.pretrained)
        refuse_other_input(dual, teacher, where=self.pretrained)
        return TeacherState(self, teacher)


class TeacherState:
    """The teacher. It never changes: of it only a hash is saved, and a resumed run must have the same one."""

    def __init__(self, settings: Teacher, teacher: Dual) -> None:
        self.settings = settings
        self.teacher = teacher.requires_grad_(False).eval()
        self.hash = pretrained.weights_hash(teacher)

    @torch.no_grad()
    def before_step(self, batch: Batch, model: nn.Module) -> Batch:
        """The batch with the teacher's features of it."""
        size = self.settings.micro_batch or len(batch)
        half = self.settings.precision == "bf16"
        device = batch.image.device
        self.teacher.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            made = [self._features(batch.rows(start, start + size)) for start in range(0, len(batch), size)]
        prefix = self.settings.prefix
        rows = {
            f"{prefix}/image": torch.cat([features.image for features in made]).float(),
            f"{prefix}/text": torch.cat([features.text for features in made]).float(),
        }
        return batch.plus(rows, {f"{prefix}/scale": made[0].scale.float()})

    def _features(self, part: Batch) -> Features:
        features: Features = self.teacher(part)
        return features

    def after_step(self, model: nn.Module, *, step: int, batch: Batch) -> None:
        """Nothing changes."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"hash": torch.tensor(list(bytes.fromhex(self.hash)), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        saved = bytes(state["hash"].tolist()).hex()
        if saved != self.hash:
            raise ValueError(
                f"teacher: {self.settings.pretrained} has the hash {self.hash}, the run began with a teacher of hash "
                f"{saved}; give it that one again, or start a new run"
            )


def refuse_other_input(student: Dual, teacher: Dual, *, where: str) -> None:
    """ValueError if the batch that was made for the student is not what the teacher reads."""
    for name in _SEEN:
        ours, theirs = getattr(student.transform, name), getattr(teacher.transform, name)
        if ours != theirs:
            advice = (
                f"set model.image_size to {theirs[0]}, or take another teacher" if name == "size" else "take another"
            )
            raise ValueError(f"teacher {where}: its pictures have {name} {theirs}, the student's {ours}; {advice}")
    context = student.tokenizer.context
    if teacher.context < context:
        raise ValueError(
            f"teacher {where}: it reads {teacher.context} tokens, the student's texts have up to {context}; "
            f"set model.context to {teacher.context}"
        )
    if fingerprint_at(student.tokenizer, context) != fingerprint_at(teacher.tokenizer, context):
        raise ValueError(
            f"teacher {where}: its tokenizer makes other ids than the student's; set model.tokenizer to the teacher's, "
            "or store its features in the shards"
        )
