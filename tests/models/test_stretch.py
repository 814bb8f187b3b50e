"""Text positions stretched as Long-CLIP stretches them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlp.models import pretrained
from vlp.models.model import Model
from vlp.models.stretch import StretchText

from .test_freeze import TIMM
from .tiny import NANO, make_dual, random_ids


def _by_formula(old: torch.Tensor, keep: int) -> torch.Tensor:
    """Four new rows for each old one behind the kept; behind the last the step between the last two goes on."""
    rows = list(old[:keep])
    for i in range(keep, len(old)):
        low, high = (old[i], old[i + 1]) if i + 1 < len(old) else (old[i], 2 * old[i] - old[i - 1])
        rows += [((4 - quarter) * low + quarter * high) / 4 for quarter in range(4)]
    return torch.stack(rows)


def test_77_positions_become_248() -> None:
    old = torch.randn(77, 8)
    new = StretchText()(old, 248)
    assert new.shape == (248, 8)
    assert torch.equal(new[:20], old[:20])
    assert torch.equal(new[20::4], old[20:])
    torch.testing.assert_close(new, _by_formula(old, 20), atol=1e-6, rtol=0)


def test_another_ratio_keeps_a_straight_line_straight() -> None:
    old = torch.arange(10.0)[:, None]
    new = StretchText(keep=4)(old, 13)  # 6 rows become 9
    expected = torch.cat([torch.arange(4.0), 4 + torch.arange(9) * 6 / 9])
    torch.testing.assert_close(new[:, 0], expected)


def test_half_precision_stays() -> None:
    assert StretchText(keep=2)(torch.randn(6, 4).bfloat16(), 12).dtype is torch.bfloat16


def _saved(tmp_path: Path, config: Any = NANO) -> tuple[Any, str]:
    dual = make_dual(config)
    pretrained.save(dual, tmp_path / "model")
    return dual, str(tmp_path / "model")


def test_short_texts_keep_their_features_and_long_ones_find_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dual, folder = _saved(tmp_path)
    model = Model(pretrained=folder, context=36, stretch_text={"keep": 4})
    long = model.build().eval()
    text: Any = long.text
    torch.testing.assert_close(text.positional_embedding, _by_formula(dual.text.positional_embedding, 4))
    assert "text.positional_embedding: stretched behind the first 4, to 36" in caplog.text
    assert long.context == long.tokenizer.context == 36
    ids = torch.tensor([[97, 5, 98, 0], [97, 7, 9, 98]])
    mask = ids > 0
    torch.testing.assert_close(long.encode_text(ids, mask), dual.encode_text(ids, mask), atol=1e-6, rtol=0)
    five = torch.tensor([[97, 5, 7, 9, 11, 98]])
    assert not torch.allclose(long.encode_text(five), dual.encode_text(five), atol=1e-3)
    plain = Model(pretrained=folder, context=36).build().eval()
    assert not torch.allclose(plain.encode_text(ids, mask), dual.encode_text(ids, mask), atol=1e-3)
    assert long.encode_text(random_ids(2, context=36)).isfinite().all()


def test_a_stretched_model_comes_back(tmp_path: Path) -> None:
    _, folder = _saved(tmp_path)
    long = Model(pretrained=folder, context=36, stretch_text=StretchText(keep=4)).build().eval()
    pretrained.save(long, tmp_path / "long")
    again = pretrained.load(tmp_path / "long")
    assert again.context == again.tokenizer.context == 36
    ids = random_ids(3, context=36)
    assert torch.equal(again.encode_text(ids), long.encode_text(ids))


@pytest.mark.parametrize(("context", "keep", "said"), [(12, 4, "have 12 text positions and the model 12"),
                                                       (8, 4, "the model 8; set model.context to more"),
                                                       (36, 11, "give at most 10")])  # fmt: skip
def test_nothing_to_stretch_is_said(tmp_path: Path, context: int, keep: int, said: str) -> None:
    _, folder = _saved(tmp_path)
    with pytest.raises(ValueError, match=said):
        Model(pretrained=folder, context=context, stretch_text=StretchText(keep=keep)).build()


def test_weights_without_text_positions(tmp_path: Path) -> None:
    """Such as those of a Hugging Face tower."""
    _, folder = _saved(tmp_path, TIMM)
    config = copy.deepcopy(TIMM)
    config["text_cfg"]["context_length"] = 20
    (tmp_path / "long.json").write_text(json.dumps(config))
    weights = torch.nn.Parameter(torch.randn(12, 4))
    with pytest.raises(ValueError, match=r"the weights have no learned text positions.*drop it"):
        StretchText(keep=4).adapt(None, weights)
    with pytest.raises(ValueError, match="this text tower has no learned"):
        StretchText(keep=4).adapt(weights, None)
    stretched = Model(arch=str(tmp_path / "long.json"), pretrained=folder, stretch_text=StretchText(keep=4)).build()
    assert stretched.context == 20


def test_it_needs_pretrained_weights() -> None:
    with pytest.raises(ValueError, match="stretch_text: the positions of `pretrained`"):
        Model(arch="vlp-nano", context=64, stretch_text=StretchText())
