"""Accuracy of pseudolabels by class, and what poor and rich classes gain, against counting by hand."""

from __future__ import annotations

import pytest
import torch

from vlp.adapters.pseudolabels import per_class, robin_hood

LABEL = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


def test_classes_are_counted_one_by_one():
    pseudo = torch.tensor([0, 1, -1, 1, 1, 2, 0, -1, -1])
    found = per_class(pseudo, LABEL, classes=4)
    assert found.support.tolist() == [3, 2, 4, 0]
    for c in range(3):
        rows = [place for place, label in enumerate(LABEL.tolist()) if label == c]
        given = [place for place, label in enumerate(pseudo.tolist()) if label == c]
        right = sum(int(pseudo[place]) == c for place in rows)
        assert float(found.labelled[c]) == sum(int(pseudo[place]) >= 0 for place in rows) / len(rows)
        assert float(found.recall[c]) == right / len(rows)
        assert float(found.precision[c]) == right / len(given)
    assert all(bool(row[3].isnan()) for row in (found.labelled, found.recall, found.precision))


def test_the_poor_gain_what_the_rich_lose():
    before = torch.tensor([1, 1, 1, 1, 1, 2, 2, 0, 0])  # accuracies 0, 1, .5
    after = torch.tensor([0, 0, 1, 1, 0, 2, 2, 0, 0])  # 2/3, .5, .5
    found = robin_hood(before, after, LABEL, classes=5)
    assert found.poor == pytest.approx(2 / 3)
    assert found.rich == pytest.approx(-0.5)
    assert found.gap == pytest.approx(2 / 3 + 0.5)
    assert robin_hood(before, before, LABEL, classes=5) == (0.0, 0.0, 0.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 pseudolabels for 9"):
        per_class(LABEL[:2], LABEL, classes=3)
    with pytest.raises(ValueError, match=r"pseudolabels must lie in -1\.\.1"):
        per_class(LABEL, LABEL.clamp(max=1), classes=2)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        per_class(LABEL, LABEL - 1, classes=3)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        robin_hood(LABEL[:3], LABEL[:3], LABEL[:3], classes=3)
