"""Zero-shot segmentation: every pixel gets the class whose words fit its patch best (MaskCLIP, arXiv 2112.01071)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.data import Data, DataField
from eval.dense_adapted import Adapted, DenseAdapterPart, WindowMaker, adapter_name, check_adapter
from eval.masks import IGNORED, Masks
from eval.overlays import Overlays
from eval.pixel_words import Background, Scored, Words, best_threshold, pixel_state, words_of
from eval.prompts import Names, Templates, class_names, class_templates
from eval.view import View
from eval.windows import Resize, Size, assembled, layout, look
from vlp.adapters.task import Task, short_hash
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.schema import DataError
from vlp.metrics import segmentation
from vlp.models.dense import DenseTower, How, denoised, grid_of, halves, key_smoothed
from vlp.types import BadSampleError

Scorer = Callable[[Tensor], Tensor]  # tokens [n, P, W] of DenseTower -> scores [n, P, texts], or [n, texts, h, w]


class Segmented(BenchmarkPart):
    """What segmentation benchmarks have in common: masks, names, how a picture is cut, background, numbers.

    `names` in the order of the mask's classes. Every pixel of the mask is scored: the picture is covered by windows of
    the model's size (`eval.windows`), and `data.resize_mode` does not matter. Scores are interpolated bilinearly.
    how, residual: the features that are compared with words, see `vlp.models.dense`; `tokens` are what `filip` trains.
    """

    method: ClassVar[str]

    names: Names = None
    templates: Templates = None
    masks: Masks = Masks()
    background: Background | None = None
    validation: DataField | None = None
    resize: Resize = "slide"
    overlap: float = Field(1 / 3, ge=0, lt=1)
    zoom: float = Field(1.0, ge=1)
    how: Literal["maskclip", "tokens"] = "maskclip"
    residual: bool = True
    batch: int = Field(64, ge=1)  # pictures held at once
    shown: int = Field(8, ge=0)  # overlays
    n_boot: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _one_background(self) -> Segmented:
        own = self.background
        if self.validation is not None and own is None and not self.learns:
            raise ValueError("validation chooses the background's threshold; say which class it is: background: {name}")
        given = [] if own is None else [bool(own.texts), own.threshold is not None, self.validation is not None]
        if sum(given) > 1:
            raise ValueError("background: one of `texts`, `threshold`, and `validation` to choose the threshold on")
        return self

    @property
    def named(self) -> dict[str, Data]:
        """Data beside the measured ones, by what they are for."""
        return {} if self.validation is None else {"validation": self.validation}

    def others(self) -> tuple[Data, ...]:
        """The same without the names."""
        return tuple(self.named.values())

    @property
    def learns(self) -> bool:
        """Whether pictures teach it, so that validation is for that and the background is a class like the others."""
        return False

    @property
    def by_threshold(self) -> bool:
        """Whether the background has no words: scores must then be shares."""
        if self.learns:
            return False
        return self.validation is not None or (self.background is not None and self.background.threshold is not None)

    @property
    def beside(self) -> How | Literal["keys"] | None:
        """What `scorer` needs of a patch beside the vector that words are compared with."""
        return None

    def tower(self, view: View, *, resize_mode: str | None = None) -> DenseTower:
        """The dense features that `scorer` takes."""
        return DenseTower(
            view.encoder.dual, self.how, beside=self.beside, residual=self.residual, resize_mode=resize_mode
        )

    def scorer(self, view: View, words: Words) -> Scorer:
        """What scores patches."""
        raise NotImplementedError

    def about(self, view: View) -> dict[str, str | int]:
        """What a record should say of data besides."""
        return {}

    def measure(self, view: View) -> Outcome:
        """mean_iou, pixel_accuracy, mean_class_accuracy, and where there is a background mean_iou_foreground."""
        names, templates = class_names(self.names, view), class_templates(self.templates, view)
        words = words_of(names, templates, self.background, by_threshold=self.by_threshold, dataset=view.dataset)
        skips = Counter[str](reasons_beside(view, self.named))
        scorer = self.scorer(view, words)
        threshold, selection = self._threshold(view, words, scorer, skips)
        view.label_reads["scoring"] += 1
        state = pixel_state(words)
        overlays = Overlays(view, words.names, count=self.shown, plain=words.background)
        ignored = n = 0
        for picture in self._scored(view, words, scorer, skips):
            scores = words.by_class(picture.scores, threshold)
            predicted = segmentation.predicted_classes(scores[None], picture.truth[None])[0]
            state.update(predicted[None], picture.truth[None])
            ignored += int((picture.truth == IGNORED).sum())
            n += 1
            overlays.add(picture.row, picture.truth, predicted)
        metrics = state.compute()
        counts = {"images": n, "classes": len(words.names), "templates": len(words.templates)}
        if not metrics:
            raise DataError(f"{view.dataset}: no pixel has a class in {self.masks.member}: {dict(skips)}")
        return Outcome(
            metrics=metrics,
            n=n,
            counts=counts | {"pixels_ignored": ignored},
            ci95=state.intervals(n_boot=self.n_boot),
            chance=state.chance(),
            head=self.head,
            templates_hash=short_hash(words.templates),
            classes_hash=short_hash(words.names),
            skips=dict(skips),
            selection=selection | self.about(view),
            files={f"segmentation{self.suffix()}.json": self._file(words, state, overlays)},
            shown={one["row"] for one in overlays.made},
        )

    @property
    def head(self) -> str:
        """What scores, for records."""
        return self.how

    def apart(self) -> tuple[object, ...]:
        return *super().apart(), self.suffix()

    def suffix(self) -> str:
        """What tells the files of several ways to segment apart."""
        return "" if self.method == self.how else f"_{self.how}" if self.method == "maskclip" else f"_{self.method}"

    def title(self) -> str:
        """The name of the way to segment, for reports."""
        return f"{self.method}, {self.how}" if self.method != self.how else self.method

    def _file(self, words: Words, state: segmentation.Segmentation, overlays: Overlays) -> dict[str, Any]:
        names = [name if words.names.count(name) == 1 else f"{name} {n}" for n, name in enumerate(words.names)]
        pixels = dict(zip(names, state.confusion().sum(dim=1).tolist()))
        iou = dict(zip(names, state.class_iou()))
        return {"schema": 1, "name": self.title(), "iou": iou, "pixels": pixels, "overlays": overlays.made}

    def _threshold(
        self, view: View, words: Words, scorer: Scorer, told: Counter[str]
    ) -> tuple[float | None, dict[str, str | int]]:
        """The background's threshold and what the record says of it; test masks play no part."""
        own = self.background
        if isinstance(scorer, Adapted):
            return None, scorer.selection
        if own is None or self.validation is None:
            given = None if own is None else own.threshold
            return given, {"split": "none", **({} if given is None else {"background_threshold": f"{given:g}"})}
        held = view.beside(self.validation)
        if held.opened.records.fingerprint == view.opened.records.fingerprint:
            raise DataError(
                f"{view.dataset}: validation is the same pictures as data, so the threshold would be chosen on the "
                "pictures that are measured; give other data, or background.threshold"
            )
        held.label_reads["choosing"] += 1
        skips = Counter[str]()
        best = best_threshold(own, words, self._scored(held, words, scorer, skips))
        told.update({f"validation_{reason}": count for reason, count in skips.items()})
        if best is None:
            raise DataError(f"{view.dataset}: no pixel of validation has a class: {dict(skips)}")
        return best, {
            "split": "validation",
            "candidates": len(own.candidates),
            "criterion": "mean_iou",
            "background_threshold": f"{best:g}",
            "validation_hash": held.opened.records.fingerprint,
        }

    def _scored(self, view: View, words: Words, scorer: Scorer, skips: Counter[str]) -> Iterator[Scored]:
        tower, device = self.tower(view), view.encoder.device
        window: Size = tower.transform.size
        for seen in look(view, tower, self.masks, self.arrange(window), skips, batch=self.batch):
            try:
                truth = self.masks.classes(seen.mask, words.names, background=words.background)
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            maps = scorer(seen.tokens.to(device))
            if maps.ndim == 3:
                maps = maps.transpose(1, 2).unflatten(2, grid_of(maps.shape[1], window))
            yield Scored(seen.row, assembled(maps, seen.layout, window, seen.mask.shape).cpu(), truth)

    def arrange(self, window: Size) -> Callable[[Size], Any]:
        """The layout of a mask's shape."""
        return lambda shape: layout(shape, window, resize=self.resize, overlap=self.overlap, zoom=self.zoom)


