"""Small files that want much, opened in a process whose CPU seconds and memory are counted for each of them.

`python -m tests.faults.bombs [WORD]` prints the table, or the rows with WORD in their name.
"""

from __future__ import annotations

import gc
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_SECONDS, MAX_MB = 1.0, 500.0
BOMBS: dict[str, tuple[Callable[[Path], Callable[[], object]], str]] = {}


class Seen(NamedTuple):
    """What a child said: the message or result, CPU seconds and MB above what its imports had taken."""

    said: str
    seconds: float
    mb: float


def bomb(name: str, says: str) -> Callable[[Callable[[Path], Callable[[], object]]], None]:
    """Enters a function that makes a file in a folder and returns what opens it; `says` is searched in the outcome."""

    def enter(make: Callable[[Path], Callable[[], object]]) -> None:
        BOMBS[name] = make, says

    return enter


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, extra: bytes = b"", rows: int | None = None) -> bytes:
    """A grey PNG of zeros."""
    packer, packed = zlib.compressobj(9), b""
    row = bytes(width + 1)
    for _ in range(height if rows is None else rows):
        packed += packer.compress(row)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", packed + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + data + chunk(b"IEND", b"")


def decoded(data: bytes) -> Callable[[], object]:
    from vlp.data.transforms import Preprocess

    transform = Preprocess(size=224)
    return lambda: tuple(transform(data).shape)


@bomb("pixels: PNG of 95 MP", "too_many_pixels.*10000x9500")
def _(folder: Path) -> Callable[[], object]:
    return decoded(png(10_000, 9_500))


@bomb("pixels: PNG of 4,000 MP", "too_many_pixels")
def _(folder: Path) -> Callable[[], object]:
    return decoded(png(2_000_000, 2_000, rows=1))


@bomb("aspect: 20000x1", "too_small|extreme_aspect")
def _(folder: Path) -> Callable[[], object]:
    return decoded(png(20_000, 1))


@bomb("aspect: 20000x40", "extreme_aspect")
def _(folder: Path) -> Callable[[], object]:
    return decoded(png(20_000, 40))


@bomb("text: PNG with 80 MB of zTXt", "not_image|truncated")
def _(folder: Path) -> Callable[[], object]:
    text = b"a\0\0" + zlib.compress(bytes(80 << 20), 9)
    return decoded(png(64, 64, extra=chunk(b"zTXt", text)))


@bomb("text: PNG with 200 chunks of 0.9 MB", "not_image|truncated|3, 224, 224")
def _(folder: Path) -> Callable[[], object]:
    text = b"a\0\0" + zlib.compress(bytes(900_000), 9)
    return decoded(png(64, 64, extra=chunk(b"zTXt", text) * 200))


@bomb("profile: PNG with an ICC profile of 200 MB", "not_image|3, 224, 224")
def _(folder: Path) -> Callable[[], object]:
    return decoded(png(64, 64, extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20), 9))))


@bomb("frames: GIF of 100,000", "3, 224, 224")
def _(folder: Path) -> Callable[[], object]:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("P", (64, 64)).save(stream, "GIF")
    data = stream.getvalue()
    start = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 64, 64))
    return decoded(data[:start] + data[start:-1] * 100_000 + b"\x3b")


@bomb("frames: WebP of 20,000", "3, 224, 224")
def _(folder: Path) -> Callable[[], object]:
    from PIL import Image

    stream = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in (0, 99)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    data = stream.getvalue()
    start = data.index(b"ANMF")
    size = 8 + struct.unpack("<I", data[start + 4 : start + 8])[0]
    body = data[8:start] + data[start : start + size] * 20_000
    return decoded(b"RIFF" + struct.pack("<I", len(body)) + body)


@bomb("size: JPEG that says 65500x65500", "too_many_pixels")
def _(folder: Path) -> Callable[[], object]:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    data = stream.getvalue()
    place = data.index(b"\xff\xc0") + 5
    return decoded(data[:place] + struct.pack(">HH", 65_500, 65_500) + data[place + 4 :])


