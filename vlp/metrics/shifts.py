"""Robustness: accuracies on shifted data against those on the original, and errors on corrupted pictures.

Letters: M models, B models of the baseline, K corruptions, S severities, n pictures, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlp.metrics.interval import Interval, of_means
from vlp.metrics.multilabel import percentiles, resamples

LOWER_IS_BETTER = frozenset({"mean_corruption_error", "mce", "relative_mce"})
MARGIN = 1e-3  # ImageNet-A was chosen so that a ResNet-50 has accuracy 0 on it, whose logit is infinite


class Line(NamedTuple):
    """logit(shifted) = slope * logit(original) + intercept, by least squares over the baseline."""

    slope: float
    intercept: float
    r2: float  # share of the variance of logit(shifted) that the line explains; nan where it has none
    clipped: int  # accuracies of the baseline that were moved to margin or 1 - margin before their logit was taken


class EffectiveRobustness(NamedTuple):
    """Accuracy on the shifted data above (or below) what the baseline's line says of the accuracy on the original."""

    values: Float[Tensor, "M"]
    expected: Float[Tensor, "M"]  # the line's accuracy on the shifted data
    intervals: list[Interval]
    line: Line
    undefined: int  # resamples left out, since all their models had one accuracy


def effective_robustness(
    original: Float[Tensor, "M"],
    shifted: Float[Tensor, "M"],
    *,
    baseline_original: Float[Tensor, "B"],
    baseline_shifted: Float[Tensor, "B"],
    margin: float = MARGIN,
    n_boot: int = 1000,
    seed: int = 0,
) -> EffectiveRobustness:
    """Residual acc2(f) - beta(acc1(f)) of every model f, beta linear in logits (Taori et al., arXiv 2007.00644).

    0 is what a model on the baseline's line has. Accuracies lie in 0..1. For logits they are clipped to
    margin..1 - margin, which the paper, whose accuracies all lie inside, need not say; the residual itself is of the
    accuracies as they are. Intervals are 95 % bootstrap intervals over the baseline's models: they say how well these
    determine the line, not how well the pictures determine the accuracies.
    """
    _check_accuracies(original=original, shifted=shifted)
    _check_accuracies(baseline_original=baseline_original, baseline_shifted=baseline_shifted)
    x, y = _logit(baseline_original, margin), _logit(baseline_shifted, margin)
    levels, level = x.unique(return_inverse=True)
    if len(levels) < 2:
        raise ValueError(
            f"a line needs a baseline of models with at least 2 accuracies on the original, {len(levels)} given "
            f"(of {len(x)} models, clipped to {margin}..{1 - margin})"
        )
    slope, intercept = _least_squares(x, y, torch.ones(1, len(x), dtype=torch.float64))
    at = _logit(original, margin)
    expected = (slope * at + intercept).sigmoid()
    draws, undefined = [], 0
    for times in resamples(torch.zeros(len(x), dtype=torch.long), n_boot=n_boot, seed=seed):
        defined = torch.zeros(len(times), len(levels), dtype=torch.long).index_add_(1, level, times)
        times = times[(defined > 0).sum(dim=1) > 1].double()
        undefined += len(defined) - len(times)
        slopes, intercepts = _least_squares(x, y, times)
        draws.append(shifted.double() - (slopes[:, None] * at + intercepts[:, None]).sigmoid())
    rest = (y - slope * x - intercept).square().sum() / (y - y.mean()).square().sum()
    outside = [((a < margin) | (a > 1 - margin)).sum() for a in (baseline_original, baseline_shifted)]
    line = Line(float(slope), float(intercept), 1 - float(rest), int(sum(outside)))
    intervals = [percentiles(column) for column in torch.cat(draws).T]
    return EffectiveRobustness(shifted.double() - expected, expected, intervals, line, undefined)


