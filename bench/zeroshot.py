"""Class embeddings from prompts: ours, all prompts sorted by length at their natural length, beside open_clip's.

Theirs is open_clip's classifier builder one class at a time, every prompt padded to the context of 77. The names
are ImageNet's, the text tower that of vlp-tiny-112 with random weights. Embeddings are equal to 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_classifier import build_zero_shot_classifier_legacy
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from paired import Case, arguments, close, main, parse
from torch import Tensor

from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder
from vlp.models.model import Model
from vlp.models.state import to_open_clip
from vlp.text.templates import openai_imagenet, simple


def cases(sizes: list[tuple[int, Sequence[str]]]) -> Iterator[Case]:
    dual = Model(arch="vlp-tiny-112").build().eval()
    theirs = CLIP(**dual.config)
    theirs.load_state_dict(to_open_clip(dual))
    theirs.eval()
    encoder, tokenizer = Encoder(dual, quiet=True), SimpleTokenizer()

    def case(count: int, templates: Sequence[str]) -> Case:
        names = IMAGENET_CLASSNAMES[:: len(IMAGENET_CLASSNAMES) // count][:count]
        task = Task(names, templates)

        def run_ours() -> Tensor:
            return ZeroShot().fit(encoder, task).weight

        def run_theirs() -> Tensor:
            return build_zero_shot_classifier_legacy(theirs, tokenizer, names, templates).T

        prompts = [template.format(name) for name in names for template in templates]
        mean = sum(dual.tokenizer.lengths(prompts)) / len(prompts)
        title = f"{count} classes x {len(templates)} templates, mean {mean:.1f} tokens"
        return Case(title, run_ours, run_theirs, close(1e-5, relative=False))

    for count, templates in sizes:
        yield case(count, templates)


if __name__ == "__main__":
    options = parse(arguments(__doc__, rounds=5))
    quick = [(2, openai_imagenet()[:8]), (3, simple())]
    main(cases(quick if options.quick else [(4, openai_imagenet()), (40, simple())]), options)
