"""Small dual encoders of every kind of text tower, with a tokenizer of words, and pictures for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from tests.models.test_text_hf import SIZES
from tests.models.tiny import NANO, make_dual
from vlp.adapters.task import Examples, Task
from vlp.embed import Encoder
from vlp.models.deep import deep_prompts
from vlp.models.model import Model
from vlp.models.text_hf import HFTextConfig
from vlp.text.clip_bpe import ClipBPE

CONTEXT = 24
NAMES = ("cat", "tabby_cat", "big old dog", "ant")
PHOTO = ("a photo of a {}.",)


class WordTokenizer:
    """One id a word, one for a full stop, an end token, and a start token unless told otherwise."""

    context, vocab_size, pad, fingerprint = CONTEXT, 99, 0, "words"

    def __init__(self, *, start: bool = True) -> None:
        self.start = start
        self.known: dict[str, int] = {}

    def _whole(self, text: str) -> list[int]:
        words = text.replace(".", " . ").split()
        ids = [self.known.setdefault(word, 3 + len(self.known)) for word in words]
        return [*([97] if self.start else []), *ids, 98]

    def encode(self, texts: Any) -> list[list[int]]:
        return [[*ids[:-1][: self.context - 1], 98] for ids in map(self._whole, texts)]

    def lengths(self, texts: Any) -> list[int]:
        return [len(self._whole(text)) for text in texts]


def config(**text: Any) -> dict[str, Any]:
    made = copy.deepcopy(NANO)
    made["text_cfg"] |= {"context_length": CONTEXT, **text}
    return made


def clip() -> Any:
    dual = make_dual(config())
    dual.tokenizer = WordTokenizer()
    return dual


def siglip() -> Any:
    """Text that looks both ways and at its padding, without a start token; attention pooling over patches."""
    made = config(no_causal_mask=True, proj_bias=True, pool_type="last") | {"custom_text": True, "init_logit_bias": -10}
    made["vision_cfg"] = {
        "image_size": 32,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
    dual = make_dual(made, ours={"timm": shape})
    dual.tokenizer = WordTokenizer(start=False)
    return dual


def hugging_face() -> Any:
    torch.manual_seed(0)
    text = HFTextConfig(hf={"model_type": "bert", **SIZES}, pooler="mean")
    dual = Model(arch="vlp-nano", text=text, tokenizer=ClipBPE(context=CONTEXT), context=CONTEXT).build().eval()
    dual.tokenizer = WordTokenizer()
    return dual


TOWERS = {"clip": clip, "siglip": siglip, "hugging_face": hugging_face}


def encoder_of(kind: str = "clip") -> Encoder:
    return Encoder(TOWERS[kind](), quiet=True, batch_size=16)


def pictures(count: int, *, seed: int = 0) -> list[Any]:
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 40, 40, 3), dtype=torch.uint8, generator=rng)
    return [Image.fromarray(one.numpy()) for one in pixels]


def task_of(encoder: Encoder, *, shots: int = 2, seed: int = 0, names: tuple[str, ...] = NAMES) -> Task:
    """Random pictures of every class, with their features."""
    label = torch.arange(len(names)).repeat(shots)
    made = pictures(len(label))
    support = Examples(encoder.images(made).features, label, pictures=made)
    return Task(names, PHOTO, support=support, seed=seed)


def pixels(encoder: Encoder, task: Task) -> Tensor:
    """The support as the model's transform makes it."""
    return torch.stack([encoder.dual.transform(picture) for picture in task.support.pictures])


def image_by_hand(dual: Any, image: Tensor, visual: Tensor) -> Tensor:
    """Unit features of uint8 pictures through open_clip's ViT, block by block, with prompts [depth, p, width]."""
    tower, count = dual.visual, visual.shape[1]
    x = tower.conv1(dual.pixels(image)).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], dim=1) + tower.positional_embedding
    patches = x.shape[1]
    x = tower.ln_pre(torch.cat([x, visual[0].expand(len(x), -1, -1)], dim=1))
    for depth, block in enumerate(tower.transformer.resblocks):
        if 0 < depth < len(visual) and count:
            x = torch.cat([x[:, :patches], visual[depth].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return normalize(tower.ln_post(x[:, 0]) @ tower.proj, dim=-1)


def text_by_hand(dual: Any, names: Any, text: Tensor, *, words: str = "a photo of a") -> Tensor:
    """Unit features of "[words] name." whose first words are text[0], with text[j] in their place at block j."""
    found = []
    for name in names:
        ids = torch.tensor(dual.tokenizer.encode([f"{words} {name.replace('_', ' ')}."]))
        at, count = int(dual.tokenizer.start), text.shape[1]
        embeds = torch.cat([dual.embed(ids[:, :at]), text[:1], dual.embed(ids[:, at + count :])], dim=1)
        with deep_prompts(dual.text_blocks[1:], text[1:], at=at):
            found.append(
                dual.encode_embeds(embeds, torch.ones_like(ids, dtype=torch.bool), torch.tensor([ids.shape[1] - 1]))
            )
    return torch.cat(found)


def one_step(parameters: dict[str, Tensor], loss: Tensor, *, rate: float) -> dict[str, Tensor]:
    """Parameters after a step of gradient descent."""
    grads = torch.autograd.grad(loss, list(parameters.values()))
    return {name: (p - rate * grad).detach() for (name, p), grad in zip(parameters.items(), grads, strict=True)}


def state_of(encoder: Encoder) -> dict[str, Any]:
    """Everything of a model that fitting must leave as it was."""
    dual = encoder.dual
    return {
        "tensors": {name: tensor.clone() for name, tensor in dual.state_dict().items()},
        "modes": [module.training for module in dual.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in dual.modules()],
        "wanted": [parameter.requires_grad for parameter in dual.parameters()],
        "grads": [parameter.grad is None for parameter in dual.parameters()],
        "rng": torch.get_rng_state(),
    }


def assert_untouched(encoder: Encoder, before: dict[str, Any]) -> None:
    after = state_of(encoder)
    assert all(torch.equal(after["tensors"][name], tensor) for name, tensor in before["tensors"].items())
    assert torch.equal(after["rng"], before["rng"])
    for part in ("modes", "hooks", "wanted", "grads"):
        assert after[part] == before[part], part
