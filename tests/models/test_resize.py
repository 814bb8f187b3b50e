"""Positions of an image tower for pictures of another size or shape."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from vlp.models import pretrained
from vlp.models.model import Model

from .test_hf_clip import siglip_folder
from .test_pretrained import saved
from .tiny import NANO, make_dual

TIMM_VIT = {
    **copy.deepcopy(NANO),
    "custom_text": True,
    "embed_dim": 64,
    "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none", "image_size": 32},
}


def config(size: Any) -> dict[str, Any]:
    found = copy.deepcopy(NANO)
    found["vision_cfg"]["image_size"] = size
    return found


def arch(folder: Path, content: dict[str, Any]) -> str:
    (folder / "arch.json").write_text(json.dumps(content))
    return str(folder / "arch.json")


@pytest.mark.parametrize(
    ("size", "before", "other", "grid"),
    [([32, 72], (4, 9), 48, (6, 6)), ([32, 72], (4, 9), 64, (8, 8)), ([32, 64], (4, 8), [64, 32], (8, 4))],
)
def test_places_of_pictures_that_are_no_squares(
    tmp_path: Path, size: Any, before: tuple[int, int], other: Any, grid: tuple[int, int]
) -> None:
    dual, folder = saved(tmp_path, config(size))
    old = dual.visual.positional_embedding.detach()
    started: Any = Model(arch=arch(tmp_path, config(other)), pretrained=str(folder)).build().visual
    plane = old[1:].T.reshape(1, -1, *before)
    want = interpolate(plane, size=grid, mode="bicubic", antialias=True, align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(started.positional_embedding[1:].detach(), want)
    assert torch.equal(started.positional_embedding[0], old[0])


def test_places_that_nobody_knows_are_refused_and_equal_ones_kept(tmp_path: Path) -> None:
    dual, folder = saved(tmp_path, config([32, 64]))
    alone = tmp_path / "weights.safetensors"
    (folder / pretrained.WEIGHTS_FILE).rename(alone)
    started: Any = Model(arch=arch(tmp_path, config([32, 64])), pretrained=str(alone)).build().visual
    assert torch.equal(started.positional_embedding, dual.visual.positional_embedding)
    with pytest.raises(ValueError, match="32 positions of the image tower are no square grid; start from a folder"):
        Model(arch=arch(tmp_path, config(64)), pretrained=str(alone)).build()


def test_weights_of_another_width_are_refused_as_such(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    wide = config(64)
    wide["vision_cfg"]["width"] = 64
    with pytest.raises(ValueError, match=r"do not fit this architecture: .* of another shape"):
        Model(arch=arch(tmp_path, wide), pretrained=str(folder)).build()


def test_a_timm_tower_with_arguments_has_the_size_asked_for(tmp_path: Path) -> None:
    plain, told = make_dual(TIMM_VIT), make_dual(TIMM_VIT, patch_dropout=0.5)
    told.load_state_dict(plain.state_dict())
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(told.encode_image(image), plain.encode_image(image))
    siglip_folder(tmp_path)
    dual = Model(pretrained=str(tmp_path), image_size=48).build().eval()
    assert dual.encode_image(torch.randn(2, 3, 48, 48)).shape == (2, 32)
    pretrained.save(dual, tmp_path / "ours")
    again = pretrained.load(tmp_path / "ours")
    image = torch.randn(2, 3, 48, 48)
    assert torch.equal(again.encode_image(image), dual.encode_image(image))


def test_patch_dropout_leaves_what_timm_is_told_by_the_architecture() -> None:
    deep = copy.deepcopy(TIMM_VIT)
    deep["vision_cfg"] |= {"timm_drop_path": 0.3}
    rates = [
        [m.drop_prob for m in make_dual(deep, patch_dropout=p).visual.modules() if type(m).__name__ == "DropPath"]
        for p in (0.0, 0.5)
    ]
    assert rates[0] == rates[1] != []
    del deep["vision_cfg"]["timm_pool"]  # open_clip's own is avg
    trunk: Any = make_dual(deep, patch_dropout=0.5).visual.trunk
    assert trunk.global_pool == "avg"
