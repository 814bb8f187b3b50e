"""What a sequence of domains left of each: averages over a matrix of scores by stage and domain."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

LOWER_IS_BETTER = frozenset({"forgetting"})


def measures(scores: Float[Tensor, "*draws T+1 D"]) -> dict[str, Float[Tensor, "*draws"]]:
    """Measures of the stage in the last row; row 0 is the starting model, row t the model after domain t, T <= D.

    average      mean over d <= T of R[T, d]
    learned      mean over d <= T of R[d, d]: each domain right after it was trained on
    forgetting   mean over d < T of max over 1 <= t < T of R[t, d] - R[T, d]  (Chaudhry et al., arXiv 1801.10112)
    backward     mean over d < T of R[T, d] - R[d, d]  (Lopez-Paz and Ranzato, arXiv 1706.08840)
    forward      mean over 2 <= d <= T of R[d-1, d] - R[0, d]  (the same)

    The last three are there from T = 2 on. Scores are better the higher they are.
    """
    last = scores.shape[-2] - 1
    if not 1 <= last <= scores.shape[-1]:
        raise ValueError(f"{last} stages of {scores.shape[-1]} domains: a row for the start and one for each domain")
    seen = scores[..., :last]
    after = seen[..., 1:, :].diagonal(dim1=-2, dim2=-1)  # [..., T] R[d, d]
    found = {"average": seen[..., last, :].mean(-1), "learned": after.mean(-1)}
    if last > 1:
        final, before = seen[..., last, :-1], seen[..., 1:last, :-1]
        ahead = seen[..., 1:last, 1:].diagonal(dim1=-2, dim2=-1)  # [..., T-1] R[d-1, d]
        found["forgetting"] = (before.amax(-2) - final).mean(-1)
        found["backward"] = (final - after[..., :-1]).mean(-1)
        found["forward"] = (ahead - seen[..., 0, 1:]).mean(-1)
    return found
