"""A context learned from what zero-shot is surest of (UPL, Huang et al. 2022)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from vlp.adapters.adapter import Given
from vlp.adapters.coop import CoOp
from vlp.adapters.prompted import ContextClassifier
from vlp.adapters.pseudo_shots import logits_over, top_of_predicted
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot


class UPL(CoOp):
    """CoOp on pseudolabels: the `shots` surest pictures of each class that zero-shot predicts (2204.03649, section 3).

    The sure ones count by class, since probabilities of classes do not compare. A class that zero-shot predicts nowhere
    has no picture. Logits are averaged over `members` contexts that start from and see batches of other seeds; that is
    the same as averaging their class weights, so the classifier is linear. The vote of several backbones (UPL*) is not
    here.
    """

    wants: ClassVar[tuple[Given, ...]] = ("unlabelled",)

    shots: int = Field(16, ge=1)
    members: int = Field(16, ge=1)

    def usual_epochs(self, shots: int) -> int:
        """50."""
        return 50

    def fit(self, encoder: Any, task: Task) -> ContextClassifier:
        """A linear classifier, with the contexts [members, M, width] that were learned."""
        pool = self.given(task, "unlabelled")
        said = logits_over(ZeroShot().fit(encoder, task), encoder, pool, who="UPL")
        believed = top_of_predicted(said, self.shots)
        learn = believed.shots(pool)
        seeds = torch.randint(2**31, (self.members,), generator=torch.Generator().manual_seed(task.seed)).tolist()
        members = [CoOp.fit(self, encoder, replace(task, support=learn, seed=seed)) for seed in seeds]
        own = {key: members[0].about[key] for key in ("epochs", "steps")}
        return self._mean(encoder, task, members, {**own, "pseudolabels": believed.record(pool, task.names)})

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> ContextClassifier:
        """The learned contexts in front of other names."""
        members = []
        for context in classifier.learned["context"]:
            one = ContextClassifier(
                classifier.weight,
                learned={"context": context},
                names=classifier.names,
                scale=classifier.scale,
                about=classifier.about,
            )
            members.append(CoOp.transfer(self, encoder, one, task))
        made = type(self).model_validate(classifier.about["settings"])
        return made._mean(encoder, task, members, {"fitted": list(classifier.names)})

    def _mean(
        self, encoder: Any, task: Task, members: list[ContextClassifier], said: dict[str, Any]
    ) -> ContextClassifier:
        return ContextClassifier(
            torch.stack([one.weight for one in members]).double().mean(dim=0).float(),
            learned={"context": torch.stack([one.learned["context"] for one in members])},
            names=task.names,
            scale=encoder.scale,
            about=self.about(encoder, task, **said),
        )
