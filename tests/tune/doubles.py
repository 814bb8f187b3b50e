"""Small adapters and folders of features, so that what `vlp tune` does is known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import Adapter, class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.tune.guard import Guard

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
SEEN: list = []  # tasks that adapters of these tests were given


class Means(Adapter):
    """Nearest class mean, and words for classes without pictures; other names by words alone."""

    wants = ("support",)
    views: ClassVar[int] = 2
    weight: float = 1.0
    protocol: Literal["honest", "paper"] = "honest"

    def fit(self, encoder, task):
        SEEN.append(task)
        support = self.given(task, "support")
        rows = class_weights(encoder, task).clone()
        for label in support.known.unique().tolist():
            rows[label] = rows[label] + self.weight * support.image[support.known == label].mean(dim=0)
        split = "test" if task.test is not None else "validation" if task.validation is not None else "none"
        about = {"adapter": "means", "selection": {"split": split, "candidates": 1}}
        return LinearClassifier(normalize(rows, dim=1), names=task.names, scale=encoder.scale, about=about)

    def transfer(self, encoder, classifier, task):
        SEEN.append(task)
        return LinearClassifier(class_weights(encoder, task), names=task.names, scale=encoder.scale)


class Cheat(Adapter):
    """Asks every guard that it finds for the labels."""

    wants = ("support",)
    guards: ClassVar[list[Guard]] = []

    def fit(self, encoder, task):
        SEEN.append(task)
        return self.guards[0].label("peeking")


class CheatMore(Cheat):
    """Asks for what only the paper's protocol hands out."""

    def fit(self, encoder, task):
        return self.guards[0].leaked()


class Looks(Adapter):
    """Sees the measured pictures, or pictures without labels."""

    wants = ("query",)
    transductive: ClassVar[bool] = True

    def fit(self, encoder, task):
        SEEN.append(task)
        assert self.given(task, "query").label is None
        return LinearClassifier(class_weights(encoder, task), names=task.names, scale=encoder.scale)


class Pool(Adapter):
    """Wants pictures without labels."""

    wants = ("unlabelled",)

    def fit(self, encoder, task):
        SEEN.append(task)
        assert self.given(task, "unlabelled").label is None
        return LinearClassifier(class_weights(encoder, task), names=task.names, scale=encoder.scale)


class Tower(Adapter):
    """Runs towers; its classifier sees uint8 pictures and says their mean colour."""

    level: ClassVar = "towers"
    wants = ("support",)

    def fit(self, encoder, task):
        SEEN.append(task)
        return ByPixels(class_weights(encoder, task), names=task.names)


class ByPixels(LinearClassifier):
    needs = "pictures"

    def __call__(self, inputs):
        assert inputs.dtype == torch.uint8
        return super().__call__(normalize(inputs.float().mean(dim=(2, 3)) / 255 + 0.01, dim=1))


class Breaks(Adapter):
    """Fails."""

    wants = ("support",)

    def fit(self, encoder, task):
        raise ValueError("it broke")


TABLE = {cls.__name__.lower(): cls for cls in (Means, Cheat, CheatMore, Looks, Pool, Tower, Breaks)}


@pytest.fixture
def methods(monkeypatch):
    """The adapters of this file by their names in small letters."""
    SEEN.clear()
    for name, cls in TABLE.items():
        monkeypatch.setitem(ADAPTERS.entries, name, f"{cls.__module__}:{cls.__qualname__}")


def arrays(*, seed=0, classes=6, width=8, train=10, test=5, noise=0.35):
    """Gaussian classes, with words that are near their means: name of a file -> arrays."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, width))
    means /= np.linalg.norm(means, axis=1, keepdims=True)

    def drawn(count):
        label = np.repeat(np.arange(classes), count)
        return {"image": (means[label] + noise * rng.normal(size=(len(label), width))).astype("f4"), "label": label}

    return {
        "train": drawn(train),
        "val": drawn(4),
        "test": drawn(test),
        "classes": {"text": means + 0.4 * rng.normal(size=means.shape), "names": np.array(NAMES[:classes])},
    }


def write(folder: Path, found) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        np.savez(folder / f"{name}.npz", **content)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "features", arrays())
