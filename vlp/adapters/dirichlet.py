"""Mixtures of Dirichlet densities over probability vectors: the steps of EM-Dirichlet (Martin et al. 2024, 2405.18437).

The feature of a picture is what zero-shot says of it, z = softmax(T f·w) with one entry a class, and so K clusters
have K parameters each. Everything is in double precision; leading dimensions are tasks that are solved side by side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

EPS = 1e-15  # added to probabilities before their logarithm, as in the authors' code; also the mass of no cluster
SMALL = 1e-8  # alpha below which the curvature is its limit: the quotient would be rounding
CHECK, STILL = 50, 1e-11  # the authors look every so many steps whether (|change| / |alpha|)^2 is below this
RATE = 1e-3  # of the prior that keeps the parameters of a single picture finite where `by_newton` looks for them
EULER = 0.5772156649015329  # -psi(1)
JOIN = -2.22  # of psi, where its two forms meet
SUMS = 3  # steps for the sum, which cost little
NEWTON, CLOSE = 100, 1e-3  # steps at most; relative change of a step after which the next would change nothing


class Labelled(NamedTuple):
    """What pictures of known class add to the sums of each cluster: how many, and the sum of their log z."""

    mass: Float[Tensor, "K"]
    log_sum: Float[Tensor, "K K"]


def log_features(cosine: Float[Tensor, "*t n K"], temperature: float | Tensor) -> Float[Tensor, "*t n K"]:
    """Logarithms of z of pictures, from their cosines to the class weights."""
    return ((temperature * cosine).softmax(dim=-1) + EPS).log()


def labelled(log_z: Float[Tensor, "n K"], label: Int[Tensor, "n"]) -> Labelled:
    """The sums over these pictures."""
    member = one_hot(label, log_z.shape[1]).to(log_z)
    return Labelled(member.sum(dim=0), member.T @ log_z)


def log_density(log_z: Float[Tensor, "*t n K"], alpha: Float[Tensor, "*t K K"]) -> Float[Tensor, "*t n K"]:
    """Logarithms of Dirichlet(z; alpha_k), of every picture under every cluster."""
    return log_constant(alpha)[..., None, :] + log_z @ (alpha - 1).mT


def log_constant(alpha: Float[Tensor, "*r K"]) -> Float[Tensor, "*r"]:
    """What normalises each density: log Gamma(sum alpha) - sum log Gamma(alpha)."""
    return torch.lgamma(alpha.sum(dim=-1)) - torch.lgamma(alpha).sum(dim=-1)


def log_shares(share: Float[Tensor, "*t n K"], count: Float[Tensor, "*t 1"] | float) -> Float[Tensor, "*t K"]:
    """v_k = log of the mean assignment to cluster k, + 1, over `count` pictures."""
    return (share.sum(dim=-2) / count + EPS).log() + 1


def sums(
    share: Float[Tensor, "*t n K"], log_z: Float[Tensor, "*t n K"], known: Labelled | None
) -> tuple[Float[Tensor, "*t K"], Float[Tensor, "*t K K"]]:
    """Mass of each cluster, and the sum of its log z, given the assignments (0 for pictures that do not count)."""
    mass, log_sum = share.sum(dim=-2), share.mT @ log_z
    return (mass, log_sum) if known is None else (mass + known.mass, log_sum + known.log_sum)


def by_mm(alpha: Float[Tensor, "r K"], mean_log: Float[Tensor, "r K"], *, steps: int) -> Float[Tensor, "r K"]:
    """At most `steps` steps of majorisation-minimisation towards the likeliest, as the authors take them."""
    for done in range(1, steps + 1):
        last, alpha = alpha, mm_step(alpha, mean_log)
        looked_at = done > 1 and done % CHECK == 1
        if looked_at and (alpha - last).norm().square() < STILL * last.norm().square():
            break
    return alpha


def by_newton(alpha: Float[Tensor, "r K"], mean_log: Float[Tensor, "r K"]) -> Float[Tensor, "r K"]:
    """The likeliest parameters, where psi(alpha_j) - psi(sum alpha) = mean_log_j - RATE; differentiable in mean_log.

    RATE is that of an exponential prior on sum alpha, for each picture: the likelihood of one picture alone has no
    maximum, and with it the sum ends near K / (2 RATE). alpha is where it starts, which the result does not depend on.
    """
    found: Tensor = _Newton.apply(alpha, mean_log)
    return found


def mm_step(alpha: Float[Tensor, "r K"], mean_log: Float[Tensor, "r K"]) -> Float[Tensor, "r K"]:
    """One majorisation-minimisation step; the likelihood does not fall.

    The root of c a^2 + b a - 1 with c the curvature of the quadratic majorant of -log Gamma(1 + .), in the form that
    does not cancel.
    """
    total = alpha.sum(dim=-1, keepdim=True)
    digamma = torch.digamma(alpha + 1)
    curvature = _curvature(alpha, digamma)
    b = digamma - torch.digamma(total) - curvature * alpha - mean_log
    root = (b.square() + 4 * curvature).sqrt()
    return torch.where(b > 0, 2 / (b.abs() + root), (b.abs() + root) / (2 * curvature))


def _curvature(alpha: Tensor, digamma: Tensor) -> Tensor:
    """That of the majorant, c = 2 (log Gamma(1) - log Gamma(1 + a) + psi(1 + a) a) / a^2; pi^2 / 6 at 0.

    digamma: psi(1 + a), which the step needs too.
    """
    safe = alpha.clamp(min=SMALL)
    found = 2 * (digamma * safe - torch.lgamma(safe + 1)) / safe.square()
    return torch.where(alpha > SMALL, found, math.pi**2 / 6)


class _Newton(torch.autograd.Function):
    """Newton's method on rows, each until it stands still; the Hessian is a diagonal and a rank of one (Minka 2000)."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, mean_log: Tensor) -> Tensor:
        found, wanted = alpha.clone(), mean_log - RATE
        moving = torch.arange(len(found))
        for done in range(NEWTON):
            here = found[moving]
            step = _solve(here, _slope(here, wanted[moving]))
            # psi is steep at 0 and flat far out, so that a step from the wrong side may go through 0
            ahead = torch.maximum(here + step, here / 8)
            if not done:
                far = (step.abs() > here).any(dim=1)
                ahead[far] = _near(wanted[far])
            found[moving] = ahead
            moving = moving[((ahead - here).abs() > CLOSE * ahead).any(dim=1)]  # errors are squared by the next step
            if not len(moving):
                break
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (found,) = ctx.saved_tensors
        return None, _solve(found, gradients[0])