@bomb("scans: JPEG of 36 MP with 2,000 of them", "too_many_scans")
def _(folder: Path) -> Callable[[], object]:
    return decoded(many_scans(6_000, 6_000, 2_000))


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive grey JPEG whose last scan, which says nothing new of any block, comes again and again."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (width, height), 128).save(stream, "JPEG", progressive=True, quality=75)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    table = data.rfind(b"\xff\xc4", 0, last)  # the Huffman table of this scan
    return data[:-2] + data[table:-2] * scans + data[-2:]


def caption(text: str, says: str = "ids") -> Callable[[], object]:
    from vlp.text.clip_bpe import ClipBPE

    tokenizer = ClipBPE().build()
    return lambda: f"{len(tokenizer.encode([text])[0])} ids"


for _bytes in (80_000, 1_000_000, 20_000_000):
    BOMBS[f"caption: nested entities, {_bytes:,} bytes"] = (
        lambda folder, n=_bytes: caption("&" + "amp;" * (n // 4) + "lt;"),
        "ids",
    )
BOMBS["caption: one word of 10 MB"] = lambda folder: caption("a" * 10_000_000), "ids"
BOMBS["caption: combining marks, 10 MB"] = lambda folder: caption("a" + "\u0301" * 5_000_000), "ids"
BOMBS["caption: mojibake of mojibake"] = lambda folder: caption("ÃƒÆ’Ã¢â‚¬Å¡Ãƒâ€šÃ‚Â" * 100_000), "ids"  # noqa: RUF001
BOMBS["caption: full stops, 1 MB"] = lambda folder: sentences_of(". A" * 300_000), "sentences"


def sentences_of(text: str) -> Callable[[], object]:
    from vlp.text.captions import cut_bytes, sentences

    return lambda: f"{len(sentences(cut_bytes(text, 8192)))} sentences"


def features(path: Path) -> Callable[[], object]:
    from vlp.tune.arrays import Arrays

    return lambda: Arrays(path).array("image").shape


def npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def packed(path: Path, name: str, pieces: Iterator[bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", force_zip64=True) as out:
        for piece in pieces:
            out.write(piece)
    return path


@bomb("zip: .npz of 1 GB in 1 MB", "unpack to")
def _(folder: Path) -> Callable[[], object]:
    shape = (1 << 27,)
    return features(packed(folder / "x.npz", "image.npy", iter([npy_header(shape), *[bytes(1 << 23)] * 128])))


@bomb("zip: .npy that says 10^12 numbers", "says float64")
def _(folder: Path) -> Callable[[], object]:
    return features(packed(folder / "x.npz", "image.npy", iter([npy_header((10**12,)), b"12345678"])))


@bomb("zip: .npy whose header says 4 GB", "damaged")
def _(folder: Path) -> Callable[[], object]:
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF)
    return features(packed(folder / "x.npz", "image.npy", iter([head, bytes(60 << 20)])))


@bomb("zip: .npz column of 1 GB in a shard", "bad_column")
def _(folder: Path) -> Callable[[], object]:
    from vlp.data.columns import Column
    from vlp.data.fields import Fields
    from vlp.types import Sample

    data = packed(folder / "x.npz", "image.npy", iter([npy_header((1 << 27,)), *[bytes(1 << 23)] * 128])).read_bytes()
    fields = Fields(Sample("k", {"x.npz": data}, "s", 0))
    return lambda: Column(field="x.npz:image", shape=(1,)).read(fields)


@bomb("zip: weights of 100 MB in 100 kB", "unpack to")
def _(folder: Path) -> Callable[[], object]:
    from tests.faults.payloads import torch_bomb
    from vlp.models.state import read_weights

    path = torch_bomb(folder / "x.pt")
    return lambda: read_weights(path)


@bomb("stride: weights that say 10^18 numbers", "has bytes for fewer")
def _(folder: Path) -> Callable[[], object]:
    import torch

    from vlp.models.state import read_weights

    torch.save({"w": torch.zeros(1).expand(10**9, 10**9)}, folder / "x.pt")
    return lambda: read_weights(folder / "x.pt")


@bomb("gzip: shard of 1 GB in 1 MB", "gzip-compressed")
def _(folder: Path) -> Callable[[], object]:
    import gzip

    from vlp.data import open_records

    (folder / "a.tar").write_bytes(gzip.compress(bytes(1 << 28), 9) * 4)
    return lambda: open_records(str(folder / "a.tar"))


@bomb("gzip: stream of 1 GB in 1 MB", "gzip-compressed")
def _(folder: Path) -> Callable[[], object]:
    import gzip

    from vlp.data.stream import Stream, WebDataset

    (folder / "a.tar").write_bytes(gzip.compress(bytes(1 << 28), 9) * 4)
    return Stream(WebDataset(urls=str(folder / "a.tar"), samples_per_epoch=1), seed=0).next


@bomb("gzip: vocabulary of 1 GB in 1 MB", "unpacks to more")
def _(folder: Path) -> Callable[[], object]:
    import gzip

    from vlp.text.clip_bpe import ClipBPE

    (folder / "v.gz").write_bytes(gzip.compress(b"a b\n" * (1 << 26), 9) * 4)
    return ClipBPE(path=str(folder / "v.gz")).build


@bomb("tar: a member of 10^15 bytes", "damaged at byte")
def _(folder: Path) -> Callable[[], object]:
    import tarfile

    from vlp.data import open_records

    info = tarfile.TarInfo("a.jpg")
    info.size = 10**15
    (folder / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return lambda: open_records(str(folder / "a.tar"))


@bomb("tar: stream with a name of 1 GB", "says 1000000000 bytes")
def _(folder: Path) -> Callable[[], object]:
    import tarfile

    from vlp.data.stream import Stream, WebDataset

    info = tarfile.TarInfo("././@LongLink")
    info.size, info.type = 10**9, tarfile.GNUTYPE_LONGNAME
    with (folder / "a.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(10**9 + 2048)
    return Stream(WebDataset(urls=str(folder / "a.tar"), samples_per_epoch=1), seed=0).next


@bomb("index: side index of 1 GB in 1 MB", "served|not a tar|damaged")
def _(folder: Path) -> Callable[[], object]:
    from tests.faults.payloads import pairs
    from vlp.data import index, index_format

    path = pairs(folder / "a.tar")
    packer = zlib.compressobj(9)
    whole = b"".join(packer.compress(bytes(1 << 23)) for _ in range(128)) + packer.flush()
    good = index.build(path)
    raw = index_format.dump(good)
    head = json.loads(raw[len(index_format.MAGIC) :].partition(b"\n")[0]) | {"crc32": zlib.crc32(whole)}
    index.index_path(path).write_bytes(index_format.MAGIC + json.dumps(head).encode() + b"\n" + whole)
    return lambda: f"{len(index.read_or_build(path))} served"


@bomb("yaml: aliases (billion laughs)", "aliases are not allowed")
def _(folder: Path) -> Callable[[], object]:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    return yaml_of("\n".join(lines))


BOMBS["yaml: nested 400,000 deep"] = lambda folder: yaml_of("[" * 400_000), "nested deeper"
BOMBS["yaml: 400,000 values"] = lambda folder: yaml_of("[" + "1," * 400_000 + "]"), "more than 20000 values"
BOMBS["yaml: a number of 900,000 digits"] = lambda folder: yaml_of("a: " + "9" * 900_000), "not YAML|digits"
BOMBS["yaml: 900,000 blanks and tabs"] = lambda folder: yaml_of("a:\n" + " " * 900_000 + "\t"), "not YAML|None|a"
BOMBS["yaml: a file of 1 GB"] = lambda folder: yaml_file(sparse(folder / "x.yaml")), "bytes; of a file of this kind"
BOMBS["yaml: 30,000 keys in one flow"] = (
    lambda folder: yaml_of("{" + "a: {" * 31 + "?," * 30_000),
    "more than|nested|twice",
)


def yaml_of(text: str) -> Callable[[], object]:
    from vlp.config import parse_yaml

    return lambda: str(parse_yaml(text))[:99]


def yaml_file(path: Path) -> Callable[[], object]:
    from vlp.config import read_yaml

    return lambda: read_yaml(path)


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return path


BOMBS["json: model folder nested 10^6 deep"] = lambda folder: model_json(folder, "[" * 10**6), "nested too deep"
BOMBS["json: sample nested 10^6 deep"] = lambda folder: sample_json(b"[" * 10**6), "bad_json"
BOMBS["json: sample of 50 MB of lists"] = (
    lambda folder: sample_json(b"[" + b"[]," * 17_000_000 + b"1]"),
    "bad_json",
)
BOMBS["json: sample of 50 MB of text"] = (
    lambda folder: sample_json(b'{"caption": "' + b"a" * 50_000_000 + b'"}'),
    "bad_json",
)


def model_json(folder: Path, text: str) -> Callable[[], object]:
    import vlp.api

    (folder / "open_clip_config.json").write_text(text)
    return lambda: vlp.api.load(folder)


def sample_json(raw: bytes) -> Callable[[], object]:
    from vlp.data.fields import Fields
    from vlp.types import Sample

    return lambda: str(Fields(Sample("k", {"json": raw}, "s", 0)).find("caption"))[:99]


@bomb("safetensors: header of 90 MB", "header of 90000000 bytes; 16777216 are read")
def _(folder: Path) -> Callable[[], object]:
    from vlp.models.state import read_weights

    entry = '"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]},'
    text = ("{" + "".join(entry % i for i in range(10**6))).encode().ljust(90_000_000)
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return lambda: read_weights(folder / "x.safetensors")


@bomb("safetensors: header that says 10^18 bytes", "not safetensors, or cut")
def _(folder: Path) -> Callable[[], object]:
    from vlp.models.state import read_weights

    (folder / "x.safetensors").write_bytes(struct.pack("<Q", 10**18) + b"{}" * 9)
    return lambda: read_weights(folder / "x.safetensors")


@bomb("templates: a file of 1 GB", "bytes; of a file of this kind")
def _(folder: Path) -> Callable[[], object]:
    from vlp.text.templates import read_templates

    path = sparse(folder / "t.txt")
    return lambda: read_templates(path)


@bomb("classes: 10^7 lines", "more than 1000000 lines")
def _(folder: Path) -> Callable[[], object]:
    from vlp.text.templates import read_names

    (folder / "c.txt").write_bytes(b"ab\n" * 10**7)
    return lambda: read_names(folder / "c.txt")


@bomb("classes: 900,000 empty lines", "and 899980 more")
def _(folder: Path) -> Callable[[], object]:
    from vlp.text.templates import read_names

    (folder / "c.txt").write_bytes(b" \n" * 900_000)
    return lambda: read_names(folder / "c.txt")


@bomb("urls: braces for 10^14 shards", "more than 1000000 shards")
def _(folder: Path) -> Callable[[], object]:
    from vlp.data.urls import resolve

    return lambda: resolve("{a..z}" * 10)


@bomb("urls: 50,000 braces inside each other", "shards|missing|no path|depth")
def _(folder: Path) -> Callable[[], object]:
    from vlp.data.urls import resolve

    return lambda: resolve("{" * 50_000 + "a,b" + "}" * 50_000)


def memory(field: str) -> float:
    """MB of this process: "VmRSS" now, "VmHWM" at its highest since `forget_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def open_here(name: str) -> Seen:
    """Makes one bomb, forgets what that took, and opens it."""
    with tempfile.TemporaryDirectory() as folder:
        opens = BOMBS[name][0](Path(folder))
        forget_peak()
        before, start = memory("VmRSS"), time.process_time()
        try:
            said = str(opens())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        seconds = time.process_time() - start
        return Seen(said[:2000], seconds, memory("VmHWM") - before)


def open_all(names: list[str]) -> Iterator[tuple[str, Seen]]:
    """What a process saw that opened these one after the other."""
    command = [sys.executable, "-m", "tests.faults.bombs", "--child", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for name, line in zip(names, process.stdout):
            yield name, Seen(*json.loads(line))


def main(words: list[str]) -> None:
    if words[:1] == ["--child"]:
        import vlp.data  # what is imported only when it is first needed is no bomb
        import vlp.models.pretrained
        import vlp.tune.arrays  # noqa: F401

        for name in words[1:]:
            print(json.dumps(open_here(name)), flush=True)
        return
    for name, seen in open_all([name for name in BOMBS if not words or words[0] in name]):
        print(f"{name:45} {seen.seconds:7.2f} s {seen.mb:7.0f} MB  {seen.said[:110]!r}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
