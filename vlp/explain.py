"""Which patches of a picture a model relates to which words of a caption."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlp.embed import Encoder, reducer
from vlp.pictures import Picture, read_picture
from vlp.text.words import words
from vlp.token_scores import token_scores


class AlignedWord(NamedTuple):
    """A word, what it adds to the similarity of text to image, and where: the mean over its tokens."""

    text: str
    special: bool  # marks the start or the end of the text; models count it as a token
    score: float  # mean over its tokens of the cosine with the best patch
    map: Tensor  # [P], mean over its tokens of the cosine with each patch


class Alignment(NamedTuple):
    """Patches of one picture against the words of one caption, in the joint space. P patches in a grid, row by row."""

    text: str
    words: list[AlignedWord]
    phrase: Tensor  # [P], cosine of each patch with the pooled text
    best: Tensor  # long [P], number of the word with the token that fits each patch best
    grid: tuple[int, int]  # rows, columns
    cosine: float  # of the pooled features
    image_to_text: float  # mean over image tokens of the best text token
    text_to_image: float  # mean over text tokens of the best image token
    reduced: int | None  # image tokens of the two numbers above, where a head of the model makes them of the patches
    picture: Tensor  # uint8 [3, H, W], as the model sees it

    def to_json(self) -> dict[str, Any]:
        """The numbers, rounded to four places, without the picture."""
        rounded = lambda x: [round(v, 4) for v in x.tolist()]  # noqa: E731
        return {
            "text": self.text,
            "words": [
                {"text": w.text, "special": w.special, "score": round(w.score, 4), "map": rounded(w.map)}
                for w in self.words
            ],
            "phrase": rounded(self.phrase),
            "best": self.best.tolist(),
            "grid": list(self.grid),
            "cosine": round(self.cosine, 4),
            "image_to_text": round(self.image_to_text, 4),
            "text_to_image": round(self.text_to_image, 4),
            "reduced": self.reduced,
        }


def align(encoder: Encoder, picture: Picture, text: str) -> Alignment:
    """The alignment of one picture and one text; BadSampleError for a picture that cannot be read.

    The maps show the patches themselves, also of a model that compares fewer tokens made of them.
    """
    pixels = encoder.dual.transform(read_picture(picture))
    image, texts = encoder.image_tokens([_pil(pixels)], reduce=False), encoder.text_tokens([text])
    patches, tokens, real = image.tokens[0].float(), texts.tokens[0].float(), int(texts.mask[0].sum())
    ids = encoder.dual.tokenizer.encode([text])[0]
    if real < len(ids):  # a prefix took the place of the last words
        ids = [*ids[: real - 1], ids[-1]]
    cosines = tokens[:real] @ patches.T
    found = words(encoder.dual.tokenizer, text, ids)
    owner = torch.tensor([number for number, word in enumerate(found) for _ in range(word.start, word.stop)])
    compared = encoder.image_tokens([_pil(pixels)]) if reducer(encoder.dual) is not None else image
    late = {
        way: float(token_scores(compared.tokens, texts.tokens, texts.mask, want=way, device=encoder.device))
        for way in ("rows", "columns")
    }
    return Alignment(
        text=text,
        words=[
            AlignedWord(w.text, w.special, float(part.amax(dim=1).mean()), part.mean(dim=0))
            for w in found
            for part in [cosines[w.start : w.stop]]
        ],
        phrase=patches @ texts.features[0],
        best=owner[cosines.argmax(dim=0)],
        grid=_grid(len(patches), encoder.dual.transform.size),
        cosine=float(image.features[0] @ texts.features[0]),
        image_to_text=late["rows"],
        text_to_image=late["columns"],
        reduced=None if compared is image else compared.tokens.shape[1],
        picture=pixels,
    )


def _pil(pixels: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _grid(patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches that are as square as they can be on a picture of this height and width."""
    height, width = size
    squareness = lambda rows: abs(math.log(height / rows) - math.log(width * rows / patches))  # noqa: E731
    rows = min((rows for rows in range(1, patches + 1) if patches % rows == 0), key=squareness)
    return rows, patches // rows
