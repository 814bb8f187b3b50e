"""How a model's features fill the sphere: alarms, not scores to rank models by."""

from __future__ import annotations

from typing import ClassVar

import torch

from eval.benchmark import BenchmarkPart, Outcome
from eval.view import View
from vlp.data.captions import Captions
from vlp.metrics.health import Alignment, ModalityGap, RankMe, Uniformity


class Health(BenchmarkPart):
    """RankMe and uniformity of both modalities, alignment of pairs, modality gap, and the learned temperature."""

    task: ClassVar[str] = "health"

    captions: Captions = Captions()

    def measure(self, view: View) -> Outcome:
        """The numbers, over all pictures with captions and all their captions."""
        texts = view.texts(self.captions, purpose="health")
        text = view.text_features(texts.captions)
        image = view.image[torch.unique(texts.caption_image)]
        metrics: dict[str, float] = {}
        for name, features in (("image", image), ("text", text)):
            rank, spread = RankMe(f"rankme_{name}"), Uniformity(f"uniformity_{name}")
            rank.update(features)
            spread.update(features)
            metrics |= rank.compute() | spread.compute()
        pairs, gap = Alignment(), ModalityGap()
        pairs.update(view.image[texts.caption_image], text)
        gap.update(image=image, text=text)
        metrics |= pairs.compute() | gap.compute() | {"temperature": 1 / view.encoder.scale}
        return Outcome(
            metrics=metrics,
            n=len(image),
            counts={"images": len(image), "texts": len(text)},
            skips=texts.skips,
            items={"captions": texts.captions, "caption_image": texts.caption_image.tolist()},
            text=text,
        )
