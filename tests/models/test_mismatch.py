"""What is said of a model that is not as its weights were trained: activation, normalisation, picture size."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_pretrained import NANO, make_dual, saved
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.models.state import to_open_clip
from vlp.text.clip_bpe import ClipBPE

LAION = "vit_b_32-quickgelu-laion400m_e32-46683a32.pt"  # as open_clip downloads it


def arch(folder: Path, config: dict[str, Any] = NANO, **preprocess: Any) -> str:
    file = folder / "arch.json"
    file.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return str(file)


def test_a_folder_fits_itself(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    assert pretrained.load(folder).mismatches == ()


@pytest.mark.parametrize(("there", "here"), [("QuickGELU", "GELU"), ("GELU", "QuickGELU")])
def test_activation_both_ways_also_of_a_file_beside_its_configuration(tmp_path: Path, there: str, here: str) -> None:
    quick = NANO | {"quick_gelu": True}
    _, folder = saved(tmp_path, quick if there == "QuickGELU" else NANO)
    other = arch(tmp_path, NANO if there == "QuickGELU" else quick)
    for weights in (folder, folder / pretrained.WEIGHTS_FILE):
        with pytest.warns(UserWarning, match=f"trained with {there}, but this architecture uses {here}") as said:
            dual = pretrained.load(other, weights=weights)
        assert len(said) == 1
        assert dual.mismatches == (str(said[0].message),)
        assert dual.mismatches[0].startswith(f"{weights.name}: ")
        assert str(tmp_path) not in dual.mismatches[0]


def test_a_published_file_is_known_by_its_name_and_openais_by_its_marks(tmp_path: Path) -> None:
    state = to_open_clip(make_dual())
    torch.save(state, tmp_path / LAION)
    torch.save(state | {"input_resolution": torch.tensor(32)}, tmp_path / "openai.pt")
    torch.save(state, tmp_path / "mine.pt")
    for name in (LAION, "openai.pt"):
        with pytest.warns(UserWarning, match=name) as said:
            pretrained.load(arch(tmp_path, mean=[0.5] * 3), weights=tmp_path / name)
        texts = [str(one.message) for one in said]
        assert "trained with QuickGELU" in texts[0]
        assert "pictures with mean [0.4815, 0.4578, 0.4082], but they are prepared with [0.5, 0.5, 0.5]" in texts[1]
        assert len(texts) == 2
    assert pretrained.load(arch(tmp_path), weights=tmp_path / "mine.pt").mismatches == ()  # nobody knows that one


def test_normalisation_and_how_pictures_are_brought_to_size(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["preprocess_cfg"] |= {
        "mean": [0.5, 0.5, 0.5],
        "std": 0.5,
        "resize_mode": "squash",
        "interpolation": "random",
    }
    file.write_text(json.dumps(content))
    assert pretrained.load(folder).mismatches == ()
    with pytest.warns(UserWarning, match="are prepared with") as said:
        dual = pretrained.load(arch(tmp_path), weights=folder)
    assert len(said) == len(dual.mismatches) == 3
    assert 'preprocess_cfg says {"std": [0.5, 0.5, 0.5]}' in dual.mismatches[1]
    assert "resize_mode squash, but they are prepared with shortest" in dual.mismatches[2]
    with pytest.warns(UserWarning, match="prepared with"):
        Model(arch=arch(tmp_path), pretrained=str(folder)).build()  # also where training starts from it


def test_picture_size(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["preprocess_cfg"]["size"] = [48, 48]
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"its preprocess_cfg.size is 48 x 48, but pictures are brought to 32 x 32"):
        pretrained.load(folder)
    assert Model(pretrained=str(folder), image_size=48).build().transform.size == (48, 48)  # meant, so not said


@pytest.mark.parametrize(
    ("side", "key", "value", "said"),
    [
        ("vision_cfg", "head_width", 8, "vision_cfg.head_width 16, but this architecture has 8"),
        ("vision_cfg", "pool_type", "avg", "vision_cfg.pool_type tok, but this architecture has avg"),
        ("text_cfg", "heads", 4, "text_cfg.heads 2, but this architecture has 4"),
        ("text_cfg", "no_causal_mask", True, "text_cfg.no_causal_mask False, but this architecture has True"),
    ],
)
def test_what_a_tower_does_with_weights_of_the_same_shapes(
    tmp_path: Path, side: str, key: str, value: Any, said: str
) -> None:
    _, folder = saved(tmp_path)
    other = copy.deepcopy(NANO)
    other[side][key] = value
    with pytest.warns(UserWarning, match=said) as found:
        Model(arch=arch(tmp_path, other), pretrained=str(folder)).build()
    assert len(found) == 1


def test_an_end_token_found_by_either_rule_is_the_same(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    other = copy.deepcopy(NANO)
    other["text_cfg"] |= {"pool_type": "eos", "eos_id": 98}
    Model(arch=arch(tmp_path, other), pretrained=str(folder)).build()


def test_another_tokenizer_of_as_many_ids(tmp_path: Path) -> None:
    pretrained.save(Model(arch="vlp-nano", tokenizer=ClipBPE(clean="canonicalize")).build(), tmp_path)
    with pytest.warns(UserWarning, match=r"another tokenizer, ClipBPE\(.*canonicalize.*\), which makes other ids"):
        Model(arch="vlp-nano", pretrained=str(tmp_path)).build()
    for same in (None, ClipBPE(clean="canonicalize", context=9)):
        Model(pretrained=str(tmp_path), tokenizer=same).build()
    hf = {"model_type": "bert", "vocab_size": 49408, "hidden_size": 32, "num_hidden_layers": 1}
    hf |= {"num_attention_heads": 2, "intermediate_size": 32}
    Model(pretrained=str(tmp_path), text={"hf": hf}).build()  # type: ignore[arg-type]
