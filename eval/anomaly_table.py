"""What an evaluation of anomalies keeps of pictures: all scores, and the worst mistakes with their maps."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from vlp.metrics.anomaly import AnomalyDetection, AnomalyLocalization

SHOWN = 6  # pictures of each kind of mistake
Numbers = AnomalyDetection | AnomalyLocalization


class Seen(NamedTuple):
    """A picture whose label could be read."""

    row: int
    object: str
    anomalous: bool


class Scored(NamedTuple):
    """The pictures of one object."""

    seen: list[Seen]
    scores: Float[Tensor, "n"]
    maps: Float[Tensor, "n P"] | None  # by patch, row by row
    numbers: list[Numbers]


def table(found: dict[str, Scored], *, grid: tuple[int, int] | None) -> dict[str, Any]:
    """All scores; and with their maps the normal pictures that score most and anomalous ones that score least, which
    are the worst mistakes, and `spread`: anomalous pictures evenly through the data, not chosen by result.
    """
    columns: dict[str, list[Any]] = {"rows": [], "objects": [], "anomalous": [], "scores": []}
    kinds: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for scored in found.values():
        for place, (one, score) in enumerate(zip(scored.seen, scored.scores.tolist())):
            for column, value in zip(columns.values(), (one.row, one.object, one.anomalous, score)):
                column.append(value)
            shown = {"row": one.row, "object": one.object, "anomalous": one.anomalous, "score": score}
            kinds[one.anomalous].append({**shown, "map": None if scored.maps is None else scored.maps[place]})
    normal, anomalous = (sorted(kind, key=lambda one: float(one["score"])) for kind in kinds)
    by_row = sorted(anomalous, key=lambda one: int(one["row"]))
    spread = [by_row[place] for place in range(0, len(by_row), max(1, len(by_row) // SHOWN))][:SHOWN]
    shown = {"examples": [*normal[::-1][:SHOWN], *anomalous[:SHOWN]], "spread": spread}
    rounded = {name: [_rounded(one) for one in chosen] for name, chosen in shown.items()}
    return {"schema": 1, "grid": None if grid is None else list(grid), **columns, **rounded}


def _rounded(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "map": None if one["map"] is None else [round(value, 4) for value in one["map"].tolist()]}
