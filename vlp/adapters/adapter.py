"""What every adapter is: settings, what it needs to be given, and `fit`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.task import Examples, Task
from vlp.registry import Part
from vlp.text.templates import fill

if TYPE_CHECKING:
    from vlp.adapters.provenance import Provenance

Level = Literal["features", "text", "towers"]
Given = Literal["support", "validation", "unlabelled", "query"]


class Adapter(Part):
    """`fit(encoder, task) -> Classifier`. The model is the same bit for bit afterwards.

    level: what it runs. "features": nothing but stored features; "text": also the text tower, over learned inputs;
    "towers": also the image tower, over pictures. wants: what of the task it cannot do without. takes: what else it
    learns from where it is given; of labelled pictures it is handed no others. transductive: sees the measured
    pictures, without labels, while it is fitted. by_seed: what it gives depends on the task's seed, though it learns
    from no pictures. leaky: chooses by test labels, as the published code does.
    """

    level: ClassVar[Level] = "features"
    wants: ClassVar[tuple[Given, ...]] = ()
    takes: ClassVar[tuple[Given, ...]] = ()
    views: ClassVar[int] = 0  # augmented copies of each support picture whose features it asks for
    transductive: ClassVar[bool] = False
    by_seed: ClassVar[bool] = False

    @property
    def leaky(self) -> bool:
        return getattr(self, "protocol", "honest") == "paper"

    def provenance(self) -> tuple[Provenance, ...]:
        """What the classifiers were fitted to that it starts from, for records; () where it fits all of it here."""
        return ()

    def fit(self, encoder: Any, task: Task) -> Any:
        """A classifier over all names of the task."""
        raise NotImplementedError

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> Any:
        """A classifier over the names of `task`, other classes than those that `classifier` was fitted to.

        What was learned is applied to them, and nothing is learned: `task` holds words, and `query` for a transductive
        adapter. An adapter that learns from no pictures is fitted to the names; others say how, or refuse here.
        """
        if self.wants or self.transductive:
            name = type(self).__name__
            raise NotImplementedError(f"{name} learns weights of its own classes only, so there are none of other ones")
        return self.fit(encoder, task)

    def given(self, task: Task, what: Given) -> Examples:
        """That part of the task; ValueError saying who needs it and where it comes from."""
        found: Examples | None = getattr(task, what)
        if found is None or not len(found):
            name = type(self).__name__
            remedy = {
                "support": "labelled pictures to learn from: give `train` and a number of shots (--shots)",
                "validation": "labelled pictures that are not learned from, to choose on: give `val`",
                "unlabelled": "pictures without labels to learn from: give `unlabeled`, or fewer shots than train has",
                "query": "the measured pictures without labels: it is transductive, so fit it in a run that measures",
            }[what]
            raise ValueError(f"{name} needs {remedy}")
        return found


def inside(part: Part) -> Iterator[Adapter]:
    """The adapter and every one that its fields hold."""
    if isinstance(part, Adapter):
        yield part
    for name in type(part).model_fields:
        value = getattr(part, name, None)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Part):
                yield from inside(one)


def class_features(encoder: Any, task: Task) -> Float[Tensor, "C M D"]:
    """Unit-norm text features of every prompt of every class: the task's own, else its templates' by the text tower."""
    if task.text is not None:
        return task.text
    prompts = [fill(template, name) for name in task.names for template in task.templates]
    features: Tensor = encoder.texts(prompts)
    found: Tensor = features.unflatten(0, (len(task.names), len(task.templates)))
    return found


def class_weights(encoder: Any, task: Task) -> Float[Tensor, "C D"]:
    """The zero-shot weight of every class: the normalised mean of its prompts' features (2103.00020, section 3.1.4)."""
    found: Tensor = normalize(class_features(encoder, task).mean(dim=1), dim=-1)
    return found
