"""Image-text retrieval with any number of captions a picture."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.view import View
from vlp.data.stages import Captions
from vlp.metrics.recall import Ranks, RecallAtK, best_answers, retrieval_ranks

SHOWN_QUERIES, SHOWN_ANSWERS = 24, 5


class Retrieval(BenchmarkPart):
    """Recall at k both ways: every caption asks for its picture; a picture finds any of its captions.

    Every caption in the first of `captions.fields` that holds text counts, lists whole.
    """

    task: ClassVar[str] = "zeroshot_retrieval"

    captions: Captions = Captions()
    k: tuple[int, ...] = (1, 5, 10)
    block: int = Field(256, ge=1)  # captions scored at once; no result depends on it
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """Recalls and ranks; intervals draw pictures, since captions of one picture are not independent."""
        texts = view.texts(self.captions, purpose="scoring")
        text = view.text_features(texts.captions)
        rows, place = torch.unique(texts.caption_image, return_inverse=True)  # pictures without captions leave
        ranks = retrieval_ranks(view.image[rows], text, place, block=self.block)
        to_image = RecallAtK("image_retrieval", candidates=len(rows), k=self.k)
        to_image.update(ranks.text_to_image, groups=place)
        to_text = RecallAtK("text_retrieval", candidates=len(text), k=self.k)
        to_text.update(ranks.image_to_text, positives=torch.bincount(place))
        both = (to_image, to_text)
        shown = _examples(view.image[rows], text, place, ranks, rows, texts.captions)
        return Outcome(
            metrics={name: value for part in both for name, value in part.compute().items()},
            n=len(rows),
            counts={"images": len(rows), "texts": len(text)},
            ci95={name: value for part in both for name, value in part.intervals(n_boot=self.n_boot).items()},
            chance={name: value for part in both for name, value in part.chance().items()},
            lower_is_better=to_image.lower_is_better | to_text.lower_is_better,
            skips=texts.skips,
            items={"captions": texts.captions, "caption_image": texts.caption_image.tolist()},
            files={"retrieval.json": shown},
            text=text,
            shown=_pictures(shown),
        )


def _examples(
    image: Tensor, text: Tensor, place: Tensor, ranks: Ranks, rows: Tensor, captions: list[str]
) -> dict[str, Any]:
    """Queries evenly spread over the data set, whatever the model made of them, and their best answers."""
    asked = _spread(len(text))
    found = best_answers(text[asked], image, k=SHOWN_ANSWERS)
    to_image = [
        {
            "caption": query,
            "text": captions[query],
            "image": int(rows[place[query]]),
            "rank": int(ranks.text_to_image[query]),
            "found": rows[answers].tolist(),
            "scores": scores.tolist(),
            "correct": (answers == place[query]).tolist(),
        }
        for query, answers, scores in zip(asked.tolist(), found.rows, found.scores)
    ]
    asked = _spread(len(image))
    found = best_answers(image[asked], text, k=SHOWN_ANSWERS)
    to_text = [
        {
            "image": int(rows[query]),
            "rank": int(ranks.image_to_text[query]),
            "found": answers.tolist(),
            "texts": [captions[answer] for answer in answers.tolist()],
            "scores": scores.tolist(),
            "correct": (place[answers] == query).tolist(),
        }
        for query, answers, scores in zip(asked.tolist(), found.rows, found.scores)
    ]
    sizes = {"num_images": len(image), "num_texts": len(text)}
    return {"schema": 1, "k": SHOWN_ANSWERS, **sizes, "text_to_image": to_image, "image_to_text": to_text}


def _spread(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(SHOWN_QUERIES, count)).round().long()


def _pictures(shown: dict[str, Any]) -> set[int]:
    queries = [*shown["text_to_image"], *shown["image_to_text"]]
    return {query["image"] for query in queries} | {row for query in shown["text_to_image"] for row in query["found"]}
