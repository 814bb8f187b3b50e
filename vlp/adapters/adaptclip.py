"""AdaptCLIP: anomalies of things never seen in training, with normal pictures as the prompt (2505.09926)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from vlp.adapters import archive
from vlp.adapters.adaptclip_parts import (
    Compared,
    PromptQuery,
    VisualAdapter,
    anomaly_loss,
    arithmetic,
    harmonic,
    judged,
    of_one_size,
)
from vlp.adapters.dense_task import DenseAdapter, DenseExamples, DenseTask, PatchMaps
from vlp.adapters.fitting import seeded
from vlp.adapters.pixel_training import Course, train
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.tuning import frozen

PartName = Literal["visual", "textual", "prompt_query"]


class AdaptClip(DenseAdapter):
    """Three adapters, trained apart (no loss sees two of them) on an auxiliary set, and fused where they are measured.

    visual: residual MLPs on pictures and patches, compared with frozen words. textual: two learned prompts of `context`
    vectors without a name, compared with frozen features. prompt_query: see PromptQuery, with `shots` other normal
    pictures of the same group in training, and as many as are given when measured. Loss of each: cross-entropy of
    pictures, focal and two Dice losses of pixels. Scores: the means of the parts; the map's harmonic mean with the
    distance to the nearest normal patch, and the picture's with the highest place of its map. Without normal pictures
    the prompt-query part rests, and the highest place is one more score in the mean.

    Ours: the levels are the joint space and, with `levels: both`, the patches before the projection, in place of four
    layers with value-value attention (`how` of a benchmark says how patches are made); the residual adapters start as
    the frozen features; maps are not smoothed (theirs by less than a third of a patch). The task's names are normal,
    anomalous, and its validation is not looked at: the last epoch counts.
    """

    scores: ClassVar[Literal["pixels", "anomalies", "regions"]] = "anomalies"

    parts: tuple[PartName, ...] = Field(("visual", "textual", "prompt_query"), min_length=1)
    levels: Literal["patches", "both"] = "both"
    context: int = Field(12, ge=1)
    reduction: int = Field(4, ge=1)
    middle: int = Field(128, ge=2)
    shots: int = Field(1, ge=1)
    temperature: float = Field(0.07, gt=0)
    fuse: Literal["arithmetic", "harmonic"] = "arithmetic"
    lr: float = Field(1e-3, gt=0)
    epochs: int = Field(15, ge=0)
    batch: int = Field(8, ge=2)

    @property
    def hidden(self) -> bool:
        return self.levels == "both" and "prompt_query" in self.parts

    def fit(self, encoder: Any, task: DenseTask) -> AnomalyClassifier:
        """A classifier of pictures and places: anomalous or not."""
        support, device = self.support(task), encoder.device
        if len(task.names) != 2:
            raise ValueError(f"AdaptClip tells normal from anomalous: two names in this order, not {list(task.names)}")
        label = _labels(support)
        candidates = normal_of_group(support, label) if "prompt_query" in self.parts else None
        draws = torch.Generator().manual_seed(task.seed)
        words = task.weights(encoder).to(device)
        with frozen(encoder), seeded(device, task.seed):
            part = Adapters(self, _widths(support.maps, hidden=self.hidden)).to(device)
            prompts = ClassPrompts(encoder, ("", ""), count=self.context)
            context = nn.Parameter(prompts.first(torch.Generator().manual_seed(task.seed), each=True))
            whole = nn.ModuleDict({"part": part, "context": nn.ParameterList([context])})

            def loss(rows: Tensor) -> Tensor:
                maps = support.maps.only(rows, device=device)
                truth = label[rows].to(device), support.mask[rows].long().to(device)
                beside = None
                if candidates is not None:
                    chosen = drawn_normal(candidates, rows, shots=self.shots, generator=draws)
                    beside = part.levels(support.maps.only(chosen.flatten(), device=device))
                    beside = [level.unflatten(0, tuple(chosen.shape)).flatten(1, 2) for level in beside]
                found = part(maps, words, prompts.encode(context) if "textual" in self.parts else None, beside)
                apart = [*found.words, *(found.compared.judged if found.compared else ())]
                return torch.stack([anomaly_loss(one, *truth) for one in apart]).sum()

            optimizer = torch.optim.Adam(whole.parameters(), lr=self.lr, betas=(0.5, 0.999))
            course = Course(self.epochs, self.batch)
            selection = train(whole, optimizer, loss, pictures=len(support), course=course, seed=task.seed)
            with torch.no_grad():
                learned = prompts.encode(context)
        about = {"adapter": "adaptclip", "settings": self.model_dump(mode="json"), "selection": selection}
        stacked = torch.stack([words, learned]).cpu()
        return AnomalyClassifier(part.cpu().requires_grad_(False), stacked, names=tuple(task.names), about=about)


def _labels(support: DenseExamples) -> Int[Tensor, "n"]:
    """1 for anomalous pictures: as given, else those with an anomalous pixel."""
    label = (support.mask == 1).flatten(1).any(dim=1).long() if support.label is None else support.label
    if not 0 < int(label.sum()) < len(label):
        raise ValueError(
            f"{int(label.sum())} of {len(label)} pictures to learn from are anomalous; AdaptClip needs normal and "
            "anomalous ones"
        )
    return label


def _widths(maps: PatchMaps, *, hidden: bool) -> list[int]:
    own = [maps.patches.shape[-1]]
    return [*own, maps.hidden.shape[-1]] if hidden and maps.hidden is not None else own


def normal_of_group(support: DenseExamples, label: Int[Tensor, "n"]) -> list[list[int]]:
    """Of each picture the other normal pictures of its group; ValueError naming a group where one has none."""
    group = support.group or ("object",) * len(support)
    normal: dict[str, list[int]] = {}
    for row, name in enumerate(group):
        if not int(label[row]):
            normal.setdefault(name, []).append(row)
    found = [[other for other in normal.get(name, []) if other != row] for row, name in enumerate(group)]
    for row, others in enumerate(found):
        if not others:
            raise ValueError(
                f'no other normal picture of "{group[row]}" to compare one with: give more, a coarser group, or leave '
                "prompt_query out of `parts`"
            )
    return found


def drawn_normal(
    candidates: list[list[int]], rows: Int[Tensor, "b"], *, shots: int, generator: torch.Generator
) -> Int[Tensor, "b S"]:
    """`shots` of each picture's candidates; one comes again only where there are fewer."""
    made = []
    for row in rows.tolist():
        own = torch.tensor(candidates[row])
        order = own[torch.randperm(len(own), generator=generator)]
        made.append(order.repeat(-(-shots // len(order)))[:shots])
    return torch.stack(made)


class Found(NamedTuple):
    """What the parts say: of words (visual, textual), and of normal pictures."""

    words: list[Any]
    compared: Compared | None


class Adapters(nn.Module):
    """The learned parts but for the prompts' vectors. widths: of the joint space and, at two levels, of the hidden."""

    def __init__(self, settings: AdaptClip, widths: list[int]) -> None:
        super().__init__()
        self.settings, self.widths = settings, widths
        self.visual = VisualAdapter(widths[0], settings.reduction) if "visual" in settings.parts else None
        self.query = PromptQuery(widths, settings.middle) if "prompt_query" in settings.parts else None

    def levels(self, maps: PatchMaps) -> list[Tensor]:
        """Unit vectors that are compared with normal ones, one tensor a level."""
        if len(self.widths) == 1:
            return [maps.patches]
        if maps.hidden is None:
            raise ValueError("this classifier reads patches before the projection: PatchMaps.hidden is None")
        return [maps.patches, maps.hidden]

    def forward(
        self,
        maps: PatchMaps,
        words: Float[Tensor, "2 D"],
        learned: Float[Tensor, "2 D"] | None,
        normal: list[Tensor] | None,
    ) -> Found:
        """What every part says of the pictures; `normal` are levels of normal patches."""
        found, temperature = [], self.settings.temperature
        if self.visual is not None:
            image, patches = self.visual(maps)
            found.append(judged(maps, image, patches, words, temperature=temperature))
        if learned is not None:
            found.append(judged(maps, maps.image, maps.patches, learned, temperature=temperature))
        if self.query is None or normal is None:
            return Found(found, None)
        return Found(found, self.query(self.levels(maps), normal, maps.grid))


class Anomalies(NamedTuple):
    """How anomalous pictures [B] and their places [B, h, w] are, 0 to 1 without normal pictures and at most 2 with."""

    image: Tensor
    places: Tensor


class AnomalyClassifier:
    """What AdaptCLIP learned. words: [2, 2, D], the frozen (normal, anomalous) and the learned ones."""

    needs = "patches"

    def __init__(
        self, part: Adapters, words: Float[Tensor, "2 2 D"], *, names: tuple[str, ...], about: Mapping[str, Any]
    ) -> None:
        self.part, self.words, self.names, self.about = part.eval(), words, tuple(names), dict(about)

    @property
    def compares(self) -> bool:
        """Whether normal pictures are of use."""
        return self.part.query is not None

    @torch.no_grad()
    def __call__(self, maps: PatchMaps, normal: PatchMaps | None = None) -> Anomalies:
        """Scores of pictures and places; `normal`: normal pictures of the same object, however many."""
        settings, device = self.part.settings, maps.patches.device
        if normal is not None and not self.compares:
            raise ValueError("normal pictures are looked at by the prompt_query part, which this classifier has not")
        part, (words, learned) = self.part.to(device), self.words.to(device)
        beside = None if normal is None else [level.flatten(0, 1).to(device) for level in part.levels(normal)]
        found = part(maps, words, learned if "textual" in settings.parts else None, beside)
        apart = found.compared
        if not found.words and apart is None:
            raise ValueError("prompt_query alone needs normal pictures to compare with: give `normal`")
        whole = [one.image.softmax(dim=1)[:, 1] for one in found.words]
        places = [one.places[:, 1] for one in found.words]
        if apart is not None:
            whole.append(arithmetic([one.image.softmax(dim=1)[:, 1] for one in apart.judged]))
            places.append(arithmetic(of_one_size([one.places[:, 1] for one in apart.judged])))
        fuse: Callable[[list[Tensor]], Tensor] = arithmetic if settings.fuse == "arithmetic" else harmonic
        fused = fuse(of_one_size(places))
        if apart is None:
            return Anomalies(fuse([*whole, fused.flatten(1).amax(dim=1)]), fused)
        fused = harmonic(of_one_size([fused, harmonic(of_one_size([far[:, 0] for far in apart.apart]))]))
        return Anomalies(harmonic([fuse(whole), fused.flatten(1).amax(dim=1)]), fused)

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        tensors = {f"part.{name}": value.cpu() for name, value in self.part.state_dict().items()}
        facts = {"kind": "anomalies", "names": self.names, "widths": self.part.widths, "about": self.about}
        archive.write(folder, {**tensors, "words": self.words}, facts)

    @classmethod
    def load(cls, folder: Path) -> AnomalyClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        tensors, facts = archive.read(folder, kind="anomalies", tensors=("words",))
        words = tensors.pop("words")
        part = Adapters(AdaptClip.model_validate(facts["about"]["settings"]), facts["widths"])
        part.load_state_dict({name.removeprefix("part."): value for name, value in tensors.items()})
        return cls(part.requires_grad_(False), words, names=tuple(facts["names"]), about=facts["about"])
