"""Any Hugging Face text encoder as a text tower: BERT, RoBERTa, XLM-R, ModernBERT, T5's encoder, Qwen3 and the like.

Padding is masked and stands behind the text, so texts run at natural length. Weights are named as in open_clip's
HFTextEncoder (`transformer.*`, `proj.*`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlp.models.text_clip import TextOutput
from vlp.registry import Part

WEIGHTS = torch.float32  # whatever they were saved in: the run chooses its precision, and AdamW wants these in full
PADDING_SEEN = 1e-4  # relative difference of hidden states with and without padding that is no rounding error


class HFTextConfig(Part):
    """Which encoder, and how its hidden states become one vector in the joint space."""

    hf: str | dict[str, Any]  # a hub id or folder, or a configuration ({model_type: bert, ...}) for random weights
    pooler: Literal["cls", "mean", "max", "last", "pooler"] = "mean"  # last: the end token; pooler: the model's own
    proj: Literal["linear", "mlp", "none"] = "linear"
    pretrained: bool = True  # start from the weights of the hub id or folder

    def open_clip_cfg(self, text_cfg: dict[str, Any], context: int | None) -> dict[str, Any]:
        """open_clip's text_cfg of this tower, as near as its words come."""
        name = self.hf if isinstance(self.hf, str) else str(self.hf.get("model_type", ""))
        pooler = {"cls": "cls_last_hidden_state_pooler", "pooler": "cls_pooler"}.get(
            self.pooler, f"{self.pooler}_pooler"
        )
        tokenizer = {"hf_tokenizer_name": self.hf} if isinstance(self.hf, str) else {}
        return {
            "context_length": context or text_cfg.get("context_length", 77),
            "hf_model_name": name,
            "hf_pooler_type": pooler,
            "hf_proj_type": self.proj,
            **tokenizer,
        }


