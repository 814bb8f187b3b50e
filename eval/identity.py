"""Retrieval where every picture with the query's label is right: identities of persons (PLIP), classes (ConVIRT)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.class_folders import label_reader
from eval.data import Data, DataField, locate
from eval.hits import Column, hits_file, picture_keys
from eval.prompts import Names, Templates, class_names, class_templates
from eval.retrieve import SHOWN_ANSWERS, SHOWN_QUERIES
from eval.view import View
from vlp.data.captions import Captions
from vlp.data.fields import Fields
from vlp.data.labels import Labels
from vlp.data.schema import DataError
from vlp.metrics import ranking
from vlp.metrics.recall import best_answers
from vlp.registry import nearest
from vlp.text.templates import fill
from vlp.types import BadSampleError

Asking = Literal["captions", "classes", "pictures"]
PREFIX: dict[Asking, str] = {"captions": "text_to_image", "classes": "class_to_image", "pictures": "image_to_image"}


class Pictures(NamedTuple):
    """The pictures that have a label, and the captions of each, where these ask."""

    rows: list[int]
    labels: list[str]
    texts: list[list[str]]


class Queries(NamedTuple):
    """What asks, for which label, and what intervals draw."""

    features: Float[Tensor, "Q D"]
    labels: list[str]
    texts: list[str]  # the words, or of a picture its key
    drawn: list[str]
    rows: list[int | None]  # the picture that asks; None: words do, or a picture of other data
    own: Int[Tensor, "Q"] | None = None  # place in the gallery of the picture that asks


class Answers(NamedTuple):
    """What one kind of queries found."""

    metric: ranking.LabelRetrieval
    ranks: ranking.LabelRanks
    queries: Queries
    examples: list[dict[str, Any]]


class LabelRetrieval(BenchmarkPart):
    """mAP, mINP, recall@k and precision@k of queries to which every picture with the same label is a right answer.

    `queries`, each with metrics of its own: `captions` of pictures (identities of persons: PLIP, arXiv 2305.08386),
    `classes` (every name in every template, or `prompts`: sentences by label, or a JSON file of them, as ConVIRT's
    experts wrote, arXiv 2010.00747), and `pictures`, to which they are no answer themselves. `query`: other data whose
    captions and pictures ask, such as ConVIRT's ten pictures a class. `label` holds a number or a word; pictures
    without one, and queries without a right answer, are left out and counted.

    Intervals draw labels with all their queries (`draw: label`), as identities do not fail caption by caption; or
    with `draw: query` the pictures that ask, each with its captions, and single prompts.
    """

    task: ClassVar[str] = "label_retrieval"

    label: str = "cls"
    queries: tuple[Asking, ...] = Field(("captions",), min_length=1)
    captions: Captions = Captions()
    names: Names = None  # as for `zeroshot`
    templates: Templates = None
    prompts: dict[str, tuple[str, ...]] | str | None = None
    query: DataField | None = None
    k: tuple[int, ...] = (1, 5, 10)
    precision_at: tuple[int, ...] = (5, 10, 100)
    draw: Literal["label", "query"] = "label"
    n_boot: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _settings_that_do_something(self) -> LabelRetrieval:
        words = [name for name in ("names", "templates", "prompts") if getattr(self, name) is not None]
        if words and "classes" not in self.queries:
            raise ValueError(f"{', '.join(words)}: only for queries: [classes], not {list(self.queries)}")
        if self.prompts is not None and len(words) > 1:
            raise ValueError("prompts: are whole sentences by label, so names and templates do nothing; leave them out")
        if self.query is not None and self.queries == ("classes",):
            raise ValueError("query: data whose captions or pictures ask, and queries are only [classes]")
        return self

    def others(self) -> tuple[Data, ...]:
        """The data that ask."""
        return () if self.query is None else (self.query,)

    def measure(self, view: View) -> Outcome:
        """Numbers of every kind of queries."""
        asks = view if self.query is None else self._asking(view, self.query)
        names = class_names(self.names, view) if "classes" in self.queries and self.prompts is None else None
        say, skips = self._say(names, view), Counter[str]()
        view.label_reads["scoring"] += 1
        captions = self.captions if "captions" in self.queries else None
        known = self._read(view, say, captions if asks is view else None, skips)
        asking = known if asks is view else self._read(asks, say, captions, skips, prefix="query_")
        image = view.image[known.rows]
        every = {}
        for kind in dict.fromkeys(self.queries):
            queries = self._classes(view, names) if kind == "classes" else self._of_pictures(kind, asks, view, asking)
            every[kind] = self._answers(view, kind, queries, known, image)
            skips.update({f"{kind}_{why.partition('_')[2]}": n for why, n in every[kind].metric.skipped.items()})
        metrics = [answers.metric for answers in every.values()]
        shown = {PREFIX[kind]: answers.examples for kind, answers in every.items()}
        said = [one for examples in shown.values() for one in examples]
        sizes = {f"asking_{kind}": len(answers.queries.labels) for kind, answers in every.items()}
        file = {"schema": 1, "k": SHOWN_ANSWERS, "num_images": len(image), "num_texts": sum(sizes.values()), **shown}
        return Outcome(
            metrics={name: value for metric in metrics for name, value in metric.compute().items()},
            n=len(image),
            counts={"images": len(image), "labels": len(set(known.labels)), **sizes},
            ci95={name: ends for one in metrics for name, ends in one.intervals(n_boot=self.n_boot).items()},
            chance={name: value for metric in metrics for name, value in metric.chance().items()},
            head="global",
            skips=dict(skips),
            files={"label_retrieval.json": file, **self._hits(every)},
            shown={row for one in said for row in (*one["found"], one["image"], one["query"]) if row is not None},
        )

    def _asking(self, view: View, query: Data) -> View:
        asks = view.beside(query)
        if asks.opened.records.fingerprint == view.opened.records.fingerprint:
            raise DataError(f"{view.dataset}: query are the pictures of data; leave it out, and none finds itself")
        asks.label_reads["scoring"] += 1
        return asks

    def _say(self, names: tuple[str, ...] | None, view: View) -> Callable[[Fields], str]:
        """Reads the label of a sample."""
        if names is None:
            return lambda fields: label_of(fields, self.label)
        stage = Labels(field=self.label, classes=names if len(set(names)) == len(names) and all(names) else ())
        read = label_reader(stage, view.opened.folders, where=view.dataset)

        def name(fields: Fields) -> str:
            place = read(fields)
            if place >= len(names):
                raise BadSampleError("bad_label", f"{self.label} is {place}, there are {len(names)} classes")
            return names[place]

        return name

    def _read(
        self,
        view: View,
        say: Callable[[Fields], str],
        captions: Captions | None,
        skips: Counter[str],
        *,
        prefix: str = "",
    ) -> Pictures:
        found, detail = Pictures([], [], []), ""
        for row in range(len(view.encoded.kept)):
            fields, texts = view.fields(row, (self.label, *(captions.fields if captions else ()))), list[str]()
            try:
                label = say(fields)
            except BadSampleError as error:
                skips[f"{prefix}{error.reason}"] += 1
                detail = detail or str(error)
                continue
            try:
                texts = list(dict.fromkeys(captions.texts(fields))) if captions else texts
            except BadSampleError as error:  # asks nothing, and can still be found
                skips[f"{prefix}{error.reason}"] += 1
            found.rows.append(row)
            found.labels.append(label)
            found.texts.append(texts)
        if not found.rows:
            what = "query: " if prefix else ""
            raise DataError(f"{view.dataset}: {what}no picture has a label in {self.label}: {dict(skips)} ({detail})")
        return found

    def _of_pictures(self, kind: Asking, asks: View, view: View, found: Pictures) -> Queries:
        """Queries of captions or pictures."""
        keys = picture_keys(asks, found.rows)
        if kind == "pictures":
            own = torch.arange(len(keys)) if asks is view else None
            rows: list[int | None] = [*found.rows] if asks is view else [None] * len(keys)
            drawn = found.labels if self.draw == "label" else keys
            return Queries(asks.image[found.rows], found.labels, keys, drawn, rows, own)
        places = [place for place, texts in enumerate(found.texts) for _ in texts]
        texts = [text for texts in found.texts for text in texts]
        if not texts:
            raise DataError(f"{view.dataset}: no picture with a label has a caption in {self.captions.fields}")
        labels = [found.labels[place] for place in places]
        drawn = labels if self.draw == "label" else [keys[place] for place in places]
        return Queries(view.text_features(texts), labels, texts, drawn, [None] * len(texts))

    def _classes(self, view: View, names: tuple[str, ...] | None) -> Queries:
        if names is None:
            pairs = [(label, text) for label, texts in self._prompts(view).items() for text in texts]
        else:
            templates = class_templates(self.templates, view)
            pairs = [(name, fill(template, name)) for name in dict.fromkeys(names) for template in templates]
        labels, texts = map(list, zip(*pairs))
        drawn = labels if self.draw == "label" else texts
        return Queries(view.text_features(texts), labels, texts, drawn, [None] * len(texts))

    def _prompts(self, view: View) -> dict[str, Sequence[str]]:
        """Sentences by label; DataError for a file that holds something else."""
        given: Any = self.prompts
        if isinstance(given, str):
            path = Path(locate(given, folders=view.folders))
            try:
                given = TypeAdapter(dict[str, tuple[str, ...]]).validate_json(path.read_bytes())
            except ValueError as error:
                raise DataError(f'{path}: wanted sentences by label, {{"edema": ["...", "..."]}}: {error}') from None
        if not any(given.values()):
            raise DataError(f"{view.dataset}: prompts hold no sentence")
        return {label: texts for label, texts in given.items() if texts}

    def _answers(self, view: View, kind: Asking, queries: Queries, known: Pictures, image: Tensor) -> Answers:
        number = {label: place for place, label in enumerate(dict.fromkeys([*known.labels, *queries.labels]))}
        asked, there = (torch.tensor([number[word] for word in labels]) for labels in (queries.labels, known.labels))
        ranks = ranking.label_ranks(
            queries.features, image, asked, there, precision_at=self.precision_at, own=queries.own
        )
        if not bool((ranks.positives > 0).any()):
            word = queries.labels[0]
            hint = nearest(word, set(known.labels)) if word not in known.labels else ": no two pictures share a label"
            raise DataError(f'{view.dataset}: no picture is a right answer to any of the {kind}, as to "{word}"{hint}')
        metric = ranking.LabelRetrieval(
            PREFIX[kind], len(image) - (queries.own is not None), recall_at=self.k, precision_at=self.precision_at
        )
        place = {name: number for number, name in enumerate(dict.fromkeys(queries.drawn))}
        metric.update(ranks, groups=torch.tensor([place[name] for name in queries.drawn]))
        return Answers(metric, ranks, queries, _examples(queries, ranks, image, known, (asked, there)))

    def _hits(self, every: dict[Asking, Answers]) -> dict[str, Any]:
        """Whether the first k held a right answer; one column a kind and k, null for queries of the other kinds."""
        keys, items, columns = list[str](), list[str](), dict[str, Column]()
        total = sum(len(answers.queries.labels) for answers in every.values())
        for kind, (_, ranks, queries, _) in every.items():
            asked = ranks.positives > 0
            for k in self.k:
                own = [float(hit) if there else None for hit, there in zip((ranks.first <= k).tolist(), asked.tolist())]
                rest = total - len(keys) - len(own)
                columns[f"{PREFIX[kind]}_recall@{k}"] = [*[None] * len(keys), *own, *[None] * rest]
            keys += queries.drawn
            items += queries.texts
        return hits_file("label_retrieval", keys, items, columns)


def label_of(fields: Fields, field: str) -> str:
    """The number or word in the field, as a word; BadSampleError no_label or bad_label."""
    value = fields.find(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadSampleError("no_label", f"no {field}")
    if not isinstance(value, str | int):
        raise BadSampleError("bad_label", f"{field} is {value!r}; a label is a number or a word")
    return str(value).strip()


def _examples(
    queries: Queries, ranks: ranking.LabelRanks, image: Tensor, known: Pictures, labels: tuple[Tensor, Tensor]
) -> list[dict[str, Any]]:
    """Queries evenly spread over those with a right answer, and their best answers, in the shape of retrieval.json."""
    asked, there = labels
    able = (ranks.positives > 0).nonzero().flatten()
    shown = able[torch.linspace(0, len(able) - 1, min(SHOWN_QUERIES, len(able))).round().long()]
    found = best_answers(queries.features[shown], image, k=SHOWN_ANSWERS + 1)
    examples = []
    for query, places, scores in zip(shown.tolist(), found.rows.tolist(), found.scores.tolist()):
        own, right = None if queries.own is None else int(queries.own[query]), there == asked[query]
        if own is not None:
            right[own] = False
        best = [(place, score) for place, score in zip(places, scores) if place != own][:SHOWN_ANSWERS]
        nearest_right = (image @ queries.features[query]).masked_fill(~right, -torch.inf).argmax()
        examples.append(
            {
                "query": queries.rows[query],
                "text": queries.texts[query],
                "label": queries.labels[query],
                "image": known.rows[int(nearest_right)],
                "rank": int(ranks.first[query]),
                "found": [known.rows[place] for place, _ in best],
                "scores": [score for _, score in best],
                "correct": [bool(right[place]) for place, _ in best],
            }
        )
    return examples
