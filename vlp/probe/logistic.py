"""Multinomial logistic regression with L2 on frozen features, and the search for its strength C.

Everything is in double precision, and in blocks of rows, so that no [n, C] matrix is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.metrics.accuracy import Accuracy

LAST, PER_DECADE, COARSE = 48, 8, 16  # C from 1e-6 to 1e6 in eighths of a decade, first looked at two decades apart
HISTORY = 20  # steps that L-BFGS remembers
NOISE = 1e-15  # a change of the loss below this is rounding
NUMBERS = 1 << 22  # in a block

N = TypeVar("N", int, float)


class Logistic(NamedTuple):
    """A fitted probe: logits are `features @ weight.T + bias`."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]
    loss: float  # mean cross-entropy and penalty on what it was fitted to
    converged: bool

    def __call__(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits in double precision."""
        return features.to(self.weight) @ self.weight.T + self.bias


class Score(NamedTuple):
    """What a candidate reaches on pictures that it did not see; the larger tuple is the better one."""

    accuracy: float
    log_likelihood: float  # mean; decides between equal accuracies, of which small sets have many


class Choice(NamedTuple):
    """The C that was best, what else was tried in the order of the search, and the probe at that C."""

    C: float
    tried: dict[float, Score]
    fitted: Logistic
    unconverged: int


def fit(
    features: Float[Tensor, "n D"],
    label: Int[Tensor, "n"],
    *,
    C: float,
    intercept: bool = True,
    start: Logistic | None = None,
    max_iter: int = 1000,
    tolerance: float = 1e-6,
) -> Logistic:
    """The minimum of |W|^2 / 2 + C * sum of cross-entropies, that of scikit-learn's `LogisticRegression(C=C)`.

    Found by L-BFGS on the mean (Radford et al. 2021, appendix A.3), from `start`. As there, the bias is free, and two
    classes share one weight vector: theirs are opposites, and count once. Our deviation is on the way alone: features
    are centred, which only moves a free bias, and the variables run along their principal axes, scaled to a curvature
    of 1 where all classes are equally likely. So no entry of the gradient above `tolerance` means that the loss is
    right to about its square, for every C, and few steps are needed where features lie in a narrow cone.
    """
    classes, n, width = _classes(label), len(features), features.shape[1]
    strength = (2 if classes == 2 else 1) / (C * n)
    centre = features.mean(dim=0, dtype=torch.float64) if intercept else None
    objective = _Objective(features, label.to(features.device), strength=strength, centre=centre)
    axes = _axes(objective, classes)
    theta = nn.Parameter(torch.zeros(classes, axes.scale.numel(), dtype=torch.float64, device=features.device))
    if start is not None:
        theta.data = axes.along(_columns(start, centre))
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=tolerance,
        tolerance_change=NOISE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, gradient = objective(axes.back(theta.detach()))
        theta.grad = axes.slope(gradient)
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found, spent = axes.back(theta.detach()), optimizer.state[theta]
    loss, gradient = objective(found)
    cut = spent["n_iter"] >= max_iter or spent["func_evals"] >= 2 * max_iter
    weight = found[:, :width].contiguous()
    bias = weight.new_zeros(classes) if centre is None else found[:, width] - weight @ centre
    return Logistic(weight, bias, float(loss), not cut or bool(axes.slope(gradient).abs().max() <= tolerance))


def choose(
    train: tuple[Float[Tensor, "n D"], Int[Tensor, "n"]],
    validation: tuple[Float[Tensor, "m D"], Int[Tensor, "m"]],
    *,
    intercept: bool = True,
    max_iter: int = 1000,
) -> Choice:
    """The C that is best on the validation pictures, by CLIP's search; every fit starts from the one before it."""
    fitted: dict[float, Logistic] = {}

    def score(C: float) -> Score:
        last = fitted[next(reversed(fitted))] if fitted else None
        fitted[C] = fit(*train, C=C, intercept=intercept, start=last, max_iter=max_iter)
        return judge(fitted[C], *validation)

    tried = search(score)
    C = best(tried)
    return Choice(C, tried, fitted[C], sum(not one.converged for one in fitted.values()))


def search(score: Callable[[float], Score]) -> dict[float, Score]:
    """Candidates and their scores: 7 values of C over 12 decades, then the two beside the peak at half the distance.

    Down to eighths of a decade, at most 15 of 97 (Radford et al. 2021, appendix A.3).
    """
    tried: dict[int, Score] = {}  # by its place: eighths of a decade from 1

    def look(place: int) -> None:
        if abs(place) <= LAST and place not in tried:
            tried[place] = score(_strength(place))

    step = COARSE
    for place in range(-LAST, LAST + 1, step):
        look(place)
    while step > 1:
        step //= 2
        peak = best(tried)
        look(peak - step)
        look(peak + step)
    return {_strength(place): found for place, found in tried.items()}


def best(tried: Mapping[N, Score]) -> N:
    """The candidate with the highest score; of equal ones the smallest."""
    return max(tried, key=lambda candidate: (tried[candidate], -candidate))


def judge(probe: Logistic, features: Float[Tensor, "m D"], label: Int[Tensor, "m"]) -> Score:
    """Accuracy with ties against the probe, and mean log-likelihood."""
    accuracy, loss = Accuracy(len(probe.bias), k=(1,)), 0.0
    step = max(1, NUMBERS // max(probe.weight.shape))
    for inputs, own in zip(features.split(step), label.to(features.device).split(step), strict=True):
        logits = probe(inputs)
        accuracy.update(logits, own)
        loss += float(cross_entropy(logits, own, reduction="sum"))
    return Score(accuracy.compute()["acc1"], -loss / len(label))


class _Objective:
    """Mean cross-entropy + strength / 2 * |W|^2 and its gradient at theta [C, D + 1], whose last column is the bias.

    Without a centre there is no bias, and theta is [C, D].
    """

    def __init__(self, features: Tensor, label: Tensor, *, strength: float, centre: Tensor | None) -> None:
        self.features, self.label, self.strength, self.centre = features, label, strength, centre
        self.whole = self._inputs(features) if features.numel() <= NUMBERS else None

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        n, width = self.features.shape
        penalised = theta.detach().clone()
        penalised[:, width:] = 0
        loss, gradient = self.strength / 2 * penalised.square().sum(), self.strength * penalised
        for inputs, label in self.blocks(max(theta.shape)):
            logits = inputs @ theta.T
            loss = loss + cross_entropy(logits, label, reduction="sum") / n
            excess = logits.softmax(dim=1)
            excess[torch.arange(len(label), device=label.device), label] -= 1
            gradient += excess.T @ inputs / n
        return loss, gradient

    def blocks(self, across: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [b, D + 1] in double precision with their labels, b * `across` numbers at a time."""
        step = max(1, NUMBERS // across)
        parts = self.features.split(step) if self.whole is None else self.whole.split(step)
        for part, label in zip(parts, self.label.split(step), strict=True):
            yield (self._inputs(part) if self.whole is None else part), label

    def _inputs(self, features: Tensor) -> Tensor:
        if self.centre is None:
            return features.double()
        shifted = features - self.centre
        return torch.cat([shifted, shifted.new_ones(len(shifted), 1)], dim=1)


class _Axes(NamedTuple):
    """Variables of the search and what they stand for: theta = variables * scale @ axes.T."""

    axes: Float[Tensor, "E R"]  # orthonormal columns; E = D + 1 with a bias, which is an axis of its own
    scale: Float[Tensor, "R"]

    def back(self, variables: Tensor) -> Tensor:
        """[C, R] -> [C, E]."""
        return (variables * self.scale) @ self.axes.T

    def along(self, theta: Tensor) -> Tensor:
        """[C, E] -> [C, R]; what lies across all axes is no part of any minimum, since only the penalty sees it."""
        return (theta @ self.axes) / self.scale

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient by the variables [C, R] of one by theta [C, E]."""
        return (gradient @ self.axes) * self.scale


def _axes(objective: _Objective, classes: int) -> _Axes:
    """Principal axes of the inputs, each scaled by one over the root of its curvature at equal probabilities."""
    n, width = objective.features.shape
    moment = torch.zeros(width, width, dtype=torch.float64, device=objective.features.device)
    for inputs, _ in objective.blocks(width + 1):
        moment += inputs[:, :width].T @ inputs[:, :width] / n
    spread, axes = torch.linalg.eigh(moment)
    real = spread > spread[-1] * width * torch.finfo(torch.float64).eps
    spread, axes = spread[real], axes[:, real]
    penalty = torch.full_like(spread, objective.strength)
    if objective.centre is not None:  # centred inputs and the bias are uncorrelated
        axes = torch.block_diag(axes, axes.new_ones(1, 1))
        spread, penalty = torch.cat([spread, spread.new_ones(1)]), torch.cat([penalty, penalty.new_zeros(1)])
    return _Axes(axes, (spread * (classes - 1) / classes**2 + penalty).rsqrt())


def _columns(probe: Logistic, centre: Tensor | None) -> Tensor:
    """Weights, and behind them the bias for centred features."""
    if centre is None:
        return probe.weight
    return torch.cat([probe.weight, (probe.bias + probe.weight @ centre)[:, None]], dim=1)


def _strength(place: int) -> float:
    return float(10 ** (place / PER_DECADE))


def _classes(label: Tensor) -> int:
    """Number of classes; ValueError unless there are two and each has a sample: else its bias falls without end."""
    count = torch.bincount(label)
    if len(count) < 2 or not count.all():
        empty = (count == 0).nonzero().flatten().tolist()[:5]
        raise ValueError(
            f"a probe needs samples of at least 2 classes, numbered without a gap; got {len(count)} classes, without "
            f"samples: {empty}; number only the classes that have some"
        )
    return len(count)
