"""Files and settings made to run code or to reach what they should not: what a user sees, and that nothing ran.

The rows are those of docs/faults.md. Each makes its file, does what a user would do with it, and returns what was read
or raises what the user reads; `says` is searched in either.
"""

from __future__ import annotations

import gzip
import json
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vlp
from tests.data.test_feed import feed
from tests.faults import payloads
from tests.faults.payloads import MARKER, SHELL, SOURCE, pairs, pickled
from vlp import checkpoint, config
from vlp.adapters import saved
from vlp.data import open_records
from vlp.data.hub import HuggingFace
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError
from vlp.data.stream import Stream, WebDataset
from vlp.data.urls import resolve
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.models.teacher import Teacher
from vlp.run import Run
from vlp.search import Index, build_index, contact_sheet
from vlp.text.clip_bpe import ClipBPE
from vlp.text.huggingface import HuggingFace as HubTokenizer
from vlp.text.sentence_pieces import SentencePiece
from vlp.text.templates import fill, read_templates
from vlp.tune.folder import read_folder
from vlp.tune.record import read_hits
from vlp.types import BadSampleError

ROWS = {f"H{number}" for number in range(1, 22)}  # of docs/faults.md


class Attack(NamedTuple):
    """A row: its number, what is done in an empty folder, and what is then said."""

    row: str
    use: Callable[[Path], Any]
    says: str


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that a marker falls where it is looked for."""
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_payloads_do_run(elsewhere: Path) -> None:
    """Without this the table below would say nothing."""
    for load in (
        lambda: pickle.loads(pickled()),
        lambda: torch.load(payloads.torch_file(Path("x.pt")), weights_only=False),
    ):
        load()
        assert (elsewhere / MARKER).exists()
        (elsewhere / MARKER).unlink()


def served(folder: Path) -> str:
    """What a run makes of a folder of shards: the keys, and the extensions that were read."""
    batch = feed(folder, batch_size=2).batch(0)
    members = {name for sample in (open_records(str(folder))[i] for i in range(2)) for name in sample.members}
    return f"{int(batch.valid.sum())} served of {sorted(members)}, skips {[skip.reason for skip in batch.skips]}"


def pickle_members(folder: Path) -> str:
    pairs(folder / "a.tar", *((end, pickled()) for end in ("pyd", "pkl", "pickle", "pth", "pt")))
    return served(folder)


def streamed_pickles(folder: Path) -> str:
    path = pairs(folder / "a.tar", ("pyd", pickled()), ("pkl", pickled()))
    sample = Stream(WebDataset(urls=str(path), samples_per_epoch=4, shuffle=0), seed=0).next()
    return f"{sample.key}: {type(sample.members['pyd']).__name__}"


def objects(end: str, content: bytes, field: str) -> Callable[[Path], str]:
    def use(folder: Path) -> str:
        pairs(folder / "a.tar", (end, content), count=2)
        source = {"name": "shards", "urls": str(folder), "columns": {"x": {"field": field, "shape": [1]}}}
        return str([tuple(skip) for skip in feed([source], batch_size=2).batch(0).skips])

    return use


def model_folder(folder: Path) -> Path:
    pretrained.save(Model(arch="vlp-nano").build(), folder / "model")
    return folder / "model"


def weights_in_a_folder(folder: Path) -> Any:
    model = model_folder(folder)
    (model / "open_clip_model.safetensors").unlink()
    payloads.torch_file(model / "open_clip_pytorch_model.bin")
    return vlp.load(model)


def pickle_called_safetensors(folder: Path) -> Any:
    model = model_folder(folder)
    (model / "open_clip_model.safetensors").write_bytes(pickled())
    return vlp.load(model)


def torchscript(folder: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):  # torch's, that it is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script.pt")
    return vlp.load("vlp-nano", weights=folder / "script.pt")


def index_leads_out(folder: Path) -> Any:
    model = model_folder(folder)
    (model / "open_clip_model.safetensors").unlink()
    payloads.torch_file(folder / "out.bin")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../out.bin"}}', encoding="utf-8")
    return vlp.load(model)


def timm_loads_a_file(folder: Path) -> Any:
    model = model_folder(folder)
    payloads.torch_file(folder / "evil.pth")
    about = json.loads((model / "open_clip_config.json").read_text(encoding="utf-8"))
    about["model_cfg"]["vision_cfg"] |= {"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "none"}
    (model / "open_clip_config.json").write_text(json.dumps(about), encoding="utf-8")
    ours = {"timm": {"checkpoint_path": str(folder / "evil.pth")}}
    (model / "vlp.json").write_text(json.dumps(ours), encoding="utf-8")
    return vlp.load(model)


def text_tower(**hf: Any) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        named = hf or str(payloads.text_folder(folder / "evil"))
        return Model.model_validate({"arch": "vlp-nano", "text": {"hf": named}, "tokenizer": "clip_bpe"}).build()

    return use


def optimizer(folder: Path) -> Any:
    (folder / "optimizer.safetensors").write_bytes(pickled())
    return checkpoint.load_tensors(folder / "optimizer.safetensors")


def run_file(text: str, *overrides: str) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        (folder / "run.yaml").write_text(text, encoding="utf-8")
        return config.load(Run, folder / "run.yaml", overrides)

    return use


def shards(urls: str) -> Callable[[Path], Any]:
    return lambda folder: resolve(urls.replace("HERE", str(folder)))


def stream(urls: str) -> Callable[[Path], Any]:
    return lambda folder: Stream(WebDataset(urls=urls, samples_per_epoch=4), seed=0).next()


def manifest(file: str) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        entry = {"file": file, "samples": 1, "bytes": 1}
        (folder / "dataset.json").write_text(
            json.dumps({"schema": 1, "name": "x", "shards": [entry]}), encoding="utf-8"
        )
        return open_records(str(folder))

    return use


def table(cell: str) -> Callable[[Path], str]:
    def use(folder: Path) -> str:
        (folder / "t.csv").write_text(f'image,caption\n"{cell}",a\n', encoding="utf-8")
        try:
            return str(open_records({"name": "csv", "path": str(folder / "t.csv")})[0])
        except BadSampleError as error:
            return f"{error.reason}: {error}"

    return use


def templates(folder: Path) -> Any:
    (folder / "t.txt").write_text("a {}\n{0.__init__.__globals__}\n{c.__class__} {}\n", encoding="utf-8")
    return read_templates(folder / "t.txt")


def features(**arrays: Any) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        good = {"text": np.eye(2, 4), "names": np.array(["a", "b"])}
        np.savez(folder / "classes.npz", **good)
        for name in ("train", "test"):
            (folder / f"{name}.npz").write_bytes(payloads.objects_npz(label=np.zeros(1, dtype=int)))
        return read_folder(folder)

    return use


def hits(folder: Path) -> Any:
    (folder / "h.npz").write_bytes(payloads.objects_npz())
    return read_hits(folder / "h.npz", "image")


def adapter(kind: str, *, tensors: bool = False, **more: Any) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        about = {"schema": 1, "kind": kind, "weights_hash": None, **more}
        (folder / "adapter.json").write_text(json.dumps(about), encoding="utf-8")
        (folder / "classifier.json").write_text('{"schema": 1}', encoding="utf-8")
        (folder / "classifier.safetensors").write_bytes(pickled())
        if tensors:
            save_file({"w": torch.zeros(1)}, folder / "classifier.safetensors")
        return saved.load(folder)

    return use


def search_index(name: str, content: bytes) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        model = vlp.load(model_folder(folder))
        pairs(folder / "a.tar")
        build_index(model, str(folder / "a.tar"), folder / "index", quiet=True)
        (folder / "index" / name).write_bytes(content)
        return Index.open(folder / "index", model=model).search("a", top=2)

    return use


def leaving(folder: Path) -> str:
    """A sheet of a shard whose members lead out: only inside OUT may anything appear."""
    inside = folder / "in" / "deep"
    path = payloads.leaving_tar(inside / "a.tar", folder / "outside")
    model = vlp.load(model_folder(folder))
    before = {found for found in folder.rglob("*") if inside / "index" not in found.parents}
    index = build_index(model, str(path), inside / "index", quiet=True)
    page = contact_sheet(index.search("a", top=9), vlp.search.Query("a"), inside / "index" / "sheet.html").read_text()
    after = {found for found in folder.rglob("*") if inside / "index" not in found.parents}
    strange = after - before - {inside / "index", inside / "a.tar.index"}
    assert not strange, strange
    assert "<script>alert" not in page
    return f"{len(index)} found, {open_records(str(path)).notes}"


def side_index(folder: Path) -> str:
    path = pairs(folder / "a.tar", count=2)
    path.with_name("a.tar.index").write_bytes(b"vlp shard index 2\n" + pickled())
    return f"{len(open_records(str(folder)))} served"


def postscript(folder: Path) -> str:
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({MARKER}) (w) file closefile\n%%EOF\n"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><script>{SOURCE}</script></svg>'
    pairs(folder / "a.tar", ("jpg", program.encode()), count=1)
    pairs(folder / "b.tar", ("jpg", svg.encode()), count=1)
    return str([skip.reason for skip in feed(folder, batch_size=2).batch(0).skips])


def vocabulary(folder: Path) -> Any:
    (folder / "v.gz").write_bytes(gzip.compress(pickled()))
    return ClipBPE(path=str(folder / "v.gz")).build()


def pieces(folder: Path) -> Any:
    (folder / "m.model").write_bytes(pickled())
    return SentencePiece(path=str(folder / "m.model")).build()


NUMBERED = "sources: [{name: shards, urls: x}]"
ATTACKS = (
    Attack("H1", pickle_members, r"2 served of .*'pkl'.*skips \[\]"),
    Attack("H1 stream", streamed_pickles, "000: bytes"),
    Attack("H2 npy", objects("x.npy", payloads.objects_npy(), "x.npy"), "bad_column.*000.*x.npy says object"),
    Attack("H2 npz", objects("x.npz", payloads.objects_npz(), "x.npz:image"), "bad_column.*000.*x.npz:image"),
    Attack(
        "H3 pt", lambda f: vlp.load("vlp-nano", weights=payloads.torch_file(f / "e.pt")), "e.pt: cannot be read without"
    ),
    Attack(
        "H3 pth", lambda f: Model(arch="vlp-nano", pretrained=str(payloads.torch_file(f / "e.pth"))).build(), "e.pth: c"
    ),
    Attack("H3 bin", weights_in_a_folder, r"model\.bin: cannot be read without.*safetensors"),
    Attack(
        "H3 teacher",
        lambda f: Teacher(arch="vlp-nano", pretrained=str(payloads.torch_file(f / "e.bin"))).build(None),
        "e.bin: cannot",
    ),  # type: ignore[arg-type]
    Attack("H3 name", pickle_called_safetensors, "open_clip_model.safetensors: not safetensors"),
    Attack("H4", torchscript, r"script.pt: .*TorchScript"),
    Attack("H5", index_leads_out, r'index.json: weight_map names "../out.bin"'),
    Attack("H6", timm_loads_a_file, "checkpoint_path"),
    Attack("H7 text", text_tower(), "model.text.hf: .*evil.*that is not run"),
    Attack("H7 kernel", text_tower(model_type="bert", attn_implementation="evil/kernel"), "fetched code"),
    Attack(
        "H7 tokenizer",
        lambda f: HubTokenizer(path=str(payloads.text_folder(f / "t"))).build(),
        'cannot load path ".*t"',
    ),
    Attack(
        "H8",
        lambda f: HuggingFace(path=str(payloads.script_folder(f / "set"))).open(ShardCache()),
        "set: not a data set",
    ),
    Attack("H9", optimizer, "optimizer.safetensors"),
    Attack(
        "H10 tag", run_file(f"a: !!python/object/apply:os.system ['{SHELL}']"), r"run.yaml: line 1: the tag !!python"
    ),
    Attack("H10 new", run_file(f'a: !!python/object/new:exec ["{SOURCE}"]'), "line 1: the tag !!python"),
    Attack(
        "H10 override",
        run_file("name: x", f"seed=!!python/object/apply:os.system ['{SHELL}']"),
        "override seed: line 1",
    ),
    Attack("H10 class", run_file("losses: [{name: 'os:system'}]"), 'losses.0: unknown loss "os:system"'),
    Attack("H10 out", run_file("name: ../../x"), "name: String should match"),
    Attack("H11 shards", shards(f"pipe:{SHELL}"), "pipes run shell commands.*allow_pipe"),
    Attack("H11 list", shards(f"a.tar::pipe:{SHELL}"), "pipes run shell commands"),
    Attack("H11 braces", shards("{pipe:" + SHELL + ",pipe:ls}"), "pipes run shell commands"),
    Attack("H11 case", shards(f" PIPE:{SHELL}"), "pipes run shell commands"),
    Attack("H11 stream", stream(f"pipe:{SHELL}"), "pipes run shell commands"),
    Attack("H11 stream list", stream(f"a.tar::pipe:{SHELL}"), "pipes run shell commands"),
    Attack("H11 stream braces", stream("{pipe:" + SHELL + ",b}"), "pipes run shell commands"),
    Attack("H11 manifest", manifest(f"pipe:{SHELL}"), "shards.0.file: .*no plain name"),
    Attack("H11 manifest out", manifest("../../other.tar"), "shards.0.file: .*no plain name"),
    Attack("H11 table", table(f"pipe:{SHELL}"), "no_image: .*ending"),
    Attack("H11 table file", table("file:///etc/hostname"), "no_image: .*ending"),
    *(
        Attack(f"H12 {s}", shards(f"{s}://host/a.tar"), f"not read over {s}; known")
        for s in ("ftp", "gopher", "ssh", "git")
    ),
    Attack("H12 s3", shards(f"s3://bucket/$({SHELL})`{SHELL}`;{SHELL}.tar"), "s3|missing"),
    Attack("H12 shell", stream(f"http://127.0.0.1/$({SHELL});{SHELL}.tar"), "127.0.0.1, which is no public address"),
    Attack("H12 user", shards("http://me:hidden@example.org/a.tar"), r"^(?!.*hidden).*user and password in a url"),
    Attack(
        "H13 metadata", shards("http://169.254.169.254/latest/a.tar"), "169.254.169.254, which is no public address"
    ),
    Attack("H13 mapped", shards("http://[0:0:0:0:0:ffff:7f00:1]/a.tar"), "which is no public address"),
    Attack("H13 number", shards("http://2130706433/a.tar"), "127.0.0.1, which is no public address"),
    Attack("H13 zero", shards("http://0.0.0.0/a.tar"), "0.0.0.0, which is no public address"),
    Attack("H14", templates, r"t.txt:2: no slot.*\n.*t.txt:3: braces"),
    Attack(
        "H14 name",
        lambda f: fill("a {} and {c}", "{0.__class__} {}"),
        re.escape("a {0.__class__} {} and {0.__class__} {}"),
    ),
    Attack("H15", features(), r"t(rain|est).npz: image: has dtype object, which would run code"),
    Attack("H15 hits", hits, "h.npz"),
    Attack("H16", adapter("os:system"), 'unknown .* "os:system"'),
    Attack("H16 file", adapter("linear_classifier"), r"classifier.safetensors: not safetensors"),
    Attack("H16 empty", adapter("linear_classifier", tensors=True), "not what `vlp tune --out` writes"),
    Attack("H17", search_index("features.safetensors", pickled()), "features.safetensors: not safetensors"),
    Attack(
        "H17 items",
        search_index("items.jsonl", b'{"thumbnail": ["x"]}\n' * 4),
        "items.jsonl, line . no item|items.jsonl, line",
    ),
    Attack("H17 about", search_index("index.json", b"[" * 100_000), "not an index of schema"),
    Attack("H18", pieces, "m.model is no SentencePiece model"),
    Attack("H18 bpe", vocabulary, "v.gz is no gzip file of merges"),
    Attack("H19", leaving, r"3 found, .*hostile_member': 7"),
    Attack("H20", side_index, "2 served"),
    Attack("H21", postscript, r"not_image.*not_image"),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.row for attack in ATTACKS])
def test_nothing_runs_and_it_is_said(attack: Attack, elsewhere: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    try:
        said = str(attack.use(folder))
    except (ValueError, RuntimeError, DataError) as error:
        said = str(error)
    assert re.search(attack.says, said, re.S), said
    assert not list(tmp_path.rglob(MARKER))
