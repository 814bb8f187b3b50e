"""What benchmarks of an adapter have in common: words of the classes, the fitted classifier, logits in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart
from eval.data import located
from eval.heads import Head
from eval.prompts import Names, Templates, class_names, class_templates
from eval.view import View
from vlp.adapters import ADAPTERS
from vlp.adapters.task import Task, short_hash
from vlp.adapters.zeroshot import ZeroShot
from vlp.registry import Named
from vlp.report.variant import variant
from vlp.tune.fitting import provenance

AdapterPart = Annotated[Any, Named("vlp.adapters:ADAPTERS")]
Inputs = Callable[[Tensor], Any]  # what a classifier needs of the pictures of some rows
TOKEN_BATCH = 256  # pictures whose tokens are scored at once, since they take so much more room


class Fitted(NamedTuple):
    """A classifier of a task, and what it needs of pictures by their row."""

    task: Task
    classifier: Any
    inputs: Inputs

    @property
    def head(self) -> Head:
        """How its files end."""
        return "tokens" if getattr(self.classifier, "head", None) == "tokens" else "global"


class Adapted(BenchmarkPart):
    """`names`: the class names, in label order where labels are numbers, or a file with them. `templates`: a set's
    name, a file, or the templates. What is given here is used; only what is not given is taken from the data set's
    folder, and then `photo`. A picture whose label is none of the names is left out and counted.
    """

    label: str  # member or JSON field that says the class
    names: Names = None
    templates: Templates = None
    adapter: AdapterPart = ZeroShot()
    batch: int = Field(4096, ge=1)  # pictures scored at once
    n_boot: int = Field(1000, ge=1)

    def apart(self) -> tuple[object, ...]:
        return *super().apart(), *self.named_adapter.values()

    @property
    def named_adapter(self) -> dict[str, str | None]:
        changed = self.adapter.model_dump(mode="json", exclude_defaults=True)
        settings = short_hash([self.adapter.model_dump_json()]) if changed else None
        return {"adapter": ADAPTERS.name_of(type(self.adapter)), "adapter_hash": settings}

    def warnings(self, view: View) -> tuple[str, ...]:
        fitted = provenance(located(self.adapter, view.folders))
        saw = "the adapter was fitted with the pictures that it was first measured on, without labels (transductive)"
        leaked = "the adapter was chosen by labels of the pictures that it was first measured on (leaky)"
        said = {saw: any(one.transductive for one in fitted), leaked: any(one.leaky for one in fitted)}
        return tuple(text for text, so in said.items() if so)

    @property
    def variant(self) -> str:
        """What tells its files from those of other adapters; "" for zero-shot."""
        known = self.named_adapter
        return variant(known["adapter"], known["adapter_hash"])

    def stem(self, kind: str) -> str:
        """How files of this kind begin: those of several adapters lie in one folder."""
        return "-".join(filter(None, (kind, self.variant)))

    def fitted(self, view: View) -> Fitted:
        """The classifier; pictures are encoded here, before labels ask for them, so that tokens need no second pass."""
        task = Task(class_names(self.names, view), class_templates(self.templates, view))
        classifier = located(self.adapter, view.folders).fit(view.encoder, task)
        return Fitted(task, classifier, inputs_of(view, classifier))

    def logits(self, classifier: Any, inputs: Inputs, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits of some rows, a part at a time, each with its place among the rows."""
        step = min(self.batch, TOKEN_BATCH) if classifier.needs in ("tokens", "pictures") else self.batch
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield part, classifier(inputs(rows[part])).cpu()


def inputs_of(view: View, classifier: Any) -> Inputs:
    """What looks up features or tokens of the view's pictures, or reads them again for towers that were changed."""
    if classifier.needs == "pictures":
        return view.pixels
    found: Inputs = view.image_tokens().rows if classifier.needs == "tokens" else view.image.__getitem__
    return found
