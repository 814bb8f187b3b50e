"""Fuzz targets: what reads files of others answers, or says what is wrong in its own words; nothing else ever comes.

`python -m tests.faults.fuzz --minutes 10 [WORD]` runs the targets with WORD in their name, each its share of the time,
and prints how many examples it saw. `test_fuzz.py` runs a few hundred of each.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.tars import npz, picture, samples
from vlp import config
from vlp.adapters import saved
from vlp.adapters.classifier import LinearClassifier
from vlp.data import index, index_format
from vlp.data.decode import Limits, decode
from vlp.data.reader import MemberReader
from vlp.data.schema import DataError, parse_manifest
from vlp.data.tarwalk import TarDamageError, walk
from vlp.data.urls import resolve
from vlp.run import Run
from vlp.text.captions import is_blank, main_script, sentences
from vlp.text.clip_bpe import ClipBPE
from vlp.text.templates import fill, read_names, read_templates
from vlp.tune.arrays import Arrays
from vlp.types import BadSampleError

SECONDS = 2.0  # of CPU that no example may take
CONFIGS = Path(__file__).parents[2] / "configs" / "train"
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {}


class Edit(NamedTuple):
    """One change of some bytes: what, where (0 to 1), and with what."""

    kind: str
    place: float
    payload: bytes
    length: int


KINDS = ("flip", "put", "insert", "cut", "zeros", "end", "twice", "digits")
PAYLOADS = st.binary(max_size=24) | st.sampled_from(
    [b"\0" * 512, b"\xff" * 12, b"77777777777", b"-1", b"\x80" + b"\xff" * 11]
)
EDITS = st.lists(
    st.builds(Edit, st.sampled_from(KINDS), st.floats(0, 1), PAYLOADS, st.integers(0, 2000)), min_size=1, max_size=6
)


def must_say(error: Exception, word: str) -> None:
    """A fault names what it is about."""
    if word not in str(error):
        raise AssertionError(f"{word!r} is not in {error!r}") from error


def edited(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The bytes after all edits."""
    raw = bytearray(data)
    for kind, place, payload, length in edits:
        at = min(int(place * len(raw)), max(len(raw) - 1, 0))
        if kind == "flip" and raw:
            raw[at] ^= 1 << length % 8
        elif kind == "put":
            raw[at : at + len(payload)] = payload
        elif kind == "insert":
            raw[at:at] = payload
        elif kind == "cut":
            del raw[at : at + length]
        elif kind == "zeros":
            block = at // 512 * 512
            raw[block : block + 512 * (1 + length % 3)] = bytes(512 * (1 + length % 3))
        elif kind == "end":
            del raw[at:]
        elif kind == "twice":
            raw += raw[at // 512 * 512 :]
        elif kind == "digits":
            block = at // 512 * 512
            raw[block + 124 : block + 124 + len(payload[:12])] = payload[:12]
            _checksum(raw, block)
    return bytes(raw[: 1 << 20])


def _checksum(raw: bytearray, block: int) -> None:
    """Makes a header that was changed whole again, so that what it says is believed."""
    header = bytes(raw[block : block + 512])
    if len(header) == 512:
        total = sum(header) - sum(header[148:156]) + 8 * 32
        raw[block + 148 : block + 156] = b"%06o\0 " % total


def target(strategy: st.SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Enters a check under its name."""

    def enter(check: Callable[[Any], None]) -> Callable[[Any], None]:
        TARGETS[check.__name__] = strategy, check
        return check

    return enter


@lru_cache(maxsize=1)
def tars() -> tuple[bytes, ...]:
    """Good tars of each format, with names of all lengths."""
    made = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
            long = [] if format == tarfile.USTAR_FORMAT else [("l" * 150 + ".txt", b"long"), ("\u4e2d.txt", b"han")]
            for name, content in [*samples(0, 4), *long]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        made.append(stream.getvalue())
    return tuple(made)


@target(st.tuples(st.integers(0, 2), EDITS) | st.binary(max_size=3000))
def tar(given_: Any) -> None:
    """A damage with its byte, or an index whose every member can be read and that tarfile has no more members than."""
    data = given_ if isinstance(given_, bytes) else edited(tars()[given_[0]], given_[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        built = index.build(path)
        if built.damage is not None:
            assert 0 <= built.damage.byte <= len(data), built.damage
            assert built.damage.reason
            assert built.damage.detail
        reader = MemberReader()
        for number, key in enumerate(built.keys()):
            assert key == built.key(number)
            places = built.members(number)
            assert {name: len(part) for name, part in reader.read(path, places).items()} == {
                name: place.size for name, place in places.items()
            }
        reader.close()
        index.write(path, built)
        assert list(index.read(path).keys()) == list(built.keys())
        if built.damage is None:
            assert sum(1 for _ in walk(path)) >= _members(path)


def _members(path: Path) -> int:
    try:
        with tarfile.open(path) as found:
            return len(found.getmembers())
    except (tarfile.TarError, ValueError, OSError, EOFError, MemoryError, TarDamageError):
        return 0


@target(st.tuples(EDITS, st.booleans(), st.booleans()))
def side_index(given_: Any) -> None:
    """DataError, or an index that lies in its tar; also where the checksum was made to fit."""
    edits, inside, _ = given_
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(tars()[0])
        raw = index.write(path, index.build(path)).read_bytes()
        if inside:  # past the checksum: the arrays themselves
            line, _, body = raw[len(index_format.MAGIC) :].partition(b"\n")
            body = zlib.compress(edited(zlib.decompress(body), edits))
            head = json.loads(line) | {"crc32": zlib.crc32(body)}
            raw = index_format.MAGIC + json.dumps(head).encode() + b"\n" + body
        else:
            raw = edited(raw, edits)
        index.index_path(path).write_bytes(raw)
        try:
            found = index.read(path)
        except DataError as error:
            must_say(error, "a.tar.index")
            return
        for number in range(len(found)):
            found.key(number)
            for place in found.members(number).values():
                assert 0 <= place.offset <= place.offset + place.size <= len(tars()[0])


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MANIFEST = {"schema": 1, "name": "x", "shards": [{"file": "a.tar", "samples": 3, "bytes": 10240, "sha256": "0" * 64}]}


@target(st.tuples(EDITS, st.none()) | TREES.map(lambda tree: ((), tree)))
def manifest(given_: Any) -> None:
    """DataError naming the file, or a manifest whose shards lie in their folder."""
    edits, tree = given_
    text = (
        json.dumps(tree).encode("utf-8", "surrogatepass") if not edits else edited(json.dumps(MANIFEST).encode(), edits)
    )
    try:
        found = parse_manifest(text, where="here/dataset.json")
    except DataError as error:
        must_say(error, "here/dataset.json: ")
        return
    assert all(Path(shard.file).name == shard.file for shard in found.shards)


YAML = st.text(alphabet=st.sampled_from("ab01:-[]{},&*!|>'\"%@`?#~\n \t.eé\u2028\x00\ud800<="), max_size=60)


@lru_cache(maxsize=1)
def real_configs() -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in sorted(CONFIGS.glob("*.yaml")))


@target(YAML | st.text(max_size=80) | st.tuples(st.integers(0, 10**6), EDITS))
def yaml_text(given_: Any) -> None:
    """ConfigError naming the file, or a plain value."""
    if isinstance(given_, tuple):
        real = real_configs()[given_[0] % len(real_configs())].encode()
        given_ = edited(real, given_[1]).decode("utf-8", "replace")
    try:
        value = config.parse_yaml(given_, where="x.yaml")
        if isinstance(value, dict):
            config.validate(Run, value, where="x.yaml")
    except config.ConfigError as error:
        must_say(error, "x.yaml: ")


@target(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), TREES, YAML))
def config_tree(given_: Any) -> None:
    """A real configuration with one value changed: ConfigError with a dotted path, or a run."""
    number, place, value, text = given_
    values = config.parse_yaml(real_configs()[number % len(real_configs())])
    spots = list(_spots(values))
    holder, key = spots[place % len(spots)]
    holder[key] = value
    for word, act in (
        ("x.yaml: ", lambda: config.validate(Run, values, where="x.yaml")),
        ("override", lambda: config.apply_overrides({"a": [{"b": 1}]}, [text])),
        ("override a.0.b: ", lambda: config.apply_overrides({"a": [{"b": 1}]}, [f"a.0.b={text}"])),
    ):
        try:
            act()
        except config.ConfigError as error:
            must_say(error, word)


def _spots(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _spots(inner)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
    | st.from_regex(r"[-+]?[0-9]{1,3}([.e_:][-+]?[0-9]{1,3})?", fullmatch=True),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@target(PLAIN)
def yaml_there_and_back(value: Any) -> None:
    """What is written is read again: strings stay strings, numbers numbers."""
    again = config.parse_yaml(config.to_yaml({"k": value}))["k"]
    assert repr(again) == repr(value)


@target(st.text(max_size=60) | st.binary(max_size=60))
def templates(given_: Any) -> None:
    """ValueError naming the file, or templates that hold nothing but their slot."""
    raw = given_ if isinstance(given_, bytes) else given_.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        for name, read in (("t.txt", read_templates), ("t.json", read_templates), ("n.txt", read_names)):
            (Path(folder) / name).write_bytes(raw)
            try:
                found = read(Path(folder) / name)
            except ValueError as error:
                must_say(error, name)
                continue
            assert all(found)
            if read is read_templates:
                filled = [fill(one, "{x.__class__}") for one in found]
                assert all("{x.__class__}" in one and one.count("{") == one.count("{x.__class__}") for one in filled)


PIECES = [
    "&",
    "amp;",
    "&#",
    "&#x1F600;",
    "&lt",
    "\u0301",
    "\u202e",
    "\x00",
    "\ud83d",
    "Ã©",
    "<start_of_text>",
    "'s",
    "\u4e2d",
    "\u200d",
    "\ufeff",
    "ﷺ",
]
TEXTS = st.text(max_size=60) | st.tuples(st.lists(st.sampled_from(PIECES), max_size=6), st.integers(1, 400)).map(
    lambda given_: "".join(given_[0]) * given_[1]
)


@lru_cache(maxsize=1)
def tokenizers() -> tuple[Any, Any, Any]:
    from open_clip.tokenizer import SimpleTokenizer

    return ClipBPE().build(), ClipBPE(clean="canonicalize").build(), SimpleTokenizer()


@target(TEXTS)
def caption(text: str) -> None:
    """Ids in range, start and end in place, those of open_clip where the text is not cut before it is cleaned."""
    ours, canonical, theirs = tokenizers()
    for tokenizer in (ours, canonical):
        (ids,) = tokenizer.encode([text])
        assert 2 <= len(ids) <= 77
        assert (ids[0], ids[-1]) == (tokenizer.start, tokenizer.end)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    if len(text.encode("utf-8", "surrogatepass")) <= 1000:
        assert ours([text])[0].tolist() == theirs([text])[0].tolist()
    assert all(not is_blank(part) for part in sentences(text))
    assert main_script(text)


@lru_cache(maxsize=1)
def adapter_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        LinearClassifier(torch.eye(3), names=("a", "b", "c")).save(folder)
        about = {"schema": 1, "kind": "linear_classifier", "weights_hash": None}
        (folder / "adapter.json").write_text(json.dumps(about), encoding="utf-8")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@target(st.tuples(st.integers(0, 2), EDITS) | st.tuples(st.integers(0, 2), TREES))
def adapter(given_: Any) -> None:
    """ValueError naming the folder, or a classifier."""
    number, change = given_
    with tempfile.TemporaryDirectory() as name:
        for place, (file, content) in enumerate(sorted(adapter_files().items())):
            if place == number:
                edits = isinstance(change, list) and change and isinstance(change[0], Edit)
                content = edited(content, change) if edits else json.dumps(change).encode()
            (Path(name) / file).write_bytes(content)
        try:
            found = saved.load(Path(name))
        except ValueError as error:
            must_say(error, name)
            return
        assert len(found.names) == len(found.weight)


@target(EDITS)
def arrays(edits: list[Edit]) -> None:
    """ValueError naming the file, or arrays."""
    good = npz(image=np.ones((4, 3), np.float32), names=np.array(["a", "b"]), label=np.arange(4))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.npz"
        path.write_bytes(edited(good, edits))
        try:
            opened = Arrays(path)
            for array in opened.names:
                opened.array(array)
        except ValueError as error:
            must_say(error, "x.npz")


@lru_cache(maxsize=1)
def pictures() -> tuple[bytes, ...]:
    image, made = Image.open(io.BytesIO(picture(1))), [picture(1)]
    for format, more in (("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {}), ("BMP", {})):
        stream = io.BytesIO()
        image.save(stream, format, **more)
        made.append(stream.getvalue())
    return tuple(made)


@target(st.tuples(st.integers(0, 5), EDITS) | st.binary(max_size=100))
def pixels(given_: Any) -> None:
    """BadSampleError with a reason, or a picture within the limits."""
    data = given_ if isinstance(given_, bytes) else edited(pictures()[given_[0]], given_[1])
    try:
        found = decode(data, Limits(max_pixels=1_000_000))
    except BadSampleError as error:
        must_say(error, f"{error.reason}: ")
        return
    assert found.dtype == torch.uint8
    assert found.shape[0] == 3
    assert found.shape[1] * found.shape[2] <= 1_000_000


URL = st.text(alphabet=st.sampled_from("ab{},.0123:/*?[]~-@%\\\0é"), max_size=30)


@target(URL | URL.map(lambda rest: f"file://{rest}") | st.text(max_size=30))
def urls(text: str) -> None:
    """DataError, or shards that are there."""
    try:
        found = resolve(text)
    except DataError as error:
        must_say(error, " ")
        return
    assert all(Path(url.partition("://")[2] or url).exists() for url in found)


def run(name: str, *, examples: int, number: int = 0) -> int:
    """How many examples a target saw; its first failure is raised, made as small as it can be."""
    strategy, check = TARGETS[name]
    count = 0

    def counted(value: Any) -> None:
        nonlocal count
        count += 1
        start = time.process_time()
        check(value)
        assert time.process_time() - start < SECONDS, "too slow"

    fuzzed = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )(seed(number)(given(strategy)(counted)))
    fuzzed()
    return count


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--minutes", type=float, default=10.0)
    words.add_argument("word", nargs="?", default="")
    asked = words.parse_args()
    names = [name for name in TARGETS if asked.word in name]
    for name in names:
        until, total, number = time.monotonic() + 60 * asked.minutes / len(names), 0, 0
        while time.monotonic() < until:
            number += 1
            try:
                total += run(name, examples=500, number=number)
            except BaseException:
                print(f"{name}: FAILED after {total} examples, seed {number}", flush=True)
                traceback.print_exc(limit=-3)
                break
        else:
            print(f"{name}: {total} examples", flush=True)


if __name__ == "__main__":
    main()
