from __future__ import annotations

import pytest
import torch

from vlp.models.dual import Dual

from .tiny import make_dual


@pytest.fixture
def dual() -> Dual:
    return make_dual()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
