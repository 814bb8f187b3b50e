"""Locked towers (LiT, 2111.07991): groups from the structure of a tower, and modules that stay in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlp.models.dual import Dual

Member = nn.Module | nn.Parameter | None


def lock(dual: Dual, *, image: bool | int = False, text: bool | int = False, batchnorm: bool = False) -> None:
    """Lock towers: true wholly, n all but the last n groups. Locked BatchNorm keeps its statistics in train mode.

    A wholly locked tower stays in eval mode (no dropout), but its patch dropout, which was asked for, still works.
    """
    held: list[nn.Module] = []
    for tower, module, groups in (
        (image, dual.visual, image_groups(dual.visual)),
        (text, dual.text, text_groups(dual.text)),
    ):
        if tower is not False:
            lock_groups(module, groups, unlocked=0 if tower is True else int(tower))
        if tower is True:
            held += [child for name, child in module.named_children() if name != "patch_dropout"]
        norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
        held += [norm for norm in norms if batchnorm or _locked(norm)]
    dual.held = tuple(held)
    dual.train(dual.training)


def _locked(norm: nn.Module) -> bool:
    """Whether its parameters are; without any (`affine=False`) its statistics move unless the whole tower is locked."""
    own = list(norm.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def lock_groups(module: nn.Module, groups: list[list[Member]], *, unlocked: int) -> None:
    """Lock every parameter of `module` but those of the last `unlocked` groups."""
    if unlocked > len(groups):
        raise ValueError(f"{unlocked} groups to leave unlocked, but the {type(module).__name__} has {len(groups)}")
    fixed = {id(p) for p in module.parameters() if not p.requires_grad}  # sin-cos positions were never trained
    module.requires_grad_(False)
    for group in groups[len(groups) - unlocked :]:
        for parameter in _parameters(group):
            parameter.requires_grad_(id(parameter) not in fixed)


def image_groups(visual: Any) -> list[list[Member]]:
    """Groups of an image tower, input first; the last one is the projection."""
    if hasattr(visual, "trunk"):
        return _timm_groups(visual)
    if hasattr(visual, "attnpool"):
        stem = [visual.conv1, visual.bn1, visual.conv2, visual.bn2, visual.conv3, visual.bn3]
        return [stem, [visual.layer1], [visual.layer2], [visual.layer3], [visual.layer4], [visual.attnpool]]
    blocks = list(visual.transformer.resblocks)
    stem = [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre]
    pools = [visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)]
    return [stem, *([block] for block in blocks[:-1]), [blocks[-1], *pools, visual.ln_post], [visual.proj]]


def text_groups(text: Any) -> list[list[Member]]:
    """Groups of a text tower, input first; the last one is the projection."""
    if hasattr(text, "lock_groups"):
        groups: list[list[Member]] = text.lock_groups()
        return groups
    blocks = list(text.transformer.resblocks)
    stem = [text.token_embedding, text.positional_embedding, text.cls_emb]
    return [stem, *([block] for block in blocks[:-1]), [blocks[-1], text.ln_final], [text.text_projection]]


def depths(dual: Dual) -> dict[str, int]:
    """Parameter name -> groups between it and the end of its tower: 0 for the projection, most for the embeddings."""
    names = {id(parameter): name for name, parameter in dual.named_parameters()}
    found: dict[str, int] = {}
    for groups in (image_groups(dual.visual), text_groups(dual.text)):
        for depth, group in enumerate(reversed(groups)):
            found.update({names[id(parameter)]: depth for parameter in _parameters(group)})
    return found


def _timm_groups(visual: Any) -> list[list[Member]]:
    """Timm's own layer groups, then open_clip's head, if it has weights."""
    from timm.models import group_parameters

    by_layer = group_parameters(visual.trunk, visual.trunk.group_matcher())
    groups: list[list[Member]] = [[visual.trunk.get_parameter(name) for name in by_layer[k]] for k in sorted(by_layer)]
    return [*groups, [visual.head]] if any(True for _ in visual.head.parameters()) else groups


def _parameters(group: list[Member]) -> Iterator[nn.Parameter]:
    for member in group:
        if isinstance(member, nn.Parameter):
            yield member
        elif member is not None:
            yield from member.parameters()