class HFText(nn.Module):
    """The encoder, its pooling and its projection; implements `TextTower`."""

    trims = True
    pad: Callable[[], int | None] = staticmethod(lambda: None)  # id that fills rows; None: what the encoder says

    def __init__(self, settings: HFTextConfig, *, dim: int, context: int, pretrained: bool) -> None:
        super().__init__()
        self.settings = settings
        self.transformer = _encoder(settings, pretrained=pretrained and settings.pretrained)
        _refuse_unfit(self.transformer)
        self.config = self.transformer.config
        self.width = int(self.transformer.get_input_embeddings().embedding_dim)
        limit = getattr(self.config, "max_position_embeddings", None) or context
        self.context = min(context, int(limit) - _positions_taken(self.config))
        hidden = int(getattr(self.config, "hidden_size", None) or self.config.d_model)
        self.proj = _projection(settings.proj, hidden, dim)
        if settings.pooler != "pooler" and getattr(self.transformer, "pooler", None) is not None:
            self.transformer.pooler = nn.Identity()  # its own weights would never get a gradient
        elif settings.pooler == "pooler" and getattr(self.transformer, "pooler", None) is None:
            raise ValueError(f"model.text.pooler: a {self.config.model_type} has no pooler of its own; use cls or mean")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        stacks = [m for m in self.transformer.modules() if isinstance(m, nn.ModuleList)]
        return list(max(stacks, key=len, default=[]))

    def checkpoint_blocks(self) -> None:
        name = "activation_checkpointing_enable"  # its name from transformers 5.2x on
        enable = getattr(self.transformer, name, None) or self.transformer.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def lock_groups(self) -> list[list[Any]]:
        """Groups for partial unlocking: what is below the blocks, each block, the last one with the rest above it."""
        blocks = self.blocks
        inside = {id(p) for block in blocks for p in block.parameters()}
        below = {id(p) for p in self.transformer.get_input_embeddings().parameters()}
        embeddings = getattr(self.transformer, "embeddings", None)
        below |= {id(p) for p in embeddings.parameters()} if isinstance(embeddings, nn.Module) else set()
        rest = [p for p in self.transformer.parameters() if id(p) not in inside | below]
        stem = [p for p in self.transformer.parameters() if id(p) in below]
        return [stem, *([block] for block in blocks[:-1]), [*blocks[-1:], *rest], [self.proj]]

    def mask(self, ids: Tensor) -> Tensor:
        """Bool [n, T]: what is no padding of the tokenizer, or where that is not known, as open_clip has it."""
        pad = self.pad()
        pad = self.config.pad_token_id if pad is None else pad
        return torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad

    def end(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Position of the last real token, [n]."""
        return ((self.mask(ids) if mask is None else mask).sum(dim=1) - 1).clamp_min(0)

    def embed(self, ids: Tensor) -> Tensor:
        return self.transformer.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def run(self, embeds: Tensor, mask: Tensor, end: Tensor, *, tokens: bool) -> TextOutput:
        out = self.transformer(inputs_embeds=embeds, attention_mask=mask.long())
        hidden = out.last_hidden_state
        pooled = self.proj(self._pool(out, hidden, mask, end))
        return TextOutput(pooled, self.proj(hidden), hidden) if tokens else TextOutput(pooled)

    def _pool(self, out: Any, hidden: Tensor, mask: Tensor, end: Tensor) -> Tensor:
        seen = mask[..., None]
        match self.settings.pooler:
            case "cls":
                return hidden[:, 0]
            case "mean":
                return (hidden * seen).sum(dim=1) / seen.sum(dim=1).clamp_min(1)
            case "max":
                return hidden.masked_fill(~seen, torch.finfo(hidden.dtype).min).amax(dim=1)
            case "last":
                return hidden[torch.arange(len(hidden), device=hidden.device), end]
        return out.pooler_output  # type: ignore[no-any-return]


def _projection(kind: str, hidden: int, dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(hidden, dim, bias=False)
    if kind == "mlp":
        middle = (hidden + dim) // 2
        return nn.Sequential(nn.Linear(hidden, middle, bias=False), nn.GELU(), nn.Linear(middle, dim, bias=False))
    if hidden != dim:
        raise ValueError(f"model.text.proj: none, but the encoder has width {hidden} and the joint space {dim}")
    return nn.Identity()


def _encoder(settings: HFTextConfig, *, pretrained: bool) -> Any:
    from transformers import AutoConfig, AutoModel

    name = None if isinstance(settings.hf, dict) else _readable(settings.hf)
    try:
        if isinstance(settings.hf, dict):
            config = AutoConfig.for_model(**settings.hf)
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        _refuse_kernels(config, name)
        if name is not None and pretrained:
            model = AutoModel.from_pretrained(name, config=config, dtype=WEIGHTS, trust_remote_code=False)
        else:
            model = AutoModel.from_config(config, dtype=WEIGHTS, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"model.text.hf: {name or settings.hf} is a model whose code comes with its files, and that is not run; "
            "take an encoder that transformers itself has"
        ) from error
    return model.encoder if getattr(model.config, "is_encoder_decoder", False) else model


@torch.no_grad()
def _refuse_unfit(model: Any) -> None:
    """ValueError for an encoder that takes no embeddings, or that sees the padding behind a text (FNet, ConvBERT)."""
    kind, mask = model.config.model_type, torch.tensor([[1, 1, 0, 0]])
    training, pad = model.training, model.config.pad_token_id or 0
    try:
        embeds = model.eval().get_input_embeddings()(torch.tensor([[1, 2, pad, pad]]))
        padded = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, :2]
        alone = model(inputs_embeds=embeds[:, :2], attention_mask=mask[:, :2]).last_hidden_state
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:  # RuntimeError: NotImplementedError too
        raise ValueError(
            f"model.text.hf: a {kind} is no text tower here: it must take embeddings and a mask, and says "
            f'"{error}"; take a BERT-like, T5-like or decoder-only encoder (a whole CLIP or SigLIP: model.pretrained)'
        ) from error
    model.train(training)
    if (padded - alone).norm() > PADDING_SEEN * alone.norm():
        raise ValueError(
            f"model.text.hf: a {kind} sees the padding behind a text, whose features would then depend on the texts "
            "beside it; take an encoder that masks padding"
        )


def _refuse_kernels(config: Any, name: str | None) -> None:
    """ValueError for an attention that is to be fetched from a hub: it would be code."""
    wanted = getattr(config, "_attn_implementation", None)
    if any("/" in str(way) for way in (wanted.values() if isinstance(wanted, dict) else [wanted])):
        raise ValueError(
            f"model.text.hf: {name or config.model_type} asks for the attention {wanted}, which is fetched code"
        )


def _readable(name: str) -> str:
    if name.startswith((".", "/")) and not (Path(name) / "config.json").is_file():
        raise ValueError(f"model.text.hf: no config.json in {name}")
    return name


def _positions_taken(config: Any) -> int:
    """Rows of the position table that no token uses: RoBERTa and its kin count positions from padding_idx + 1."""
    offset = config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer")
    return int(config.pad_token_id) + 1 if offset else 0
