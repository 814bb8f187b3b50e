"""Image-text retrieval with any number of captions a picture."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from eval.alignments import alignments
from eval.benchmark import BenchmarkPart, Outcome
from eval.heads import ByTokens, Conditioned, Head, Pairs, file_name
from eval.hits import RANKS
from eval.two_stage import TwoStage
from eval.view import View
from vlp.data.captions import Captions
from vlp.kernels.late import PadMax
from vlp.metrics.interval import of_means
from vlp.metrics.ranking import expected_average_precision, label_ranks
from vlp.metrics.recall import Found, Ranks, RecallAtK, best_answers, retrieval_ranks
from vlp.token_store import ImageTokens

SHOWN_QUERIES, SHOWN_ANSWERS = 24, 5
EXAMPLES = "retrieval"  # the file of the queries that are shown


class Answers(NamedTuple):
    """What one head made of a data set: ranks, and the best answers to the queries that are shown."""

    ranks: Ranks
    to_text: Found  # of pictures
    to_image: Found  # of captions


class Retrieval(BenchmarkPart):
    """Recall at k both ways: every caption asks for its picture; a picture finds any of its captions.

    Every caption in the first of `captions.fields` that holds text counts, lists whole.

    `head: tokens` lets the pooled features choose `rerank` candidates for each query, which its tokens then order
    (FILIP's late interaction): captions rank pictures by the mean over words of the best patch, pictures rank captions
    by the mean over patches of the best word. What is no candidate keeps its pooled order behind them. `rerank: 0`
    compares all pairs by tokens. `head: conditioned` orders the candidates by the cosine of the caption with the
    picture as that caption sees it (FLAIR's text-conditioned pooling).

    `all_captions`, of the pooled features: beside recall, where any caption of the picture will do, the mean share of
    all its captions among the first k, and mean average precision both ways.
    """

    task: ClassVar[str] = "zeroshot_retrieval"

    captions: Captions = Captions()
    k: tuple[int, ...] = (1, 5, 10)
    head: Head = "global"
    rerank: int = Field(128, ge=0)
    pad_max: PadMax = "exclude"  # zero: a patch may prefer padding, as in the authors' FILIP weights
    block: int = Field(256, ge=1)  # captions scored at once; no result depends on it
    all_captions: bool = False
    n_boot: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _all_of_the_pooled(self) -> Retrieval:
        if self.all_captions and self.head != "global":
            raise ValueError(f"all_captions: only of head: global, since {self.head} orders no more than some captions")
        return self

    def measure(self, view: View) -> Outcome:
        """Recalls and ranks; intervals draw pictures, since captions of one picture are not independent."""
        if self.head != "global":
            view.image_tokens()  # first, so that one pass makes features and tokens
        texts = view.texts(self.captions, purpose="scoring")
        rows, place = torch.unique(texts.caption_image, return_inverse=True)  # pictures without captions leave
        answer = self._by_features if self.head == "global" else self._in_two_stages
        answers = answer(view, texts.captions, rows, place)
        text = view.text_features(texts.captions)
        to_image = RecallAtK("image_retrieval", candidates=len(rows), k=self.k)
        to_image.update(answers.ranks.text_to_image, groups=place)
        to_text = RecallAtK("text_retrieval", candidates=len(text), k=self.k)
        to_text.update(answers.ranks.image_to_text, positives=torch.bincount(place))
        both = (to_image, to_text)
        shown = _examples(answers, place, rows, texts.captions)
        aligned = alignments(view, rows, place, texts.captions)
        reranked = {} if self.head == "global" else {"reranked": min(self.rerank or len(text), len(text))}
        found = Outcome(
            metrics={name: value for part in both for name, value in part.compute().items()},
            n=len(rows),
            counts={"images": len(rows), "texts": len(text), **reranked},
            ci95={name: value for part in both for name, value in part.intervals(n_boot=self.n_boot).items()},
            chance={name: value for part in both for name, value in part.chance().items()},
            lower_is_better=to_image.lower_is_better | to_text.lower_is_better,
            skips=texts.skips,
            items={"captions": texts.captions, "caption_image": texts.caption_image.tolist()},
            head=self.head,
            files={
                file_name(EXAMPLES, self.head): shown,
                file_name(RANKS, self.head): self._ranks(view, answers, rows, place),
                **({"alignment.json": aligned} if aligned else {}),
            },
            text=text,
            shown=_pictures(shown),
        )
        if self.all_captions:
            self._add_all(found, view.image[rows], text, place, answers.ranks)
        return found

    def _add_all(self, found: Outcome, image: Tensor, text: Tensor, place: Tensor, ranks: Ranks) -> None:
        """Numbers that count every right answer; a caption has one, and its average precision is 1 / rank."""
        of = label_ranks(image, text, torch.arange(len(image)), place, precision_at=self.k, block=self.block)
        shares = {f"text_retrieval_all_recall@{k}": of.hits[:, i] / of.positives for i, k in enumerate(self.k)}
        to_text = {"text_retrieval_mAP": of.average_precision, **shares}
        to_image = {"image_retrieval_mAP": 1 / ranks.text_to_image.double()}
        for columns, groups in ((to_text, None), (to_image, place)):
            values = torch.stack(list(columns.values()), dim=1).double()
            found.metrics |= dict(zip(columns, values.mean(dim=0).tolist()))
            found.ci95 |= dict(zip(columns, of_means(values, groups=groups, n_boot=self.n_boot)))
        found.chance |= {f"text_retrieval_all_recall@{k}": min(k, len(text)) / len(text) for k in self.k}
        found.chance |= {
            "text_retrieval_mAP": expected_average_precision(candidates=len(text), positives=of.positives),
            "image_retrieval_mAP": expected_average_precision(candidates=len(image), positives=torch.ones(1)),
        }

    @staticmethod
    def _ranks(view: View, answers: Answers, rows: Tensor, place: Tensor) -> dict[str, Any]:
        places = view.places()
        return {
            "schema": 1,
            "keys": [f"{places[row].shard}:{places[row].key}" for row in rows.tolist()],
            "caption_image": place.tolist(),
            "image_to_text": answers.ranks.image_to_text.tolist(),
            "text_to_image": answers.ranks.text_to_image.tolist(),
        }

    def _by_features(self, view: View, captions: list[str], rows: Tensor, place: Tensor) -> Answers:
        image, text = view.image[rows], view.text_features(captions)
        ranks = retrieval_ranks(image, text, place, block=self.block)
        to_text = best_answers(image[_spread(len(image))], text, k=SHOWN_ANSWERS)
        return Answers(ranks, to_text, best_answers(text[_spread(len(text))], image, k=SHOWN_ANSWERS))

    def _in_two_stages(self, view: View, captions: list[str], rows: Tensor, place: Tensor) -> Answers:
        encoded, text = view.image_tokens(), view.text_features(captions)
        if len(rows) < len(encoded.kept):
            encoded = encoded.rows(rows)
        pairs = self._pairs(view, encoded, captions)
        stages = TwoStage(encoded.features, text, place, pairs, rerank=self.rerank, block=self.block)
        to_text = stages.best("image", _spread(len(rows)), k=SHOWN_ANSWERS)
        return Answers(stages.ranks(), to_text, stages.best("text", _spread(len(captions)), k=SHOWN_ANSWERS))

    def _pairs(self, view: View, encoded: ImageTokens, captions: list[str]) -> Pairs:
        device = view.encoder.device
        if self.head == "conditioned":
            text = view.text_features(captions)
            return Conditioned.of(view.encoder.dual, encoded.tokens, text, device=device)
        return ByTokens(encoded, view.text_tokens(captions), self.pad_max, device)


def _examples(answers: Answers, place: Tensor, rows: Tensor, captions: list[str]) -> dict[str, Any]:
    """Queries evenly spread over the data set, whatever the model made of them, and their best answers."""
    ranks, found = answers.ranks, answers.to_image
    to_image = [
        {
            "caption": query,
            "text": captions[query],
            "image": int(rows[place[query]]),
            "rank": int(ranks.text_to_image[query]),
            "found": rows[best].tolist(),
            "scores": scores.tolist(),
            "correct": (best == place[query]).tolist(),
        }
        for query, best, scores in zip(_spread(len(captions)).tolist(), found.rows, found.scores)
    ]
    found = answers.to_text
    to_text = [
        {
            "image": int(rows[query]),
            "rank": int(ranks.image_to_text[query]),
            "found": best.tolist(),
            "texts": [captions[answer] for answer in best.tolist()],
            "scores": scores.tolist(),
            "correct": (place[best] == query).tolist(),
        }
        for query, best, scores in zip(_spread(len(rows)).tolist(), found.rows, found.scores)
    ]
    sizes = {"num_images": len(rows), "num_texts": len(captions)}
    return {"schema": 1, "k": SHOWN_ANSWERS, **sizes, "text_to_image": to_image, "image_to_text": to_text}


def _spread(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(SHOWN_QUERIES, count)).round().long()


def _pictures(shown: dict[str, Any]) -> set[int]:
    queries = [*shown["text_to_image"], *shown["image_to_text"]]
    return {query["image"] for query in queries} | {row for query in shown["text_to_image"] for row in query["found"]}
