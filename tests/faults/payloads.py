"""Files that drop a marker when something in them is run, each the way it is met in the wild."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.data.tars import add, npz, picture, write_tar

MARKER = "code-ran"
SOURCE = f"open({MARKER!r}, 'w').close()"
SHELL = f"touch {MARKER}"


class Runs:
    """Unpickled, it runs SOURCE."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (SOURCE,)


def pickled() -> bytes:
    return pickle.dumps(Runs())


def torch_file(path: Path) -> Path:
    """A .pt, .pth or .bin whose pickle runs SOURCE beside a tensor."""
    torch.save({"state_dict": {"w": torch.zeros(2), "x": Runs()}}, path)
    return path


def torch_bomb(path: Path) -> Path:
    """A file of weights whose storage is compressed: 100 kB that unpack to 100 MB."""
    plain = path.with_suffix(".plain")
    torch.save({"w": torch.zeros(25_000_000)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    plain.unlink()
    return path


def objects_npy() -> bytes:
    """A .npy of dtype object."""
    stream = io.BytesIO()
    np.save(stream, np.array([Runs()], dtype=object), allow_pickle=True)
    return stream.getvalue()


def objects_npz(**plain: Any) -> bytes:
    """A .npz with an array of objects called image."""
    return npz(image=np.array([Runs()], dtype=object), **plain)


def pairs(path: Path, *extra: tuple[str, bytes], count: int = 4) -> Path:
    """A shard of good pairs, every one with the extra members."""
    members = []
    for i in range(count):
        caption = json.dumps({"caption": f"picture number {i}"}).encode()
        members += [(f"{i:03d}.png", picture(i)), (f"{i:03d}.json", caption)]
        members += [(f"{i:03d}.{end}", content) for end, content in extra]
    return write_tar(path, members)


def leaving_tar(path: Path, outside: Path) -> Path:
    """Two good pairs, and members that lead out of the folder they would be unpacked to."""
    pairs(path, count=2)
    with tarfile.open(path, "a") as tar:
        for name in ("../../out.png", str(outside / "absolute.png"), "a/../../../b.png", "c\\..\\d.png"):
            add(tar, name, picture(1))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.CHRTYPE, "dev.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.devmajor, member.devminor = kind, "/etc/passwd", 1, 5
            tar.addfile(member)
        add(tar, "\udcff\udcfe.png", picture(3))
        add(tar, "\udcff\udcfe.json", b'{"caption": "<script>alert(1)</script>\\u202e"}')
    return path


def text_folder(folder: Path) -> Path:
    """A Hugging Face encoder whose config says that its code lies in a file beside it, which runs SOURCE."""
    folder.mkdir()
    auto = {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel", "AutoTokenizer": ["own.T", "own.T"]}
    (folder / "own.py").write_text(SOURCE, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}), encoding="utf-8")
    about = {"tokenizer_class": "Own", "auto_map": auto}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    return folder


def script_folder(folder: Path) -> Path:
    """A data set of Hugging Face that is a script."""
    folder.mkdir()
    (folder / f"{folder.name}.py").write_text(SOURCE, encoding="utf-8")
    return folder
