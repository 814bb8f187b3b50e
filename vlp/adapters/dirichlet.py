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
EMPTY = -10.0  # mean logarithm that stands in for an empty cluster's, whose solution is not used


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
    constant = torch.lgamma(alpha.sum(dim=-1)) - torch.lgamma(alpha).sum(dim=-1)
    return constant[..., None, :] + log_z @ (alpha - 1).mT


def log_shares(share: Float[Tensor, "*t n K"], count: Float[Tensor, "*t 1"] | float) -> Float[Tensor, "*t K"]:
    """v_k = log of the mean assignment to cluster k, + 1, over `count` pictures."""
    return (share.sum(dim=-2) / count + EPS).log() + 1


def m_step(
    alpha: Float[Tensor, "*t K K"],
    share: Float[Tensor, "*t n K"],
    log_z: Float[Tensor, "*t n K"],
    known: Labelled | None,
    *,
    steps: int,
) -> Float[Tensor, "*t K K"]:
    """The likeliest parameters of every cluster given the assignments (0 for pictures that do not count).

    An empty cluster keeps its own.
    """
    mass, log_sum = share.sum(dim=-2), share.mT @ log_z
    if known is not None:
        mass, log_sum = mass + known.mass, log_sum + known.log_sum
    full = (mass > EPS)[..., None]
    mean_log = torch.where(full, log_sum / mass.clamp(min=EPS)[..., None], EMPTY)
    return torch.where(full, maximise(alpha, mean_log, steps=steps), alpha)


def maximise(
    alpha: Float[Tensor, "*t K K"], mean_log: Float[Tensor, "*t K K"], *, steps: int
) -> Float[Tensor, "*t K K"]:
    """The parameters after at most `steps` MM steps towards the likeliest, given the mean of log z in each cluster.

    Differentiable, in the memory of one step: all steps are differentiated where the last one was taken. That is exact
    at the fixed point, and elsewhere the authors' gradient with their steps' slopes replaced by the last.
    """
    found: Tensor = _Maximise.apply(alpha, mean_log, steps)
    return found


def mm_step(
    alpha: Float[Tensor, "*t K K"], mean_log: Float[Tensor, "*t K K"], total: Float[Tensor, "*t #K K"] | None = None
) -> Float[Tensor, "*t K K"]:
    """One majorisation-minimisation step; the likelihood does not fall. total: sums of alpha, made here without.

    The root of c a^2 + b a - 1 with c the curvature of the quadratic majorant of -log Gamma(1 + .), in the form that
    does not cancel.
    """
    total = alpha.sum(dim=-1, keepdim=True) if total is None else total
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


class _Maximise(torch.autograd.Function):
    """MM steps without a graph; see `maximise` for the gradient."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, mean_log: Tensor, steps: int) -> Tensor:
        done, last = 0, alpha
        for done in range(1, steps + 1):
            last, alpha = alpha, mm_step(alpha, mean_log)
            looked_at = done > 1 and done % CHECK == 1
            if looked_at and (alpha - last).norm().square() < STILL * last.norm().square():
                break
        ctx.save_for_backward(last, mean_log)
        ctx.done = done
        return alpha.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        last, mean_log = ctx.saved_tensors
        total = last.sum(dim=-1, keepdim=True).expand_as(last)
        with torch.enable_grad():
            leaves = [leaf.detach().clone().requires_grad_() for leaf in (last, mean_log, total)]
            stepped = mm_step(*leaves)
            own, by_mean, by_total = torch.autograd.grad(stepped.sum(), leaves)  # each entry from its own entries alone
        adjoint, summed = gradients[0], torch.zeros_like(last)
        for _ in range(ctx.done):
            summed = summed + adjoint
            adjoint = own * adjoint + (by_total * adjoint).sum(dim=-1, keepdim=True)
        return adjoint, by_mean * summed, None
