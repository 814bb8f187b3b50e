"""What an adapter of pixels is given: words, and pictures with masks as a frozen tower sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.adapter import class_weights
from vlp.adapters.task import Task
from vlp.registry import Part, Table

IGNORED = -1  # the class of pixels that count nowhere

DENSE_ADAPTERS = Table(
    "dense adapter",
    {
        "zeroshot_mask": "vlp.adapters.linear_patches:ZeroShotMask",
        "linear_patches": "vlp.adapters.linear_patches:LinearPatches",
        "denseclip": "vlp.adapters.denseclip:DenseClip",
        "adaptclip": "vlp.adapters.adaptclip:AdaptClip",
        "detpro": "vlp.adapters.detpro:DetPro",
    },
)


@dataclass(frozen=True)
class PatchMaps:
    """What a frozen tower makes of n pictures of one size; may be kept in half precision.

    image: unit features [n, D] of whole pictures. patches: unit vectors [n, P, D] that words can be compared with, row
    by row of `grid`. hidden: unit vectors [n, P, W] of the same patches before the projection, None if not asked for.
    """

    image: Float[Tensor, "n D"]
    patches: Float[Tensor, "n P D"]
    grid: tuple[int, int]
    hidden: Float[Tensor, "n P W"] | None = None

    def __post_init__(self) -> None:
        if self.grid[0] * self.grid[1] != self.patches.shape[1]:
            raise ValueError(f"{self.patches.shape[1]} patches do not fill a grid of {self.grid[0]} x {self.grid[1]}")
        for what, own in (("whole pictures", self.image), ("hidden patches", self.hidden)):
            if own is not None and len(own) != len(self.patches):
                raise ValueError(f"features of {len(own)} {what} for patches of {len(self.patches)} pictures")

    def __len__(self) -> int:
        return len(self.patches)

    def only(self, rows: Sequence[int] | Int[Tensor, "m"], *, device: torch.device | str | None = None) -> PatchMaps:
        """These pictures in this order, in fp32."""
        chosen = torch.as_tensor(rows, dtype=torch.long)
        image, patches, hidden = (
            None if own is None else own[chosen].to(device=device, dtype=torch.float32)
            for own in (self.image, self.patches, self.hidden)
        )
        assert image is not None
        assert patches is not None
        return PatchMaps(image, patches, self.grid, hidden)

    def as_map(self, vectors: Float[Tensor, "n P W"]) -> Float[Tensor, "n W h w"]:
        """Vectors of these patches (scores, too) where they stand."""
        found: Tensor = vectors.transpose(1, 2).unflatten(2, self.grid)
        return found


@dataclass(frozen=True)
class DenseExamples:
    """Pictures with true classes [n, H, W] of their pixels, `IGNORED` where these have none.

    label: class of each whole picture, where there is one. group: the kind of object that each picture shows, where
    pictures of one kind are compared. keys: what the data call each picture.
    """

    maps: PatchMaps
    mask: Int[Tensor, "n H W"]
    label: Int[Tensor, "n"] | None = None
    group: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = {"masks": self.mask, "labels": self.label, "groups": self.group or None, "keys": self.keys or None}
        for what, own in given.items():
            if own is not None and len(own) != len(self.maps):
                raise ValueError(f"{len(own)} {what} for {len(self.maps)} pictures")

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        return self.mask.shape[-2], self.mask.shape[-1]


@dataclass(frozen=True)
class DenseTask:
    """C classes of pixels, and pictures with masks to learn them from.

    templates: sentences with a slot for the name. text: class weights [C, D] in place of names in templates. support:
    pictures to learn from. validation: pictures to choose on; never those that are measured. seed: of all randomness.
    """

    names: Sequence[str]
    templates: Sequence[str] = ("{}",)
    text: Float[Tensor, "C D"] | None = field(default=None, compare=False)
    support: DenseExamples | None = field(default=None, compare=False)
    validation: DenseExamples | None = field(default=None, compare=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"pixels are told apart by at least 2 class names, got {list(self.names)}")
        if not self.templates:
            raise ValueError('pixels need at least one template, such as "a photo of a {}."')
        if self.text is not None and len(self.text) != len(self.names):
            raise ValueError(f"text features of {len(self.text)} classes for {len(self.names)} class names")
        for what in ("support", "validation"):
            given: DenseExamples | None = getattr(self, what)
            if given is None or not len(given):
                continue
            low, high = int(given.mask.min()), int(given.mask.max())
            if not IGNORED <= low <= high < len(self.names):
                raise ValueError(
                    f"masks of {what} have values {low} to {high}; classes are 0 to {len(self.names) - 1}, and "
                    f"{IGNORED} means ignored"
                )

    def weights(self, encoder: Any) -> Float[Tensor, "C D"]:
        """Zero-shot weights of the classes: the task's own, else of its names in its templates by the text tower."""
        return class_weights(encoder, Task(self.names, self.templates)) if self.text is None else self.text


class DenseAdapter(Part):
    """`fit(encoder, task)` -> a classifier of patches; the model is the same bit for bit afterwards.

    A classifier is callable on `PatchMaps`, has `names`, `about` and `needs = "patches"`, and can be saved. scores:
    what it scores: "pixels" [B, C, h, w]; "anomalies", pictures and pixels; "regions", crops that are given to it.
    hidden: whether it asks for patches before the projection as well.
    """

    scores: ClassVar[Literal["pixels", "anomalies", "regions"]] = "pixels"

    @property
    def hidden(self) -> bool:
        return False

    @property
    def variant(self) -> str:
        """What tells its results from those of the same adapter with other settings, where that is usual."""
        return ""

    @property
    def learns(self) -> bool:
        """Whether it cannot do without pictures with masks."""
        return True

    def fit(self, encoder: Any, task: Any) -> Any:
        """A classifier over all names of the task."""
        raise NotImplementedError

    def support(self, task: DenseTask) -> DenseExamples:
        """The pictures to learn from; ValueError saying who needs them."""
        found = task.support
        if found is None or not len(found):
            raise ValueError(f"{type(self).__name__} needs pictures with masks to learn from: give `train`")
        if self.hidden and found.maps.hidden is None:
            raise ValueError(f"{type(self).__name__} needs patches before the projection: PatchMaps.hidden is None")
        return found