def reasons_beside(view: View, named: Mapping[str, Data]) -> dict[str, int]:
    """Pictures of other data that could not be read, by what the data are for and the reason."""
    reasons = {name: view.beside(data).encoded.reasons() for name, data in named.items()}
    return {f"{name}_{reason}": count for name, found in reasons.items() for reason, count in found.items()}


class Segmentation(Segmented):
    """MaskCLIP: cosine of dense features with class names in templates, at the model's temperature.

    prompt_denoising: classes that reach this probability nowhere in a window are out (paper: 0.5). key_smoothing:
    patches below this probability (1: all, as released) become means over patches with like keys. With one of them, or
    a threshold for the background, probabilities are interpolated, else logits. No CRF.

    adapter: what is compared and how is learned from `train`, whose pictures are cut into windows as those of data are;
    `validation` then chooses what the adapter has to choose, such as an epoch. The background is named like the others.
    """

    task: ClassVar[str] = "zeroshot_segmentation"
    method: ClassVar[str] = "maskclip"

    prompt_denoising: float | None = Field(None, gt=0, lt=1)
    key_smoothing: float | None = Field(None, gt=0, le=1)
    scale: float | None = Field(None, gt=0)  # default: the model's
    adapter: DenseAdapterPart | None = None
    train: DataField | None = None
    seed: int = 0  # of what the adapter draws

    @model_validator(mode="after")
    def _one_way(self) -> Segmentation:
        own, refined = self.background, (self.prompt_denoising, self.key_smoothing, self.scale) != (None,) * 3
        if self.adapter is None:
            if self.train is not None:
                raise ValueError("train teaches an adapter: give one, such as adapter: denseclip, or leave train out")
            return self
        check_adapter(self.adapter, "pixels", self.train, "train")
        if refined or (own is not None and (own.texts or own.threshold is not None)):
            raise ValueError(
                "adapter: scores every class by itself; leave out prompt_denoising, key_smoothing, scale, and of "
                "background all but its name"
            )
        return self

    @property
    def learns(self) -> bool:
        return self.adapter is not None

    @property
    def named(self) -> dict[str, Data]:
        return {**super().named, **({} if self.train is None else {"train": self.train})}

    @property
    def head(self) -> str:
        return f"{adapter_name(self.adapter)} on {self.how}" if self.adapter else self.how

    def suffix(self) -> str:
        return f"_{adapter_name(self.adapter)}" if self.adapter else super().suffix()

    def title(self) -> str:
        return self.head if self.adapter else super().title()

    @property
    def beside(self) -> How | Literal["keys"] | None:
        return "hidden" if self.adapter and self.adapter.hidden else "keys" if self.key_smoothing else None

    def scorer(self, view: View, words: Words) -> Scorer:
        if self.adapter is not None:
            tower = self.tower(view)
            windows = WindowMaker(tower, self.masks, self.arrange(tower.transform.size), words, self.batch)
            return Adapted.fitted(self.adapter, view, windows, self.train, self.validation, seed=self.seed)
        if len(words.texts) < 2:
            raise ValueError(
                f'{view.dataset}: "{words.texts[0]}" is the only class with words, and has all of the probability '
                "everywhere; give background.texts, or leave the threshold out"
            )
        weight = ZeroShot().fit(view.encoder, Task(words.texts, words.templates)).weight.to(view.encoder.device)
        scale = view.encoder.scale if self.scale is None else self.scale

        def score(tokens: Tensor) -> Tensor:
            features, keys = halves(tokens, weight.shape[1])
            logits = scale * features @ weight.T
            if not (self.prompt_denoising or self.key_smoothing or self.by_threshold):
                return logits
            if self.prompt_denoising:
                logits = denoised(logits, threshold=self.prompt_denoising)
            shares = logits.softmax(dim=-1)
            return key_smoothed(shares, keys, threshold=self.key_smoothing) if self.key_smoothing else shares

        return score
