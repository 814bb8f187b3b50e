"""The house rules, checked on the text and the syntax trees of the sources.

Each rule is a function from a tree (path -> text) to faults, one line each, which say where, what, and what to do.
The same functions are run on the repository and on small trees with a planted fault, so that a rule that cannot fail
would itself fail here. What needs running code (configurations, commands, model files) comes last.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vlp", "eval", "data_tools")
MAX_MODULE, MAX_FUNCTION, MAX_MEDIAN = 300, 60, 12

Tree = Mapping[str, str]  # path relative to the root, with "/" -> text

# A module imports from lower layers only. The longest name that fits a module says its layer (docs/design.md).
LAYERS = {
    **dict.fromkeys(
        ("vlp.types", "vlp.registry", "vlp.dist", "vlp.duration", "vlp.paths", "vlp.room", "vlp.untrusted"), 0
    ),
    **dict.fromkeys(("vlp.config", "vlp.log", "vlp.checkpoint", "vlp.text", "vlp.kernels", "vlp.metrics"), 1),
    "vlp.listing": 1,
    **dict.fromkeys(("vlp.losses", "vlp.data", "vlp.optim", "vlp.optim_state", "vlp.probe"), 2),
    **dict.fromkeys(("vlp.models", "vlp.gradcache", "vlp.guards", "vlp.lock", "vlp.requeue", "vlp.report"), 3),
    **dict.fromkeys(("vlp.alarm", "vlp.spikes", "vlp.unread"), 3),
    **dict.fromkeys(("vlp.feature_cache", "vlp.pictures", "vlp.progress", "vlp.token_store", "vlp.token_scores"), 3),
    **dict.fromkeys(("vlp.embed", "vlp.sharded", "vlp.trained", "vlp.verdict"), 4),
    **dict.fromkeys(("vlp.run", "vlp.adapters", "vlp.explain"), 5),
    **dict.fromkeys(("vlp.prepare", "vlp.state", "vlp.journal", "vlp.trainer", "vlp.search", "vlp.api"), 6),
    "vlp.ranks": 6,
    **dict.fromkeys(("vlp.explained", "vlp.continual", "vlp.tune"), 6),
    **dict.fromkeys(("eval", "data_tools", "vlp.sequence", "vlp.profiling"), 7),
    **dict.fromkeys(("vlp", "vlp.cli", "vlp.search_cli", "vlp.continual_cli", "vlp.tune_cli"), 8),
    **dict.fromkeys(("vlp.doctor", "train"), 8),
}
# Within one layer: who may know whom.
BESIDE = {
    ("vlp.trainer", "vlp.state"),
    ("vlp.trainer", "vlp.prepare"),
    ("vlp.trainer", "vlp.ranks"),
    ("vlp.trainer", "vlp.journal"),
    ("vlp.journal", "vlp.state"),
    ("vlp.state", "vlp.prepare"),
    ("vlp.api", "vlp.search"),
    ("vlp.search", "vlp.api"),
    ("vlp.cli", "vlp.doctor"),
    ("vlp.cli", "vlp.search_cli"),
    ("vlp.cli", "vlp.continual_cli"),
    ("vlp.cli", "vlp.tune_cli"),
    ("train", "vlp.cli"),
}
# Of a lower package, only this: towers know the picture transform and nothing else of data; adapters no model at all.
ONLY = {
    ("vlp.models", "vlp.data"): ("vlp.data.transforms",),
    ("vlp.adapters", "vlp.models"): (),
}
FORBIDDEN = {"util", "utils", "helper", "helpers", "common", "misc", "base"}
MAY_PRINT = ("vlp/cli.py", "vlp/search_cli.py", "vlp/log.py", "vlp/doctor.py")

# Kind of table -> page and heading under which every part of it has a row that begins "| `name` |".
DOCUMENTED = {
    "loss": ("docs/losses.md", "Losses"),
    "schedule": ("docs/losses.md", "Schedules"),
    "companion": ("docs/losses.md", "Companions"),
    "adapter": ("docs/adapters.md", "Adapters"),
    "dense adapter": ("docs/adapters.md", "Dense adapters"),
    "classifier": ("docs/tune.md", "Classifiers"),
    "protocol": ("docs/tune.md", "Protocols"),
    "source": ("docs/data.md", "Sources"),
    "tokenizer": ("docs/data.md", "Tokenizers"),
    "data tool": ("docs/data.md", "Tools"),
    "benchmark": ("docs/evaluation.md", "Benchmarks"),
    "composer": ("docs/evaluation.md", "Composers"),
}
CONFIG_TYPES = {  # folder under configs/ -> what its files load into
    "train": "vlp.run:Run",
    "eval": "eval.suite:Suite",
    "continual": "vlp.continual:Continual",
    "tune": "eval.tuning:Tuning",
}

SKIPPED = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "dist", "build", "wandb")


def read_tree(root: Path) -> dict[str, str]:
    """Every text file that belongs to the repository: no environments, caches and results."""
    return {path.relative_to(root).as_posix(): text for path in _files(root, root) if (text := _text(path)) is not None}


def _files(folder: Path, root: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if name == "runs/out" or path.is_symlink() or any(fnmatch.fnmatch(path.name, skip) for skip in SKIPPED):
            continue
        if path.is_dir():
            yield from _files(path, root)
        elif path.stat().st_size < 1 << 20:
            yield path


def _text(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return None
    return None if "\0" in text else text


def sources(tree: Tree) -> dict[str, str]:
    """Module name -> path, of the packages and train.py."""
    paths = [p for p in tree if p.endswith(".py") and (p.split("/")[0] in PACKAGES or p == "train.py")]
    return {p.removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in paths}


@functools.lru_cache(maxsize=2048)
def parse(text: str) -> ast.Module:
    """The syntax tree; an empty one for text that is no Python, which `check_syntax` reports."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def check_syntax(tree: Tree) -> Iterator[str]:
    for path, text in tree.items():
        if path.endswith(".py"):
            try:
                ast.parse(text)
            except SyntaxError as error:
                yield f"{path}:{error.lineno}: {error.msg}; nothing in this file can be checked"


