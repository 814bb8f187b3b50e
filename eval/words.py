"""What `vlp eval MODEL... SUITE... key=value...` was asked: words sorted by what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eval.own import is_model, is_pictures, suite_of_folder
from eval.suite import Suite, load_suite
from vlp import paths

SUITE_ENDINGS = (".yaml", ".yml")


class Asked(NamedTuple):
    """Models in their order, suite files, folders of pictures, and overrides of the suites."""

    models: list[str]
    suites: list[Path]
    overrides: list[str]
    pictures: list[Path]

    def plans(self, more: Sequence[str] = ()) -> list[Suite]:
        """The suites, those of picture folders last."""
        overrides = [*self.overrides, *more]
        return [*(load_suite(file, overrides) for file in self.suites), *map(suite_of_folder, self.pictures)]


def sort_words(words: Sequence[str]) -> Asked:
    """The words by kind; ValueError where a model or a suite is missing."""
    asked = Asked([], [], [], [])
    for word in words:
        if "=" not in word:
            paths.refuse_url(word)
        if word.endswith(SUITE_ENDINGS) and "=" not in word:
            asked.suites.append(Path(word))
        elif "=" in word and not Path(word).exists():
            asked.overrides.append(word)
        elif is_pictures(Path(word)):
            asked.pictures.append(Path(word))
        else:
            asked.models.append(word)
    if not asked.models:
        taken = f" ({', '.join(map(str, asked.pictures))} holds pictures, no model)" if asked.pictures else ""
        raise ValueError(
            f"no model was given{taken}: vlp eval MODEL SUITE.yaml, e.g. vlp eval runs/out/demo "
            "configs/eval/scenes.yaml"
        )
    for word in asked.models:
        if said := _neither(Path(word)):
            raise ValueError(f"{word}: {said}")
    if not asked.suites and not asked.pictures:
        raise ValueError(
            f"no suite was given for {', '.join(asked.models)}: add a YAML file of benchmarks, such as "
            "configs/eval/scenes.yaml, or a folder of pictures in class folders"
        )
    return asked


def _neither(path: Path) -> str | None:
    """Why what was taken for a model is none, nor pictures, where that can be told by looking."""
    if path.is_dir() and not is_model(path):
        inside = paths.listed(sorted(place.name for place in path.iterdir()))
        holds = f"; it holds {inside}" if inside else ""
        return f"{paths.kind_of(path)}: neither a model nor pictures in it or in folders in it{holds}"
    if path.suffix == ".tar" and path.is_file():
        return "a tar is no model; to measure on it name it in a suite (`data: FILE`), or unpack it and name the folder"
    return None


def own_names(models: Sequence[str]) -> list[str]:
    """A name for each model that no other has: the end of its path, and as much of what is before as it takes."""
    parts = [Path(model).resolve().parts if Path(model).exists() else (model.replace("/", "_"),) for model in models]
    names = []
    for own in parts:
        taken = next(n for n in range(1, len(own) + 1) if n == len(own) or _alone(own, parts, n))
        names.append("_".join(part.strip("/") for part in own[-taken:]))
    return names


def _alone(own: Sequence[str], others: Sequence[Sequence[str]], count: int) -> bool:
    return sum(tuple(other[-count:]) == tuple(own[-count:]) for other in others) == 1
