"""Pseudolabels by class against counting by hand."""

from __future__ import annotations

import pytest
import torch

from vlp.adapters.pseudolabels import counted

LABEL = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1, 7])  # the last two: not known, and of no class here


def test_classes_are_counted_one_by_one():
    rows, pseudo = torch.tensor([0, 1, 3, 3, 4, 5, 6, 7, 8]), torch.tensor([0, 1, 1, 0, 1, 2, 0, 2, 2])
    found = counted(rows, pseudo, LABEL, classes=4)
    pairs = [(int(p), int(LABEL[r])) for r, p in zip(rows, pseudo, strict=True) if LABEL[r] >= 0]
    for c in range(4):
        assert int(found.pictures[c]) == sum(int(label) == c for label in LABEL)
        assert int(found.given[c]) == sum(p == c for p, _ in pairs)
        assert int(found.right[c]) == sum(p == c == label for p, label in pairs)


def test_a_picture_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="pseudolabels of picture 9, but there are labels of 9 pictures"):
        counted(torch.tensor([9]), torch.tensor([0]), LABEL, classes=3)
