"""All heads of self-supervised, masked and captioning losses in one model under DistributedDataParallel."""

from __future__ import annotations

from tests.losses.heads import assert_ddp_exact, real_batch
from vlp.losses.caption import Caption
from vlp.losses.masked_image import MaskedImage
from vlp.losses.masked_text import MaskedText
from vlp.losses.mmc import MMC
from vlp.losses.momentum import M3I, MomentumContrast
from vlp.losses.multiview import MultiView, NearestText
from vlp.losses.selfsup import SimCLR, SimSiam

TOGETHER = [
    SimCLR(hidden=16, out=8),
    SimSiam(hidden=16, bottleneck=8),
    MultiView(),
    NearestText(),
    MaskedText(share=0.4),
    MaskedImage(width=32, layers=1),
    Caption(layers=1, weight=2.0),
    MomentumContrast(),
    M3I(),
    MMC(hidden=16),
]


def test_two_processes_equal_one_also_where_one_has_no_valid_slot(spawn):
    empty = real_batch()
    empty.valid[3:] = False
    assert_ddp_exact(TOGETHER, [real_batch(), empty], spawn)
