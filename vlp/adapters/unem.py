"""EM-Dirichlet unrolled into layers whose hyper-parameters are learned (UNEM, Zhou et al. 2025)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.dirichlet import (
    EPS,
    Labelled,
    by_newton,
    labelled,
    log_constant,
    log_features,
    log_shares,
    sums,
)
from vlp.adapters.em_dirichlet import DirichletClassifier, cosines
from vlp.adapters.episodes import episodes
from vlp.adapters.selection import folds
from vlp.adapters.task import Examples, Task
from vlp.progress import progress

TRACE = 1e-10  # pictures of a task in a cluster below which it is that of the support alone


class Unem(Adapter):
    """`em_dirichlet` of `layers` rounds, with penalties, temperatures and the scale of z learned (arXiv 2412.16739).

    Round l: u = softmax((log Dirichlet(z; alpha_k) + softplus(g_l) v_k) / (1 + softplus(t_l))), z = softmax(T f·w);
    g from `gamma` (None: C / `effective`), t from 1, T from `temperature`, all learned; `shared` has one g and t for
    all rounds, `tempered: false` learns g alone. Adam on the cross-entropy of u over `tasks` tasks drawn as in
    `episodes`, at half the rate in the second half. Their pictures come from validation (with the support as it is),
    else from folds of the support: no task's support has its measured pictures, as theirs may. `effective` should be
    what a measured set has. Clusters are classes, without matching; their parameters are the likeliest, which Newton's
    method finds in a few steps, where the authors take up to 1,000 of majorisation. `layers: 0` is zero-shot.
    """

    wants: ClassVar[tuple[Given, ...]] = ("query",)
    takes: ClassVar[tuple[Given, ...]] = ("support", "validation")
    transductive: ClassVar[bool] = True

    layers: int = Field(10, ge=0)
    temperature: float = Field(30.0, gt=0)
    gamma: float | None = None
    shared: bool = False
    tempered: bool = True
    effective: int = Field(5, ge=1)
    queries: int = Field(75, ge=1)
    tasks: int = Field(100, ge=1)
    batch: int = Field(15, ge=1)
    epochs: int = Field(80, ge=0)
    lr: float = Field(0.5, gt=0)

    def fit(self, encoder: Any, task: Task) -> DirichletClassifier | LinearClassifier:
        """A classifier that holds the mixture of the last round; of the measured pictures it says their u."""
        query, text = self.given(task, "query"), class_weights(encoder, task)
        about: dict[str, Any] = {"adapter": "unem", "settings": self.model_dump(mode="json"), "seed": task.seed}
        if not self.layers:
            about["selection"] = {"split": "none"}
            return LinearClassifier(text, names=task.names, scale=encoder.scale, about=about)
        model = Unrolled(self, len(text))
        lessons, split = self._lessons(task, text)
        loss = self._train(model, lessons, quiet=getattr(encoder, "quiet", False))
        support = task.support if task.support is not None and len(task.support) else None
        with torch.no_grad():
            found = model(_task_of(query, support, text))
            about["learned"] = model.learned()
        about["selection"] = {"split": split, "tasks": self.tasks, "epochs": self.epochs, "loss": loss}
        return DirichletClassifier(
            text,
            found.alpha[0],
            found.prior[0],
            owner=torch.arange(len(text)),
            temperature=model.temperature.item(),
            sharpness=found.sharpness.item(),
            names=task.names,
            about=about,
        )

    def _lessons(self, task: Task, text: Float[Tensor, "K D"]) -> tuple[list[_Lesson], str]:
        """Tasks to learn from, in batches of one support, and the split that they come from."""
        found = folds(task)
        pairs: list[tuple[Examples | None, Examples]] = [(one.learn, one.judge) for one in found.folds]
        split = found.split
        if not pairs and task.validation is not None and len(task.validation):
            pairs, split = [(None, task.validation)], "validation"
        if not pairs:
            raise ValueError(
                "Unem learns its penalties from labelled pictures that are not in the support: give `validation`, or "
                "two shots or more, of which some are held out; em_dirichlet does without"
            )
        rng = torch.Generator().manual_seed(task.seed)
        lessons = []
        for number, (learn, judge) in enumerate(pairs):
            count = len(range(number, self.tasks, len(pairs)))
            drawn = episodes(judge.known, tasks=count, rng=rng, effective=self.effective, queries=self.queries)
            rows = list(drawn)
            parts = [rows[start : start + self.batch] for start in range(0, count, self.batch)]
            lessons += [_lesson(judge, part, learn, text) for part in parts]
        return lessons, split

    @torch.enable_grad()
    def _train(self, model: Unrolled, lessons: list[_Lesson], *, quiet: bool) -> float | None:
        """Moves what the model learns; the mean loss of the last epoch."""
        optimizer = torch.optim.Adam([leaf for leaf in model.parameters() if leaf.requires_grad], lr=self.lr)
        losses: list[float] = []
        for epoch in progress(range(self.epochs), total=self.epochs, size=lambda _: 1, what="unem", quiet=quiet):
            optimizer.param_groups[0]["lr"] = self.lr * (1.0 if 2 * epoch < self.epochs else 0.5)
            losses = []
            for lesson in lessons:
                optimizer.zero_grad()
                loss = lesson.loss(model(lesson.tasks).logits)
                if not loss.isfinite():
                    raise ValueError(
                        f"unem: the loss is {loss.item()} in epoch {epoch} of {self.epochs}; set a smaller lr"
                    )
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return sum(losses) / len(losses) if losses else None


class _Tasks(NamedTuple):
    """Cosines of b tasks with up to q pictures each, where `real` has one; cosines and labels of one support."""

    cosine: Float[Tensor, "b q K"]
    real: Bool[Tensor, "b q"]
    support: tuple[Float[Tensor, "n K"], Int[Tensor, "n"]] | None


class _Lesson(NamedTuple):
    """Tasks whose labels [b, q] are known."""

    tasks: _Tasks
    label: Int[Tensor, "b q"]

    def loss(self, logits: Float[Tensor, "b q K"]) -> Tensor:
        """Mean cross-entropy; theirs takes the softmax of u once more, which bounds what a wrong picture costs."""
        own = logits.log_softmax(dim=-1).gather(-1, self.label[..., None])[..., 0]
        return -own[self.tasks.real].mean()


class _Mixture(NamedTuple):
    """What the last round has made, by task: parameters, penalty times v, 1 / (1 + softplus(t)), and logits."""

    alpha: Float[Tensor, "b K K"]
    prior: Float[Tensor, "b K"]
    sharpness: Tensor
    logits: Float[Tensor, "b q K"]


class Unrolled(nn.Module):
    """The rounds, and what is learned of them: `gamma` and `t` [rounds, or 1], and `temperature`; fp64."""

    def __init__(self, settings: Unem, classes: int) -> None:
        super().__init__()
        self.settings = settings
        gamma = classes / min(settings.effective, classes) if settings.gamma is None else settings.gamma
        count = 1 if settings.shared else settings.layers
        tempered = settings.tempered
        self.gamma = nn.Parameter(torch.full((count,), gamma, dtype=torch.float64))
        self.t = nn.Parameter(torch.ones(count, dtype=torch.float64), requires_grad=tempered)
        start = torch.tensor(settings.temperature, dtype=torch.float64)
        self.temperature = nn.Parameter(start, requires_grad=tempered)

    def forward(self, tasks: _Tasks) -> _Mixture:
        log_z, real = log_features(tasks.cosine, self.temperature), tasks.real[..., None]
        clusters = _Clusters(log_z, self._known(tasks))
        count, share = tasks.real.sum(dim=1, keepdim=True), log_z.exp() * real
        for place in range(self.settings.layers):
            row = 0 if self.settings.shared else place
            clusters.fit(share)
            prior = softplus(self.gamma[row]) * log_shares(share, count)
            sharpness = self._sharpness()[row]
            logits = sharpness * (clusters.log_density() + prior[:, None])
            share = logits.softmax(dim=-1) * real
        return _Mixture(clusters.alpha, prior, sharpness, logits)

    def _known(self, tasks: _Tasks) -> Labelled | None:
        if tasks.support is None:
            return None
        return labelled(log_features(tasks.support[0], self.temperature), tasks.support[1])

    def learned(self) -> dict[str, Any]:
        """The penalty and the temperature of each round, and T, for records."""
        return {
            "penalty": softplus(self.gamma).tolist(),
            "rounds_temperature": (1 / self._sharpness()).tolist(),
            "temperature": self.temperature.item(),
        }

    def _sharpness(self) -> Tensor:
        return 1 / (1 + softplus(self.t)) if self.settings.tempered else torch.ones_like(self.t)


class _Clusters:
    """Parameters alpha [b, K, K] of the clusters of b tasks, round by round.

    Most clusters of a task get next to none of its pictures. These have the parameters of the support alone, which are
    solved once for all tasks and rounds; without support they keep their own.
    """

    def __init__(self, log_z: Float[Tensor, "b q K"], known: Labelled | None) -> None:
        tasks, classes = len(log_z), log_z.shape[-1]
        self.log_z, self.known = log_z, known
        self.alone, self.least = torch.ones(classes, classes, dtype=log_z.dtype), EPS
        if known is not None:
            has, self.least = known.mass > 0, TRACE
            self.alone[has] = by_newton(self.alone[has], known.log_sum[has] / known.mass[has, None])
        self.whole = log_z.sum(dim=-1, keepdim=True)
        self.constant_alone = log_constant(self.alone).expand(tasks, -1)
        self.alpha, self.constant = self.alone.expand(tasks, -1, -1), self.constant_alone

    def fit(self, share: Float[Tensor, "b q K"]) -> None:
        """The likeliest, given the assignments."""
        moved = share.sum(dim=1) > self.least
        mass, log_sum = sums(share, self.log_z, self.known)
        own = by_newton(self.alpha[moved].detach(), log_sum[moved] / mass[moved][:, None])
        alpha, constant = self.alpha, self.constant
        if self.known is not None:
            alpha, constant = self.alone.expand_as(alpha), self.constant_alone
        self.alpha = alpha.index_put((moved,), own)
        self.constant = constant.index_put((moved,), log_constant(own))

    def log_density(self) -> Float[Tensor, "b q K"]:
        """Of every picture under every cluster of its task."""
        return self.constant[:, None] + self.log_z @ self.alpha.mT - self.whole


def _task_of(query: Examples, support: Examples | None, text: Float[Tensor, "K D"]) -> _Tasks:
    """All pictures as one task."""
    cosine = cosines(query.image, text)[None]
    return _Tasks(cosine, torch.ones(1, len(query), dtype=torch.bool), _support(support, text))


def _lesson(judge: Examples, rows: list[Tensor], support: Examples | None, text: Float[Tensor, "K D"]) -> _Lesson:
    """Tasks of these rows, filled up to the longest."""
    length = torch.tensor([len(one) for one in rows])
    place = pad_sequence(rows, batch_first=True)
    real = torch.arange(place.shape[1]) < length[:, None]
    cosine = cosines(judge.image, text)[place]
    return _Lesson(_Tasks(cosine, real, _support(support, text)), judge.known[place])


def _support(examples: Examples | None, text: Float[Tensor, "K D"]) -> tuple[Tensor, Tensor] | None:
    return None if examples is None else (cosines(examples.image, text), examples.known)