def _near(mean_log: Tensor) -> Tensor:
    """Parameters near the likeliest of each row: Newton's method for their sum alone, psi's inverse by `_inverse`."""
    geometric = mean_log.exp().sum(dim=1, keepdim=True)
    total = (mean_log.shape[1] - geometric) / (1 - geometric) / 2  # where psi(a) = log(a - 1/2), far from 0
    for _ in range(SUMS):
        alpha, slope = _inverse(mean_log + torch.digamma(total))
        rise = torch.polygamma(1, total) * slope.sum(dim=1, keepdim=True) - 1
        total = torch.maximum(total - (alpha.sum(dim=1, keepdim=True) - total) / rise, total / 8)
    return _inverse(mean_log + torch.digamma(total))[0]


def _inverse(value: Tensor) -> tuple[Tensor, Tensor]:
    """About the a with psi(a) = value, and its slope, by psi(a) = log(a - 1/2) far from 0 and -1 / a + psi(1) near."""
    far, exp = value > JOIN, value.exp()
    near = -1 / (value + EULER)
    return torch.where(far, exp + 0.5, near), torch.where(far, exp, near.square())


def _slope(alpha: Tensor, mean_log: Tensor) -> Tensor:
    """Of the mean log-likelihood of each row, along its parameters."""
    return torch.digamma(alpha.sum(dim=1, keepdim=True)) - torch.digamma(alpha) + mean_log


def _solve(alpha: Tensor, aim: Tensor) -> Tensor:
    """(diag psi'(alpha) - psi'(sum alpha))^-1 aim, by Sherman and Morrison; symmetric."""
    inverse = 1 / torch.polygamma(1, alpha)
    outer = torch.polygamma(1, alpha.sum(dim=1, keepdim=True))
    own = aim * inverse
    left = 1 - outer * inverse.sum(dim=1, keepdim=True)
    return own + inverse * (outer * own.sum(dim=1, keepdim=True) / left)
