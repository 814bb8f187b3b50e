"""Multinomial logistic regression with L2 on frozen features, and the search for its strength C.

Everything is in double precision, and in blocks of rows, so that no [n, C] matrix is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    tolerance: float = 1e-7,
) -> Logistic:
    """The minimum of |W|^2 / 2 + C * sum of cross-entropies, that of scikit-learn's `LogisticRegression(C=C)`.

    Found by L-BFGS on the mean (Radford et al. 2021, appendix A.3), from `start`. As there, the bias is free, and two
    classes share one weight vector: theirs are opposites, and count once. Our deviation is on the way alone: features
    are centred, which only moves a free bias, and every variable is scaled to a curvature near 1, so that no entry of
    the gradient above `tolerance` means that the loss is right to about its square, for every C.
    """
    classes, n, width = _classes(label), len(features), features.shape[1]
    strength = (2 if classes == 2 else 1) / (C * n)
    centre = features.mean(dim=0, dtype=torch.float64) if intercept else None
    objective = _Objective(features, label.to(features.device), strength=strength, centre=centre)
    scale = _scale(features, classes, strength=strength, centre=centre)
    theta = nn.Parameter(torch.zeros(classes, len(scale), dtype=torch.float64, device=features.device))
    if start is not None:
        theta.data = _columns(start, centre) / scale
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
        loss, gradient = objective(theta.detach() * scale)
        theta.grad = gradient * scale
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found, spent = theta.detach() * scale, optimizer.state[theta]
    loss, gradient = objective(found)
    cut = spent["n_iter"] >= max_iter or spent["func_evals"] >= 2 * max_iter
    weight = found[:, :width].contiguous()
    bias = weight.new_zeros(classes) if centre is None else found[:, width] - weight @ centre
    return Logistic(weight, bias, float(loss), not cut or bool((gradient * scale).abs().max() <= tolerance))


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

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        n, width = self.features.shape
        penalised = theta.detach().clone()
        penalised[:, width:] = 0
        loss, gradient = self.strength / 2 * penalised.square().sum(), self.strength * penalised
        step = max(1, NUMBERS // max(theta.shape))
        for features, label in zip(self.features.split(step), self.label.split(step), strict=True):
            inputs = self._inputs(features)
            logits = inputs @ theta.T
            loss = loss + cross_entropy(logits, label, reduction="sum") / n
            excess = logits.softmax(dim=1)
            excess[torch.arange(len(label), device=label.device), label] -= 1
            gradient += excess.T @ inputs / n
        return loss, gradient

    def _inputs(self, features: Tensor) -> Tensor:
        if self.centre is None:
            return features.double()
        shifted = features - self.centre
        return torch.cat([shifted, shifted.new_ones(len(shifted), 1)], dim=1)


def _scale(features: Tensor, classes: int, *, strength: float, centre: Tensor | None) -> Tensor:
    """[D + 1], or [D] without a centre: one over the root of the curvature where all classes are equally likely."""
    spread = features.var(dim=0, correction=0).double()
    if centre is None:
        spread += features.mean(dim=0).double().square()
    else:
        spread = torch.cat([spread, spread.new_ones(1)])
    curvature = spread * (classes - 1) / classes**2
    curvature[: features.shape[1]] += strength
    return curvature.rsqrt()


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
