"""`vlp embed`, `vlp classify`, `vlp search`: use a model on pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vlp.search import Hit

app = typer.Typer(help="Use a model: features, classes, search.", no_args_is_help=True)

Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda when there is one")]
Fitted = Annotated[Path | None, typer.Option("--adapter", help="folder that `vlp tune --out` wrote")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Weights = Annotated[Path | None, typer.Option(help="weights file, when the model is an open_clip name")]


@app.command("embed")
def embed_command(
    model: Annotated[str, typer.Argument(help="run folder, open_clip folder or name, Hugging Face folder")],
    data: Annotated[str, typer.Argument(help="shards (glob, braces, folder), folder of pictures, or CSV")],
    out: Annotated[Path, typer.Option(help="folder of the index")],
    weights: Weights = None,
    adapter: Fitted = None,
    batch_size: Annotated[int, typer.Option(help="pictures encoded at once")] = 64,
    workers: Annotated[int, typer.Option(help="processes that decode")] = 0,
    dtype: Annotated[str, typer.Option(help="fp32, or fp16 for half the size")] = "fp32",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Encode the pictures of DATA once and write a search index: features, keys, captions, thumbnails.

    With --adapter they are features of the image tower as the adapter changed it; one that changes nothing there (a
    probe, a cache, learned words) is refused: embed without it, and give it to `vlp search` and `vlp classify`.
    """
    from vlp.api import load
    from vlp.search import build_index

    if dtype not in ("fp32", "fp16"):
        raise typer.BadParameter(f"{dtype} is neither fp32 nor fp16", param_hint="--dtype")
    precision: Literal["fp32", "fp16"] = "fp16" if dtype == "fp16" else "fp32"
    chosen = load(model, weights=weights, device=device, adapter=adapter)
    index = build_index(chosen, data, out, batch_size=batch_size, workers=workers, dtype=precision)
    if as_json:
        return typer.echo(json.dumps({"index": str(out), **index.about.model_dump(by_alias=True)}, ensure_ascii=False))
    skipped = ", ".join(f"{reason} {count}" for reason, count in index.about.skips.items()) or "none"
    typer.echo(f"{len(index)} pictures, {index.about.width} numbers each, left out: {skipped}")
    typer.echo(f'search them: vlp search {out} "words"')


