"""A model that knows colours without training, and shards of coloured pictures: every number is known beforehand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from data_tools.write import Record, ShardWriter
from vlp.data.transforms import Preprocess

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "white": (255,) * 3}
WORDS = ["<end>", *COLOURS]


class WordTokenizer:
    """Ids of colour words; every text ends with id 0."""

    context, vocab_size, pad, fingerprint = 16, len(WORDS), 0, "words"

    def encode(self, texts):
        return [[*(WORDS.index(w) for w in text.replace(".", "").split() if w in WORDS), 0][-16:] for text in texts]


class ColourDual(nn.Module):
    """Feature of a picture: its mean colour; of a text: the mean colour of its words."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([10.0]).log())
        self.dropout = nn.Dropout(0.5)
        table = torch.tensor([(0, 0, 0), *COLOURS.values()]).float() / 255 + 0.01
        table[0] = 0.0
        self.register_buffer("table", table)
        self.tokenizer = WordTokenizer()
        self.transform = Preprocess(size=8)
        self.trims = True
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def encode_image(self, image: Tensor) -> Tensor:
        assert image.dtype == torch.uint8
        self.calls.append(("image", tuple(image.shape)))
        return self.dropout(image.float().mean(dim=(2, 3)) / 255 + 0.01)

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append(("text", tuple(ids.shape)))
        return self.dropout((self.table[ids] * mask[..., None]).sum(dim=1) + 1e-3)


def jpeg(colour: str, *, size: int = 12) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def write_shard(path: Path, members: list[dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path) as writer:
        for number, sample in enumerate(members):
            writer.write(Record(f"s{number:07d}", sample))
    return path


def colour_shard(path: Path, *, per_colour: int = 2, broken: int = 0) -> Path:
    """`per_colour` pictures of each colour with caption, class index and class name; then `broken` unreadable ones."""
    samples = []
    for number, colour in enumerate([c for c in COLOURS for _ in range(per_colour)]):
        label = list(COLOURS).index(colour)
        facts = {
            "caption": f"picture {number} is {colour}",
            "captions": [f"{colour} a", f"{colour} b"],
            "class": colour,
        }
        samples.append({"jpg": jpeg(colour), "json": json.dumps(facts).encode(), "cls": str(label).encode()})
    samples += [{**samples[0], "jpg": jpeg("red")[:-200]} for _ in range(broken)]
    return write_shard(path, samples)