# ---------------------------------------------------------------------------------------------- imports


class Edge(NamedTuple):
    """One import of one module of ours by another."""

    importer: str
    imported: str
    place: str  # path:line
    when: str  # "start": runs with the module; "call": inside a function; "types": for the type checker only


def edges(tree: Tree) -> list[Edge]:
    modules = sources(tree)
    found = []
    for module, path in modules.items():
        for node, when in _imports(parse(tree[path]), "start"):
            for target in _targets(node, module, path.endswith("__init__.py"), modules):
                found.append(Edge(module, target, f"{path}:{node.lineno}", when))
    return [edge for edge in found if edge.imported != edge.importer]


def _imports(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, "types" if when == "types" else "call")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, "types")
        else:
            yield from _imports(child, when)


def _targets(node: ast.Import | ast.ImportFrom, module: str, package: bool, modules: Mapping[str, str]) -> set[str]:
    """Modules of ours that the statement loads, as precisely as the names in it say."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    else:
        parents = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
        start = ".".join([*parents, *([node.module] if node.module else [])])
        wanted = [a.name for a in node.names if a.name != "__version__"]  # a constant that is always there
        names = {f"{start}.{name}" if f"{start}.{name}" in modules else start for name in wanted}
    return {name for name in names if name.split(".")[0] in (*PACKAGES, "train")}


def unit_of(module: str) -> str:
    """The longest entry of LAYERS that holds the module; the empty string if none does (`vlp` is only itself)."""
    fits = [unit for unit in LAYERS if module == unit or (unit != "vlp" and module.startswith(f"{unit}."))]
    return max(fits, key=len, default="")


def check_layers(tree: Tree) -> Iterator[str]:
    for module, path in sources(tree).items():
        if not unit_of(module):
            yield f"{path}: in no layer; add {module} to LAYERS in tests/test_house.py and to docs/design.md"
    for edge in edges(tree):
        if edge.importer == "vlp" and edge.when != "start":
            continue  # `vlp.load` is the front door; it opens nothing until it is asked
        low, high = unit_of(edge.imported), unit_of(edge.importer)
        if low == high or not low or not high:
            continue
        said = f"{edge.place}: {edge.importer} (layer {LAYERS[high]}) imports {edge.imported} (layer {LAYERS[low]})"
        if LAYERS[low] > LAYERS[high] or (LAYERS[low] == LAYERS[high] and (high, low) not in BESIDE):
            yield f"{said}; lower may not know higher: hand the thing on as a value, or move it down"
        elif (high, low) in ONLY and edge.imported not in ONLY[high, low]:
            yield f"{said}; of {low} it may know only {ONLY[high, low] or 'nothing'}: go through vlp.types"


def check_cycles(tree: Tree) -> Iterator[str]:
    """Cycles among imports that run when modules load, at module level; lazy ones are held by the layers."""
    graph: dict[str, set[str]] = {}
    for edge in edges(tree):
        if edge.when == "start":
            graph.setdefault(edge.importer, set()).add(edge.imported)
    done: set[str] = set()
    for module in sorted(graph):
        cycle = _cycle(module, graph, done, [])
        if cycle:
            yield f"import cycle {' -> '.join(cycle)}; split what both sides need into a module of its own"


def _cycle(module: str, graph: Mapping[str, set[str]], done: set[str], path: list[str]) -> list[str]:
    if module in path:
        return [*path[path.index(module) :], module]
    if module in done:
        return []
    for target in sorted(graph.get(module, ())):
        if cycle := _cycle(target, graph, done, [*path, module]):
            done.update(cycle)
            return cycle
    done.add(module)
    return []


def check_import_eval(tree: Tree) -> Iterator[str]:
    for path, text in tree.items():
        if not path.endswith(".py"):
            continue
        for node in ast.walk(parse(text)):
            if isinstance(node, ast.Import) and any(
                a.name.split(".")[0] == "eval" and not a.asname for a in node.names
            ):
                yield f"{path}:{node.lineno}: hides the builtin eval; write `from eval import classify`"


# ------------------------------------------------------------------------------------------------ sizes


def _functions(tree: Tree) -> Iterator[tuple[str, str, int]]:
    """(path:line, name, lines) of every function that does something; protocol stubs are left out."""
    for path in sources(tree).values():
        for node in ast.walk(parse(tree[path])):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_stub(node):
                yield f"{path}:{node.lineno}", node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in node.body)


def check_module_length(tree: Tree) -> Iterator[str]:
    for path in sources(tree).values():
        lines = len(tree[path].splitlines())
        logic = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(parse(tree[path])))
        if lines > MAX_MODULE and logic:
            yield f"{path}: {lines} lines, {MAX_MODULE} allowed; split by idea, one file each"


def check_function_length(tree: Tree) -> Iterator[str]:
    for place, name, lines in _functions(tree):
        if lines >= MAX_FUNCTION:
            yield f"{place}: {name} has {lines} lines, fewer than {MAX_FUNCTION} allowed; name its steps as functions"


def check_median_length(tree: Tree) -> Iterator[str]:
    lengths = [lines for _, _, lines in _functions(tree)]
    if lengths and statistics.median(lengths) > MAX_MEDIAN:
        yield f"median function length {statistics.median(lengths)}, {MAX_MEDIAN} allowed; cut the longest into steps"


def check_names(tree: Tree) -> Iterator[str]:
    for path in tree:
        bad = FORBIDDEN & {part.removesuffix(".py") for part in path.split("/")} if path.endswith(".py") else set()
        if bad:
            yield f'{path}: "{bad.pop()}" names no idea; name the file for what it does'


def check_print(tree: Tree) -> Iterator[str]:
    for path in sources(tree).values():
        if not path.startswith("vlp/") or path in MAY_PRINT:
            continue
        for node in ast.walk(parse(tree[path])):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"{path}:{node.lineno}: print(); say it through vlp.log (Reporter.say, console) or return it"


_MACHINE = re.compile(r"(?<![\w.~)}\]-])/(?:work|root|home|Users)(?=[/\s\"'`),;:]|$)", re.MULTILINE)
_REGISTRY = re.compile(
    r"(?i)(?:--(?:extra-)?index-url|\b(?:extra-)?index[-_]url\s*=|PIP_(?:EXTRA_)?INDEX|arti[f]actory|devp[i]|nexus[/])"
)


def check_machine(tree: Tree) -> Iterator[str]:
    for path, text in tree.items():
        for pattern, what in ((_MACHINE, "a path of one machine"), (_REGISTRY, "a package registry")):
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                yield f'{path}:{line}: names {what} ("{match.group()}"); use a relative path, or a setting'


# ----------------------------------------------------------------------------------------------- tables


class Entry(NamedTuple):
    """One line of one registry table."""

    place: str
    kind: str
    name: str
    target: str  # "module:Class"


def entries(tree: Tree) -> Iterator[Entry]:
    for path in sources(tree).values():
        for node in parse(tree[path]).body:
            call = getattr(node, "value", None)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "Table" and len(call.args) == 2:
                kind, table = (
                    eval(ast.unparse(argument), {}) for argument in call.args
                )  # literals, or a comprehension of them
                for name, target in table.items():
                    yield Entry(f"{path}:{node.lineno}", kind, name, target)


def _definition(tree: Tree, target: str) -> ast.ClassDef | ast.FunctionDef | None:
    module, _, name = target.partition(":")
    path = sources(tree).get(module)
    nodes = parse(tree[path]).body if path else []
    return next((n for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)


def check_entries_exist(tree: Tree) -> Iterator[str]:
    for entry in entries(tree):
        found = _definition(tree, entry.target)
        if found is None:
            said = f'{entry.place}: {entry.kind} "{entry.name}" points at {entry.target}'
            yield f"{said}, which is not there; write it or drop the line"
        elif not ast.get_docstring(found):
            yield f"{entry.place}: {entry.target} has no docstring; say what it is, paper, equation"


def check_entries_tested(tree: Tree) -> Iterator[str]:
    tests = [
        parse(t) for p, t in tree.items() if p.startswith("tests/") and p.endswith(".py") and p != "tests/test_house.py"
    ]
    words, texts = set(), set()
    for node in (node for test in tests for node in ast.walk(test)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
        elif isinstance(node, ast.Name | ast.Attribute | ast.alias):
            words.add(getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None))
    for entry in entries(tree):
        named = re.compile(rf"""\bname["']?\s*[:=]\s*["']?{re.escape(entry.name)}\b""")
        if (
            entry.name not in texts
            and entry.target.partition(":")[2] not in words
            and not any(map(named.search, texts))
        ):
            yield f'{entry.place}: no test under tests/ names {entry.kind} "{entry.name}"; add one that could fail'


def check_entries_documented(tree: Tree) -> Iterator[str]:
    known: dict[str, set[str]] = {kind: set() for kind in DOCUMENTED}
    for entry in entries(tree):
        if entry.kind not in DOCUMENTED:
            yield f"{entry.place}: tables of kind {entry.kind} have no page; add the kind to DOCUMENTED"
            continue
        known[entry.kind].add(entry.name)
        page, heading = DOCUMENTED[entry.kind]
        if entry.name not in _rows(tree.get(page, ""), heading):
            yield f'{page}: no row "| `{entry.name}` |" under "## {heading}"; write the row'
    for kind, (page, heading) in DOCUMENTED.items():
        for name in _rows(tree.get(page, ""), heading) - known[kind]:
            yield f'{page}: the row "{name}" under "## {heading}" is in no table of {kind}s; drop the row'


def _rows(page: str, heading: str) -> set[str]:
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^\| `([^`]+)` \|", section.group(1), re.MULTILINE)) if section else set()


# -------------------------------------------------------------------------------------------- the checks

Check = Callable[[Tree], Iterator[str]]
CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.fixture(scope="module")
def repository() -> dict[str, str]:
    return read_tree(ROOT)


@pytest.mark.parametrize("name", CHECKS)
def test_the_house_keeps(name: str, repository: dict[str, str]) -> None:
    faults = list(CHECKS[name](repository))
    assert not faults, "\n".join(["", *faults])


_BODY = "".join(f"    x{i} = {i}\n" for i in range(70))
_TABLE = 'T = Table("loss", {"mine": "vlp.losses.mine:Mine"})\n'
_MINE = 'class Mine:\n    """A loss."""\n'
_DOCS = "## Losses\n\n| `mine` | x |\n"
_WHOLE = {
    "vlp/losses/__init__.py": _TABLE,
    "vlp/losses/mine.py": _MINE,
    "tests/losses/test_mine.py": 'NAME = "mine"\n',
    "docs/losses.md": _DOCS,
}
SOUND = [
    {"vlp/types.py": "x = 1\n", "vlp/losses/filip.py": "from vlp.types import x\nfrom vlp.losses import contrast\n"},
    {
        "vlp/text/a.py": "from vlp.text import b\n",
        "vlp/text/b.py": "def f():\n    from vlp.text import a\n    return a\n",
    },
    {"vlp/__init__.py": "def __getattr__(name):\n    from vlp.api import load\n    return load\n", "vlp/api.py": ""},
    {"vlp/__init__.py": "__version__ = 1\n", "eval/suite.py": "from vlp import __version__\n"},
    {"vlp/log.py": "", "vlp/trainer.py": "from vlp.state import State\nfrom . import log\n", "vlp/state.py": ""},
    {"vlp/cli.py": "def f():\n    from eval.suite import run_suite\n    print(run_suite)\n", "eval/suite.py": ""},
    {"vlp/text/words.py": "WORDS = [\n" + '    "a",\n' * 400 + "]\n"},
    {"docs/data.md": "see ../data/x, https://host.example/home/y and frame/work/z\n"},
    _WHOLE,
]
PLANTED = [
    ("syntax", {"eval/a.py": "x = (\n"}, "eval/a.py:1"),
    ("layers", {"vlp/losses/a.py": "from vlp.data import Feed\n", "vlp/data/__init__.py": ""}, "vlp/losses/a.py:1"),
    ("layers", {"vlp/losses/a.py": "def f():\n    from vlp.models import m\n", "vlp/models/m.py": ""}, "a.py:2"),
    ("layers", {"vlp/losses/a.py": "from ..models import m\n", "vlp/models/m.py": ""}, "imports vlp.models.m"),
    ("layers", {"vlp/trainer.py": "def f():\n    from eval.suite import s\n", "eval/suite.py": ""}, "(layer 7)"),
    ("layers", {"eval/a.py": "import data_tools.b\n", "data_tools/b.py": ""}, "imports data_tools.b"),
    ("layers", {"vlp/state.py": "from vlp import trainer\n", "vlp/trainer.py": ""}, "imports vlp.trainer"),
    ("layers", {"vlp/models/a.py": "from vlp.data import index\n", "vlp/data/index.py": ""}, "may know only"),
    ("layers", {"vlp/log.py": "from vlp import load\n", "vlp/__init__.py": ""}, "imports vlp (layer 8)"),
    ("layers", {"vlp/new_thing.py": ""}, "in no layer"),
    ("cycles", {"vlp/text/a.py": "from vlp.text import b\n", "vlp/text/b.py": "import vlp.text.a\n"}, "b -> vlp.text"),
    ("cycles", {"vlp/text/__init__.py": "from . import a\n", "vlp/text/a.py": "import vlp.text\n"}, "import cycle"),
    ("import_eval", {"tests/test_a.py": "import eval.suite\n"}, "from eval import"),
    ("module_length", {"vlp/a.py": "def f():\n    return 1\n" + "x = 1\n" * 300}, "302 lines"),
    ("function_length", {"vlp/a.py": f"class A:\n  def f(self):\n{_BODY}"}, "f has 71 lines"),
    ("median_length", {"vlp/a.py": f"def f():\n{_BODY}"}, "median"),
    ("names", {"vlp/data/utils.py": ""}, "utils"),
    ("names", {"eval/common/a.py": ""}, "common"),
    ("print", {"vlp/data/a.py": "def f():\n    print(1)\n"}, "vlp/data/a.py:2"),
    ("machine", {"docs/a.md": f"\nsee /{'work'}/data\n"}, "docs/a.md:2"),
    ("machine", {"Makefile": f"X = '/{'root'}'\n"}, "one machine"),
    ("machine", {"Makefile": f"pip install --{'index'}-url x\n"}, "registry"),
    ("entries_exist", {**_WHOLE, "vlp/losses/mine.py": "class Other:\n    pass\n"}, "which is not there"),
    ("entries_exist", {**_WHOLE, "vlp/losses/mine.py": "class Mine:\n    pass\n"}, "no docstring"),
    ("entries_tested", {**_WHOLE, "tests/losses/test_mine.py": 'NAME = "mineral"\n'}, 'names loss "mine"'),
    ("entries_documented", {**_WHOLE, "docs/losses.md": "## Losses\n\nmine\n"}, "no row"),
    ("entries_documented", {**_WHOLE, "docs/losses.md": f"{_DOCS}| `gone` | x |\n"}, "in no table"),
    ("entries_documented", {**_WHOLE, "docs/losses.md": f"## Other\n{_DOCS.replace('Losses', 'More')}"}, "no row"),
    ("entries_documented", {"vlp/a.py": 'T = Table("wheel", {"a": "vlp.a:A"})\n'}, "no page"),
]  # fmt: skip


@pytest.mark.parametrize("tree", SOUND)
def test_a_sound_tree_has_no_faults(tree: dict[str, str]) -> None:
    assert [fault for check in CHECKS.values() for fault in check(tree)] == []


@pytest.mark.parametrize(("name", "tree", "expected"), PLANTED)
def test_a_planted_fault_is_found(name: str, tree: dict[str, str], expected: str) -> None:
    faults = list(CHECKS[name](tree))
    assert len(faults) == 1, faults
    assert expected in faults[0]


def test_every_check_has_a_planted_fault() -> None:
    assert {name for name, _, _ in PLANTED} == set(CHECKS)


def test_results_and_caches_are_not_read(tmp_path: Path) -> None:
    for name in ("vlp/a.py", "runs/out/x.py", ".venv/b.py", "vlp/__pycache__/c.py", "runs/demo.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "vlp/picture.png").write_bytes(b"\x89PNG\0")
    assert set(read_tree(tmp_path)) == {"vlp/a.py", "runs/demo.sh"}


# ------------------------------------------------------------------------------------------ running code


@pytest.mark.parametrize("target", sorted({entry.target for entry in entries(read_tree(ROOT))}))
def test_every_part_resolves(target: str) -> None:
    from vlp.registry import locate

    assert callable(locate(target)), f"{target} is nothing that can be called"


def a_vocabulary_for(model: Any, folder: Path) -> Any:
    """The model block; a vocabulary that its recipe trains from the shards first is replaced by a small one."""
    from vlp.text.sentence_pieces import SentencePiece
    from vlp.text.train import train_sentencepiece

    if not isinstance(model.tokenizer, SentencePiece):
        return model
    lines = [
        f"{adjective} {noun} {number}"
        for adjective in ("red", "blue")
        for noun in ("cat", "boat")
        for number in range(20)
    ]
    part = train_sentencepiece(lines, folder / "words.model", vocab_size=280)
    return model.model_copy(update={"tokenizer": part})


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.y*ml")))
def test_every_configuration_loads(path: str, tmp_path: Path) -> None:
    from vlp import config
    from vlp.registry import locate

    folder = path.split("/")[1]
    assert folder in CONFIG_TYPES, f"{path}: say in CONFIG_TYPES what files of configs/{folder}/ load into"
    loaded = config.load(locate(CONFIG_TYPES[folder]), ROOT / path)
    for plan in getattr(loaded, "evals", ()):
        assert (ROOT / plan.suite).is_file(), f"{path}: there is no suite {plan.suite}"
    if hasattr(loaded, "model"):
        a_vocabulary_for(loaded.model, tmp_path).find_arch()
    again = config.validate(type(loaded), config.parse_yaml(config.to_yaml(loaded)), where=path)
    assert again == loaded, f"{path}: written as YAML and read again, it is another value"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "vlp/models/configs").glob("*.json")))
def test_every_model_configuration_builds(name: str) -> None:
    from vlp.models.model import Model

    json.loads((ROOT / f"vlp/models/configs/{name}.json").read_text(encoding="utf-8"))
    dual = Model(arch=name).build()
    assert sum(parameter.numel() for parameter in dual.parameters()) > 0


@functools.cache
def commands() -> dict[str, Any]:
    """Every command of `vlp` by its words, with those that are mounted from eval, data_tools and search."""
    import typer

    from vlp import cli

    cli._mount()
    return dict(_walk(typer.main.get_command(cli.app), ()))


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    yield " ".join(words), command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _walk(inner, (*words, name))


def test_every_command_helps() -> None:
    import click
    from typer.testing import CliRunner

    from vlp import cli

    found = commands()
    assert {
        "train",
        "doctor",
        "eval",
        "search",
        "embed",
        "classify",
        "report",
        "data scenes",
        "tokenizer train",
    } <= set(found)
    faults = []
    for words, command in found.items():
        result = CliRunner().invoke(cli.app, [*words.split(), "--help"])
        if result.exit_code != 0:
            faults.append(f"vlp {words} --help leaves with {result.exit_code}: {result.exception!r}")
        if not (command.help or "").strip():
            faults.append(f"vlp {words}: no help text; give the command a docstring")
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.help:
                faults.append(
                    f"vlp {words}: {parameter.opts[0]} has no help text; say what it does in typer.Option(help=...)"
                )
    assert not faults, "\n".join(["", *faults])


def _shell_lines() -> list[tuple[str, str]]:
    """(page, line) of every command in a shell block of the pages."""
    found = []
    for page in ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found += [(page, line.split(" # ")[0].strip()) for line in block.splitlines() if line.strip()]
    return found


@pytest.mark.parametrize(("page", "line"), _shell_lines())
def test_commands_in_the_pages_are_those_that_exist(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets, f"{page}: {line}: the Makefile has no such target"
    elif words[0] == "torchrun":
        _check_command(page, ["train", *words[words.index("train.py") + 1 :]])
    elif words[0] == "vlp":
        _check_command(page, words[1:])


def _check_command(page: str, words: list[str]) -> None:
    from eval.suite import load_suite
    from vlp import config
    from vlp.run import Run

    known = commands()
    name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
    assert name in known, f"{page}: there is no command vlp {name}"
    rest = words[len(name.split()) :]
    name = f"{name} run" if name in ("eval", "tune") else name  # what is no command of the group is what to measure
    options = {option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("--") and word not in options]
    assert not unknown, f"{page}: vlp {name} has no option {unknown[0]}"
    if name in ("train", "doctor"):
        config.load(Run, ROOT / rest[0], rest[1:])
    elif name == "eval run":
        for suite in (word for word in rest if word.endswith(".yaml")):
            load_suite(ROOT / suite)
