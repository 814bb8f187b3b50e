"""Gaussians with one covariance: its precision by three estimators, and the linear classifier that follows."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlp.adapters.classifier import LinearClassifier

Estimator = Literal["kubokawa", "pooled", "classes"]
ROUNDING = 1e-15  # spread of a row of unit length below which it is rounding of fp32, not spread


def kubokawa(scatter: Float[Tensor, "D D"], rows: int) -> Float[Tensor, "D D"]:
    """Precision D ((n-1) S + tr(S) I)^-1 of n rows, S = scatter / (n-1) (Kubokawa and Srivastava 2008).

    Rows without spread give zeros, the pseudo-inverse of nothing: one picture a class says nothing of its spread.
    """
    return len(scatter) * _ridged(scatter, rows)


def shrunk(scatter: Float[Tensor, "D D"], rows: int) -> Float[Tensor, "D D"]:
    """(S + tr(S) / (n-1) I)^-1: the same shrinkage without the factor D / (n-1), so its size is not that of n."""
    return (rows - 1) * _ridged(scatter, rows)


def _ridged(scatter: Tensor, rows: int) -> Tensor:
    """(scatter + tr(scatter) / (n-1) I)^-1, which is never singular; zeros where there is no spread."""
    trace = float(scatter.trace())
    if rows < 2 or trace <= ROUNDING * rows:
        return torch.zeros_like(scatter)
    ridge = torch.eye(len(scatter), dtype=scatter.dtype) * (trace / (rows - 1))
    return torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge))


def scatter_of(centred: Float[Tensor, "m D"]) -> Float[Tensor, "D D"]:
    """Sum of outer products of the rows."""
    return centred.T @ centred


def pseudo_inverse(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """Moore-Penrose inverse of a covariance; zeros where there is no spread."""
    if float(covariance.trace()) <= ROUNDING:
        return torch.zeros_like(covariance)
    found: Tensor = torch.linalg.pinv(covariance, hermitian=True)
    return found


def discriminant(
    mean: Float[Tensor, "C D"], precision: Float[Tensor, "D D"], log_prior: Float[Tensor, "C"]
) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C"]]:
    """w_c = P mu_c and b_c = log pi_c - mu_c·P mu_c / 2 (2402.04087, section 3.1)."""
    weight = mean @ precision
    return weight, log_prior - (weight * mean).sum(dim=1) / 2


def uniform(classes: int) -> Float[Tensor, "C"]:
    """Log-probabilities of classes that are equally likely."""
    return torch.full((classes,), -math.log(classes), dtype=torch.float64)


class GaussianClassifier(LinearClassifier):
    """Logits s f·t_c + alpha (f·w_c + b_c): words and Gaussians together, linear in f.

    bank: features [m, D] that it was fitted to, of which new classes take their nearest; they are not saved.
    """

    bank: Float[Tensor, "m D"] | None = None


def blend(
    text: Float[Tensor, "C D"],
    gaussian: tuple[Float[Tensor, "C D"], Float[Tensor, "C"]],
    *,
    scale: float,
    alpha: float,
) -> dict[str, Tensor]:
    """Weight and bias of those logits at that scale, in the dtype of the words; with alpha 0 the words' own bits."""
    weight, bias = gaussian
    return {
        "weight": (text.double() + alpha / scale * weight).to(text.dtype),
        "bias": (alpha * bias).to(text.dtype),
    }