@app.command("classify")
def classify_command(
    images: Annotated[list[Path], typer.Argument(help="pictures, or folders of them")],
    names: Annotated[
        str | None, typer.Option(help="class names with commas between, or a file of them; default: the adapter's")
    ] = None,
    model: Annotated[
        str | None, typer.Option(envvar="VLP_MODEL", help="run folder or other model (or VLP_MODEL)")
    ] = None,
    templates: Annotated[
        str | None, typer.Option(help='set of templates (simple, openai_imagenet, ...) or one like "a {}"')
    ] = None,
    adapter: Fitted = None,
    top: Annotated[int, typer.Option(help="classes shown of each picture")] = 5,
    weights: Weights = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Classes of pictures with probabilities: zero-shot among the names, or what a fitted adapter says.

    Pictures that cannot be read are named on stderr with their reason; the others get their classes, and it leaves
    with 1.
    """
    from vlp.api import load

    if names is None and adapter is None:
        raise typer.BadParameter("which classes? give them, or an --adapter", param_hint="--names")
    chosen = load(_named(model), weights=weights, device=device, adapter=adapter)
    words = None if templates is None else _templates(templates)
    given, absent = _listed(images)
    found = chosen.classify_readable(given, None if names is None else _names(names), words, top=top)
    rows = [(given[place], classes) for place, classes in zip(found.kept, found.classes, strict=True)]
    if as_json:
        told = [{"image": str(image), "classes": classes} for image, classes in rows]
        typer.echo(json.dumps(told, ensure_ascii=False))
    elif rows:
        Console().print(_class_table(rows))
    bad = [*absent, *(f"{skip.shard}: {skip.reason}: {skip.detail}".removesuffix(": ") for skip in found.skips)]
    for line in bad:
        typer.echo(line, err=True)
    if bad:
        typer.echo(f"{len(bad)} of {len(given) + len(absent)} pictures could not be classified", err=True)
        raise typer.Exit(1)


def _listed(images: list[Path]) -> tuple[list[Path], list[str]]:
    """The pictures that were given or lie in folders that were, and a line for each place without any."""
    from vlp.data.folder import list_pictures
    from vlp.data.reasons import REMEDIES
    from vlp.paths import refuse_url

    given, absent = list[Path](), list[str]()
    for image in images:
        refuse_url(image)
        if image.is_dir():
            inside, masks = list_pictures(image)
            if masks:
                typer.echo(f"{image}: {len(masks)} mask_of_picture ({REMEDIES['mask_of_picture']})", err=True)
            given += [image / name for name in inside]
            absent += [] if inside else [f"{image}: a folder without pictures"]
        elif image.is_file():
            given.append(image)
        else:
            absent.append(f"{image}: no such picture (in {Path.cwd()})")
    return given, absent


def _class_table(rows: list[tuple[Path, dict[str, float]]]) -> Table:
    table = Table("picture", "class", "probability")
    alike = len({image.name for image, _ in rows}) < len(rows)  # as in the folders of classes: their paths tell
    for image, classes in rows:
        shown = _plain(image if alike else image.name)
        for place, (name, value) in enumerate(classes.items()):
            table.add_row(shown if place == 0 else "", _plain(name), f"{100 * value:.1f} %")
    return table


@app.command("search")
def search_command(
    index: Annotated[Path, typer.Argument(help="folder that `vlp embed` wrote")],
    words: Annotated[str | None, typer.Argument(help="what to look for, in words")] = None,
    image: Annotated[Path | None, typer.Option(help="what to look for, as a picture; with words: both")] = None,
    name: Annotated[str | None, typer.Option("--class", help="what to look for, as a class of the adapter")] = None,
    top: Annotated[int, typer.Option(min=1, help="pictures found")] = 20,
    out: Annotated[Path | None, typer.Option(help="contact sheet; default: search.html in the index")] = None,
    text_weight: Annotated[float, typer.Option(help="weight of the words beside a picture")] = 1.0,
    image_weight: Annotated[float, typer.Option(help="weight of the picture beside words")] = 1.0,
    model: Annotated[str | None, typer.Option(help="the model, if it is no longer where the index says")] = None,
    weights: Weights = None,
    adapter: Fitted = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find pictures by words, by a picture, by a class of a fitted adapter, or several; writes a contact sheet as HTML.

    An index that was made with an adapter is searched with it; one of the plain model takes an --adapter that changes
    nothing in the image tower.
    """
    from vlp.api import load
    from vlp.search import Index, Query, contact_sheet

    if words is None and image is None and name is None:
        raise typer.BadParameter("give words, --image FILE, --class NAME, or several", param_hint="WORDS")
    given = load(model, weights=weights, device=device, adapter=adapter) if model else None
    opened = Index.open(index, model=given)
    if adapter is not None and not model:
        opened = opened.adapted(adapter)
    query = Query(words, image, (text_weight, image_weight), name)
    hits = opened.nearest(query.feature(opened.model), top=top)
    note = f"Searched {len(opened)} pictures of {'/'.join(Path(opened.about.data).parts[-2:])}."
    sheet = contact_sheet(hits, query, out or index / "search.html", note=note)
    if as_json:
        rows = [{"key": hit.key, "shard": hit.shard, "score": hit.score, "caption": hit.caption} for hit in hits]
        return typer.echo(json.dumps({"hits": rows, "sheet": str(sheet)}, ensure_ascii=False))
    Console().print(_table(hits))
    typer.echo(str(sheet))


def _table(hits: list[Hit]) -> Table:
    table = Table("rank", "score", "key", "caption")
    for rank, hit in enumerate(hits, start=1):
        text = " ".join(hit.caption.split())
        table.add_row(
            str(rank), f"{hit.score:.3f}", _plain(hit.key), _plain(text if len(text) < 90 else text[:88] + " ...")
        )
    return table


def _named(model: str | None) -> str:
    """The model that was asked for; else an error with the runs that are there."""
    if model:
        return model
    runs = sorted(path.parent for path in Path("runs/out").glob("*/checkpoints"))
    known = f"; runs here: {', '.join(map(str, runs))}" if runs else "; train one with `vlp train CONFIG`"
    raise typer.BadParameter(f"no model: give --model PATH or set VLP_MODEL{known}", param_hint="--model")


def _names(names: str) -> list[str]:
    """Names from a file if there is one of that name, else the text at its commas."""
    from vlp.text.templates import read_names

    return list(read_names(names)) if Path(names).is_file() else names.split(",")


def _templates(templates: str) -> tuple[str, ...]:
    from vlp.text.templates import checked, template_set

    return checked([templates]) if "{" in templates else template_set(templates)


def _plain(text: Any) -> str:
    """Text whose brackets are not read as colours."""
    from rich.markup import escape

    return escape(str(text))
