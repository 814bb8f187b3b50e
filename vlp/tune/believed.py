"""How good the pseudolabels were that a method believed, for the record, when fitting is over."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vlp.adapters.pseudolabels import counted
from vlp.tune.stock import Stock
from vlp.tune.support import Given


def believed(stock: Stock, given: Given, classifier: Any) -> dict[str, Any] | None:
    """accuracy, pairs, and by class pictures, given and right of what the classifier's `about` says was believed.

    None where it says nothing of pseudolabels, or where nobody knows the labels. A pair is a picture with a label: some
    methods give a picture several. accuracy: share of the pairs that are right. GuardError while something is fitted.
    """
    said = getattr(classifier, "about", {}).get("pseudolabels")
    if said is None or (truth := truth_of(stock, given)) is None:
        return None
    rows, label = (torch.as_tensor(said[name], dtype=torch.long) for name in ("rows", "label"))
    found = counted(rows, label, truth, classes=len(classifier.names))
    pairs = int(found.given.sum())
    columns = zip(classifier.names, found.pictures.tolist(), found.given.tolist(), found.right.tolist(), strict=True)
    by_class = [{"name": name, "pictures": n, "given": given, "right": right} for name, n, given, right in columns]
    accuracy = float(found.right.sum()) / pairs if pairs else None
    return {"accuracy": accuracy, "pairs": pairs, "unknown": len(rows) - pairs, "by_class": by_class}


def truth_of(stock: Stock, given: Given) -> Int[Tensor, "n"] | None:
    """Labels of the unlabelled pictures, -1 where one is not known; None where none is. Adapters are never given it."""
    if given.unlabelled is None:
        return None
    rows = given.left_over
    if rows is not None:
        return stock.test.after(lambda: stock.labels_of_train(rows))
    return None if stock.unlabelled_label is None else stock.test.after(stock.unlabelled_label)
