"""Training on one domain after another: the sequence, the methods compared on it, and their plan of ordinary runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from vlp import config
from vlp.config import ConfigError
from vlp.duration import Duration, Span
from vlp.optim import Infinite, Schedule
from vlp.registry import Part, nearest
from vlp.run import Run, SchedulePart

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Settings = dict[str, Any]
START = "0-start"


class Domain(Part):
    """One domain: what is trained on and for how long, and which benchmark of the suites measures it.

    metrics: their mean is the domain's score; default: of retrieval all recalls, of classification `acc1`.
    """

    name: Name
    sources: Annotated[tuple[Settings, ...], Field(min_length=1)]  # as in data.sources of a run
    duration: Duration
    test: str | None = Field(None, description="`dataset` of its benchmark in the suites; default: the domain's name")
    metrics: tuple[str, ...] = ()
    run: Settings = Field({}, description="settings of a run that hold in this domain")


class Arm(Part):
    """A method, as what differs from plain fine-tuning in sequence; "{previous}" is the run of the domain before.

    replay: that share of every batch comes from all earlier domains, in equal parts. joint: all domains at once, each
    with the number of samples that it has in the sequence.
    """

    run: Settings = Field({}, description="settings of a run that hold in every domain")
    later: Settings = Field({}, description="settings from the second domain on, laid over `run`")
    replay: float = Field(0.0, ge=0.0, lt=1.0)
    joint: bool = False

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Arm:
        if self.joint and (self.later or self.replay):
            raise ValueError("joint: there is one run for all domains, so `later` and `replay` mean nothing")
        return self


class Suite(Part):
    """A suite of benchmarks that is run after every domain."""

    suite: str
    overrides: Settings = {}


class Continual(Part):
    """A sequence of domains and the methods that are compared on it. `vlp continual FILE` makes all of them.

    Settings of a run are laid over each other in this order, lists whole: `base` (a file), `run`, the arm's `run`, from
    the second domain on the arm's `later`, the domain's `run`. "{data}" in them, in sources and in suites is `data`.
    """

    name: Name = "continual"
    out: str = "runs/out"
    data: str = Field("data", description='folder of the data sets, where settings say "{data}"')
    base: str | None = Field(None, description="YAML file of a run")
    run: Settings = {}
    schedule: SchedulePart = Infinite(
        warmup=Span(10, "percent"), cooldown=Span(20, "percent"), anneal=Span(20, "percent")
    )
    domains: Annotated[tuple[Domain, ...], Field(min_length=2)]
    evals: Annotated[tuple[Suite, ...], Field(min_length=1)]
    arms: Annotated[dict[Name, Arm], Field(min_length=1)] = {"finetune": Arm()}

    @model_validator(mode="after")
    def _distinct(self) -> Continual:
        names = [domain.name for domain in self.domains]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two domains are called {', '.join(twice)}; give each a name of its own")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name


def plan(continual: Continual, arm: str) -> list[Run]:
    """The runs of an arm, in order; ConfigError with dotted paths for what is wrong in any of them."""
    if arm not in continual.arms:
        raise ConfigError(f'no arm "{arm}"{nearest(arm, continual.arms)}')
    method = continual.arms[arm]
    if method.joint:
        return [_joint(continual, arm)]
    runs: list[Run] = []
    for number, domain in enumerate(continual.domains):
        layers = [continual.run, method.run, *([method.later] if number else []), domain.run]
        last = number == len(continual.domains) - 1
        own: Settings = {
            "name": f"{number + 1}-{domain.name}",
            "data": {"sources": _sources(continual.domains[: number + 1], method.replay)},
            "duration": str(domain.duration),
            "schedule": _dumped(spread(continual.schedule, first=number == 0, last=last)),
        }
        if runs:
            own["model"] = {"pretrained": str(runs[-1].folder)}
        runs.append(_run(continual, arm, [*layers, own], previous=runs[-1].folder if runs else None))
    return runs


def spread(schedule: Schedule, *, first: bool, last: bool) -> Schedule:
    """The part of a sequence's schedule that one domain has.

    `infinite` warms up and cools down in the first domain and anneals in the last, constant in between
    (arXiv 2403.08763); any other schedule runs whole in every domain.
    """
    if not isinstance(schedule, Infinite):
        return schedule
    none = Span(0, "steps")
    return schedule.model_copy(
        update={**({} if first else {"warmup": none, "cooldown": none}), **({} if last else {"anneal": none})}
    )


def laid_over(values: Mapping[str, Any], more: Mapping[str, Any]) -> Settings:
    """`values` with those of `more` in their places: mappings key by key, everything else whole."""
    result = dict(values)
    for key, value in more.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = laid_over(below, value) if both else value  # type: ignore[arg-type]
    return result


def filled(value: Any, words: Mapping[str, str]) -> Any:
    """The same value with "{word}" replaced in every string in it."""
    if isinstance(value, str):
        for word, meaning in words.items():
            value = value.replace(f"{{{word}}}", meaning)
        return value
    if isinstance(value, Mapping):
        return {key: filled(item, words) for key, item in value.items()}
    return [filled(item, words) for item in value] if isinstance(value, list | tuple) else value


def _joint(continual: Continual, arm: str) -> Run:
    """One run over all domains, as long as the sequence."""
    for domain in continual.domains:
        if domain.run:
            raise ConfigError(f"arm {arm}: joint, but domain {domain.name} has settings of its own (`run`)")
    units = {domain.duration.unit for domain in continual.domains}
    if len(units) > 1 or not units <= {"steps", "samples"}:
        raise ConfigError(f"arm {arm}: joint needs the duration of every domain in steps, or of every one in samples")
    spent = [domain.duration.value for domain in continual.domains]
    shares = [(domain, value / sum(spent)) for domain, value in zip(continual.domains, spent, strict=True)]
    own: Settings = {
        "name": "1-joint",
        "data": {"sources": _mixture(shares)},
        "duration": str(Span(sum(spent), units.pop())),
        "schedule": _dumped(continual.schedule),
    }
    return _run(continual, arm, [continual.run, continual.arms[arm].run, own], previous=None)


def _run(continual: Continual, arm: str, layers: Sequence[Mapping[str, Any]], *, previous: Path | None) -> Run:
    values: Settings = config.read_yaml(continual.base) if continual.base else {}
    for layer in layers:
        values = laid_over(values, layer)
    where = f"arm {arm}, run {values['name']}"
    words = {"data": continual.data, **({"previous": str(previous)} if previous else {})}
    values = filled({**values, "out": str(continual.folder / arm), "evals": []}, words)
    if "{previous}" in config.to_yaml(values):
        raise ConfigError(f'{where}: "{{previous}}" means nothing here; settings that name it belong into `later`')
    return config.validate(Run, values, where=where)


def _sources(domains: Sequence[Domain], replay: float) -> list[Settings]:
    """Sources of the last domain, with `replay` of the slots for those of the earlier ones."""
    *earlier, now = domains
    if not (replay and earlier):
        return list(now.sources)
    if now.duration.unit == "epochs":
        raise ConfigError(
            f"domain {now.name}: {now.duration}, but with replay an epoch is a pass over the earlier domains too, so "
            "the arm would train for longer than the others; give its duration in samples or steps"
        )
    return _mixture([(now, 1 - replay), *((domain, replay / len(earlier)) for domain in earlier)])


def _mixture(shares: Sequence[tuple[Domain, float]]) -> list[Settings]:
    """All sources, each with its share of the slots as weight."""
    result = []
    for domain, share in shares:
        weights = [source.get("weight") for source in domain.sources]
        if len(weights) > 1 and None in weights:
            raise ConfigError(
                f"domain {domain.name} has {len(weights)} sources; give each a weight, so that it is known how they "
                "share the domain's part of a mixture"
            )
        known = [float(weight or 1.0) for weight in weights]
        result += [
            {**source, "weight": share * weight / sum(known)}
            for source, weight in zip(domain.sources, known, strict=True)
        ]
    return result


def _dumped(schedule: Schedule) -> Settings:
    from vlp.optim import SCHEDULES

    return SCHEDULES.dump(schedule)
