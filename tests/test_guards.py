"""Guards that need no run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlp.guards import BatchStatistics, refuse_large_vocabulary
from vlp.models.model import Model
from vlp.models.text_hf import HFTextConfig


def test_a_step_that_is_left_out_leaves_no_statistics() -> None:
    frozen = nn.BatchNorm1d(3).eval()
    tower = nn.Sequential(nn.BatchNorm1d(3), frozen)
    tower(torch.randn(8, 3))
    before = [buffer.clone() for buffer in tower.buffers()]
    statistics = BatchStatistics(tower)
    assert len(statistics.buffers) == 3, "of the layer that takes them"
    statistics.keep()
    tower(torch.full((8, 3), torch.nan))
    assert tower[0].running_mean.isnan().all()
    statistics.put_back()
    assert all(torch.equal(a, b) for a, b in zip(tower.buffers(), before, strict=True))


def test_a_table_of_positions_is_none_of_words() -> None:
    bert = {"model_type": "bert", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = Model(arch="vlp-nano", text=HFTextConfig(hf={**bert, "max_position_embeddings": 512})).build().text
    refuse_large_vocabulary(text, 99)
    with pytest.raises(ValueError, match="the tokenizer has 300 ids, the text tower embeddings for 99"):
        refuse_large_vocabulary(text, 300)
