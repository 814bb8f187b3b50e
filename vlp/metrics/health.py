"""How features fill the sphere: effective rank, alignment, uniformity, and the gap between the two modalities.

RankMe rises when isotropic noise is added, so it is an alarm for collapse, never a score to compare models by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-7  # RankMe, eq. 2


@dataclass
class RankMe:
    """exp of the entropy of the normalised singular values (Garrido et al. 2023, eq. 1-2), features not centred.

    The state is the Gram matrix in fp64, whose eigenvalues are the squared singular values: it merges, and D x D is all
    it holds. Singular values below 1e-8 of the largest drown in it, far under the paper's epsilon.
    """

    name: str = "rankme"
    _gram: Tensor | None = None
    _count: int = 0

    def update(self, features: Float[Tensor, "B D"]) -> None:
        """Adds rows of features."""
        rows = features.detach().double().cpu()
        gram = rows.T @ rows
        self._gram = gram if self._gram is None else self._gram + gram
        self._count += len(rows)

    def merge(self, other: RankMe) -> None:
        """Adds the other state's rows."""
        if other._gram is not None:
            self._gram = other._gram.clone() if self._gram is None else self._gram + other._gram
        self._count += other._count

    def compute(self) -> dict[str, float]:
        """A number from 1 (all rows on one line) to min(n, D); 1 for rows that are all zero; empty without rows."""
        if self._gram is None:
            return {}
        value = torch.linalg.eigvalsh(self._gram).clamp_min(0).sqrt()[-min(self._count, len(self._gram)) :]
        if not value.sum():
            return {self.name: 1.0}
        share = value / value.sum() + EPSILON
        return {self.name: float((-(share * share.log()).sum()).exp())}


@dataclass
class Alignment:
    """Mean squared distance of the two features of a pair (Wang & Isola 2020, eq. 4 with alpha = 2); 0 is best."""

    _sum: float = 0.0
    _count: int = 0

    def update(self, image: Float[Tensor, "B D"], text: Float[Tensor, "B D"]) -> None:
        """Adds pairs."""
        self._sum += float((image.double() - text.double()).square().sum())
        self._count += len(image)

    def merge(self, other: Alignment) -> None:
        """Adds the other state's pairs."""
        self._sum += other._sum
        self._count += other._count

    def compute(self) -> dict[str, float]:
        return {"alignment": self._sum / self._count} if self._count else {}


@dataclass
class ModalityGap:
    """Distance between the centroid of pictures and that of texts (Liang et al. 2022, section 2)."""

    _sums: dict[str, Tensor] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: {"image": 0, "text": 0})

    def update(self, *, image: Float[Tensor, "B D"], text: Float[Tensor, "M D"]) -> None:
        """Adds rows of either modality."""
        for name, rows in (("image", image), ("text", text)):
            self._add(name, rows.double().sum(dim=0).cpu(), len(rows))

    def merge(self, other: ModalityGap) -> None:
        """Adds the other state's sums."""
        for name, total in other._sums.items():
            self._add(name, total, other._counts[name])

    def compute(self) -> dict[str, float]:
        if not all(self._counts.values()):
            return {}
        image, text = (self._sums[name] / self._counts[name] for name in ("image", "text"))
        return {"modality_gap": float((image - text).norm())}

    def _add(self, name: str, total: Tensor, count: int) -> None:
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] += count


@dataclass
class Uniformity:
    """log of the mean over distinct pairs of exp(-t |x - y|^2) (Wang & Isola 2020, eq. 5); lower is more uniform.

    Pairs do not split into sums, so the state is the features themselves.
    """

    name: str = "uniformity"
    t: float = 2.0
    block: int = 1024
    _rows: list[Tensor] = field(default_factory=list)

    def update(self, features: Float[Tensor, "B D"]) -> None:
        """Adds rows of unit norm."""
        self._rows.append(features.detach().float().cpu())

    def merge(self, other: Uniformity) -> None:
        """Adds the other state's rows."""
        self._rows += other._rows

    def compute(self) -> dict[str, float]:
        """From -2t (spread as far as can be) to 0 (one point); empty with fewer than two rows."""
        rows = torch.cat(self._rows).double() if self._rows else torch.empty(0, 1, dtype=torch.float64)
        n = len(rows)
        if n < 2:
            return {}
        total = sum(float(self._kernel(part, rows)) for part in rows.split(self.block))
        return {self.name: float(torch.tensor((total - n) / (n * (n - 1))).log())}

    def _kernel(self, part: Tensor, rows: Tensor) -> Tensor:
        square = 2 - 2 * (part @ rows.T)  # unit norm
        return square.clamp_min(0).mul(-self.t).exp().sum()
