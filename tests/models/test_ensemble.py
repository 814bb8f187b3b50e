"""Models side by side: cosines are means of theirs, and the folder is a model wherever one is used whole."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

import vlp
from eval.own import is_model, is_pictures
from tests.models.tiny import NANO, make_dual, random_ids
from vlp import trained
from vlp.cli import app
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.models.ensemble import Ensemble, save
from vlp.text.clip_bpe import ClipBPE

TEXTS = ["a red star", "two blue circles on a night sky", ""]
WORDED = copy.deepcopy(NANO)
WORDED["text_cfg"] |= {"vocab_size": 49408}


def worded(seed, *, context=12):
    """A tiny model with a tokenizer that a folder can keep."""
    config = copy.deepcopy(WORDED)
    config["text_cfg"]["context_length"] = context
    dual = make_dual(config, seed=seed)
    dual.tokenizer = ClipBPE(context=context)
    with torch.no_grad():
        dual.logit_scale.fill_(1.0 + seed)
    return dual


def pictures(n=5):
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def test_a_cosine_is_the_mean_of_the_members():
    members = [make_dual(seed=seed) for seed in range(3)]
    both = Ensemble(members)
    ids = random_ids(4)
    image, text = both.encode_image(pictures()), both.encode_text(ids)
    want = torch.stack([one.encode_image(pictures()) @ one.encode_text(ids).T for one in members]).mean(dim=0)
    torch.testing.assert_close(image @ text.T, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(5))
    assert (both.dim, image.shape, text.shape) == (96, (5, 96), (4, 96))
    assert Encoder(both).scale == pytest.approx(sum(float(one.logit_scale.detach().exp()) for one in members) / 3)
    assert "logit_scale" not in dict(both.named_parameters())  # nothing of it is trained


def test_its_folder_is_a_model(tmp_path):
    members = [worded(seed) for seed in range(2)]
    for seed, member in enumerate(members):
        pretrained.save(member, tmp_path / f"run-{seed}")
    out = tmp_path / "both"
    said = CliRunner().invoke(
        app,
        ["ensemble", *(str(tmp_path / f"run-{seed}") for seed in range(2)), "--out", str(out)],
        catch_exceptions=False,
    )
    assert (said.exit_code, said.stdout.strip()) == (0, str(out))
    assert [one["from"] for one in json.loads((out / "ensemble.json").read_text())["members"]] == [
        str(tmp_path / "run-0"),
        str(tmp_path / "run-1"),
    ]
    found, made = trained.load(out), Ensemble(members)
    assert pretrained.weights_hash(found) == pretrained.weights_hash(made)
    assert pretrained.weights_hash(found) != pretrained.weights_hash(Ensemble(members[::-1]))
    assert torch.equal(Encoder(found, quiet=True).texts(TEXTS), Encoder(made, quiet=True).texts(TEXTS))
    assert is_model(out)
    assert not is_pictures(out)
    model = vlp.load(str(out))
    assert model.embed_texts(TEXTS).shape == (3, 64)
    torch.testing.assert_close(
        trained.load(out / "member-0").encode_image(pictures()), members[0].encode_image(pictures())
    )


def test_what_cannot_stand_side_by_side_is_refused(tmp_path):
    first = worded(0)
    with pytest.raises(ValueError, match="takes 2 models or more, got 1"):
        Ensemble([first])
    with pytest.raises(ValueError, match="member 1 has another tokenizer than the first"):
        Ensemble([first, worded(1, context=10)])
    other = worded(1)
    other.transform = other.transform.model_copy(update={"resize_mode": "squash"})
    with pytest.raises(ValueError, match="member 1 reads pictures otherwise than the first"):
        Ensemble([first, other])
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there is there; take another name"):
        save([first, worded(1)], tmp_path / "there", names=["a", "b"])


def test_what_needs_one_tower_takes_a_member(tmp_path):
    save([worded(0), worded(1)], tmp_path / "both", names=["a", "b"])
    both = trained.load(tmp_path / "both")
    with pytest.raises(
        AttributeError, match=r"an ensemble of 2 models has no `encode_image_tokens` of its own; take one of"
    ):
        Encoder(both, quiet=True).image_tokens([pictures()[0]])
    with pytest.raises(ValueError, match="an ensemble is used as a whole only; here one of its members is wanted"):
        pretrained.load(tmp_path / "both")
    about = json.loads((tmp_path / "both" / "ensemble.json").read_text())
    (tmp_path / "both" / "ensemble.json").write_text(json.dumps({**about, "schema": 2}))
    with pytest.raises(ValueError, match="not an ensemble as this version writes them"):
        trained.load(tmp_path / "both")