def relative_robustness(intervened: Float[Tensor, "M"], plain: Float[Tensor, "M"]) -> Float[Tensor, "M"]:
    """Accuracies on the shifted data with an intervention minus those of the same models without it.

    The second measure of Taori et al.: lowering the original accuracy alone can raise effective robustness, not this.
    """
    _check_accuracies(intervened=intervened, plain=plain)
    return intervened.double() - plain.double()


def corruption_errors(
    error: Float[Tensor, "K S"],
    *,
    clean: float | None = None,
    baseline: Float[Tensor, "K S"] | None = None,
    baseline_clean: float | None = None,
) -> dict[str, float]:
    """Summaries of error rates by corruption and severity (Hendrycks and Dietterich, arXiv 1903.12261).

    mean_corruption_error   mean over corruptions and severities
    mce                     mean over corruptions of sum over severities of error / the same of the baseline
    relative_mce            the same of error - clean error of the model itself

    The last two need the baseline's errors (the paper's is AlexNet's), and the last one the clean errors of both.
    Chance is the same function of errors of 1 - 1 / classes.
    """
    start = None if clean is None else torch.tensor([clean], dtype=torch.float64)
    found = _summaries(error.double()[None], start, baseline, baseline_clean)
    return {name: float(value) for name, value in found.items()}


def corruption_intervals(
    wrong: Bool[Tensor, "n K S"],
    *,
    clean: Bool[Tensor, "n"] | None = None,
    baseline: Float[Tensor, "K S"] | None = None,
    baseline_clean: float | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % bootstrap intervals of `corruption_errors`, drawing pictures, each with all its corruptions.

    From which answers were wrong; the errors of the baseline count as known. All summaries are linear in the model's
    errors, so each is the mean over pictures of the same function of one picture's.
    """
    found = _summaries(wrong.double(), None if clean is None else clean.double(), baseline, baseline_clean)
    columns = torch.stack(list(found.values()), dim=1)
    return dict(zip(found, of_means(columns, n_boot=n_boot, seed=seed)))


def _summaries(
    error: Tensor, clean: Tensor | None, baseline: Tensor | None, baseline_clean: float | None
) -> dict[str, Tensor]:
    """Name -> [n], of error [n, K, S] and clean [n]"""
    found = {"mean_corruption_error": error.mean(dim=(1, 2))}
    if baseline is None:
        return found
    if baseline.shape != error.shape[1:]:
        raise ValueError(
            f"errors of {tuple(error.shape[1:])} corruptions x severities, of the baseline {tuple(baseline.shape)}; "
            "both must hold the same corruptions in the same order"
        )
    known = baseline.double().to(error.device)
    found["mce"] = (error.sum(dim=2) / _positive(known.sum(dim=1), "error")).mean(dim=1)
    if clean is not None and baseline_clean is not None:
        grown = _positive((known - baseline_clean).sum(dim=1), "error beyond the clean one")
        found["relative_mce"] = ((error - clean[:, None, None]).sum(dim=2) / grown).mean(dim=1)
    return found


def _positive(values: Tensor, what: str) -> Tensor:
    bad = torch.where(~(values > 0))[0].tolist()
    if bad:
        raise ValueError(
            f"the baseline has no {what} on corruptions {bad}, so none can be related to it; leave them out"
        )
    return values


def _least_squares(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and intercepts [R] for weights [R, B]."""
    total = weight.sum(dim=1)
    mean_x, mean_y = weight @ x / total, weight @ y / total
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    slope = (weight * dx * dy).sum(dim=1) / (weight * dx * dx).sum(dim=1)
    return slope, mean_y - slope * mean_x


def _logit(accuracy: Tensor, margin: float) -> Tensor:
    return accuracy.double().clamp(margin, 1 - margin).logit()


def _check_accuracies(**given: Tensor) -> None:
    sizes = {name: tuple(values.shape) for name, values in given.items()}
    if len(set(sizes.values())) > 1 or any(len(size) != 1 for size in sizes.values()):
        raise ValueError(f"one accuracy a model is needed in each of {sizes}")
    for name, values in given.items():
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"{name} has accuracies outside 0..1: {values.tolist()[:5]}; divide percentages by 100")
