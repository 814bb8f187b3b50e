"""A look at a run before it starts: what would go wrong in an hour is said in a minute."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table as Grid
from torch import nn

from vlp.data.decode import jpeg_decoder
from vlp.data.feed import Feed
from vlp.losses.objective import Objective
from vlp.prepare import clock_of, dual_of, feed_of
from vlp.run import Run
from vlp.types import Batch

Mark = Literal["ok", "look", "stop"]
MIB = 2**20


class Finding(NamedTuple):
    """One line of the examination; "stop" means the run cannot work as it is."""

    mark: Mark
    what: str
    text: str


def examine(run: Run, *, console: Console, batches: int = 4) -> bool:
    """Print the findings, write RUN/doctor.png; False if one of them says stop."""
    torch.set_num_threads(run.torch_threads())
    objective = Objective(run.losses)
    dual = dual_of(run, objective)
    feed = feed_of(run, dual)
    findings = [
        *_data(run, feed),
        *_first_batch(run, feed),
        *_speed(run, feed, dual, objective, batches),
        *_space(run, dual),
    ]
    colour = {"ok": "green", "look": "yellow", "stop": "red"}
    grid = Grid("", "what", "finding", title=f"vlp doctor: {run.name}")
    for finding in findings:
        grid.add_row(f"[{colour[finding.mark]}]{finding.mark}", finding.what, finding.text)
    console.print(grid)
    return all(finding.mark != "stop" for finding in findings)


def _data(run: Run, feed: Feed) -> Iterator[Finding]:
    for name, value in feed.describe().items():
        yield Finding("ok", f"data: {name}", str(value))
    clock = clock_of(run, feed)
    total = clock.total
    seen = total * feed.batch_size
    yield Finding(
        "ok", "length", f"{total} steps, {seen} samples, {clock.epoch(total):.2f} epochs of {feed.num_samples}"
    )
    fits = [w for w in range(1, feed.streams + 1) if feed.streams % w == 0]
    yield Finding("ok", "processes", f"{feed.streams} streams: run on {', '.join(map(str, fits))} processes")
    if feed.num_samples < feed.batch_size:
        yield Finding(
            "look", "epoch", f"one batch is {feed.batch_size / feed.num_samples:.1f} epochs: keys repeat inside it"
        )


def _first_batch(run: Run, feed: Feed) -> Iterator[Finding]:
    start = time.perf_counter()
    batch = feed.batch(0)
    yield Finding("ok", "first batch", f"{len(batch)} slots in {time.perf_counter() - start:.2f} s")
    bad = int((~batch.valid).sum())
    reasons = ", ".join(sorted({f"{skip.reason} ({skip.shard} {skip.key})" for skip in batch.skips})[:3])
    yield Finding("ok" if not bad else "look", "unreadable", f"{bad} of {len(batch)} slots {reasons}")
    texts = feed.captions(0)
    lengths = feed.tokenizer.lengths(texts)
    cut = sum(n > feed.tokenizer.context for n in lengths) / max(1, len(lengths))
    longest, context = max(lengths, default=0), feed.tokenizer.context
    text = f"{100 * cut:.1f}% of captions are longer than {context} tokens (longest {longest})"
    yield Finding("ok" if cut < 0.05 else "look", "cut captions", text)
    repeats = len(texts) - len(set(texts))
    note = ": false negatives; see data.same_caption_same_label" if repeats else ""
    yield Finding("ok" if not repeats else "look", "equal captions", f"{repeats} in the first batch{note}")
    path = contact_sheet(batch, texts, run.folder / "doctor.png")
    yield Finding("ok", "contact sheet", str(path))


def contact_sheet(batch: Batch, texts: list[str], path: Path, *, columns: int = 8, rows: int = 4) -> Path:
    """A PNG of the first pictures as the model will see them, each with the start of its caption under it."""
    from PIL import ImageDraw

    pictures = batch.image[batch.valid][: columns * rows]
    side = max(96, int(pictures.shape[-1]))
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 28)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = i % columns * (side + 4), i // columns * (side + 28)
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        sheet.paste(image.resize((side, side * image.height // image.width), Image.Resampling.NEAREST), (x, y))
        caption = texts[i] if i < len(texts) else ""
        for line in range(2):
            draw.text((x, y + side + 1 + 12 * line), caption[line * side // 6 : (line + 1) * side // 6], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _speed(run: Run, feed: Feed, dual: nn.Module, objective: Objective, batches: int) -> Iterator[Finding]:
    stream = feed.batches(0, batches + 1)
    first = next(stream)
    start = time.perf_counter()
    for _ in stream:
        pass
    loader = batches * feed.batch_size / (time.perf_counter() - start)
    device = torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")
    batch = first.rows(0, min(len(first), run.micro_batch or len(first))).to(device)
    dual.to(device)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        value = objective(dual(batch), batch)
        value.total.backward()
        seconds.append(time.perf_counter() - start)
    model = len(batch) / min(seconds)
    yield Finding("ok", "loader", f"{loader:.0f} samples/s with {run.data.workers} worker(s), JPEG by {jpeg_decoder()}")
    yield Finding("ok", "model", f"{model:.0f} samples/s forward and backward on {device}")
    hours = clock_of(run, feed).total * feed.batch_size / min(loader, model) / 3600
    yield Finding(
        "ok" if loader > model else "look",
        "expected",
        f"{hours:.2f} h; the {'model' if loader > model else 'loader'} sets the pace",
    )
    finite = bool(torch.isfinite(value.total))
    yield Finding(
        "ok" if finite else "stop", "first loss", ", ".join(f"{k} {float(v):.4f}" for k, v in value.terms.items())
    )


def _space(run: Run, dual: nn.Module) -> Iterator[Finding]:
    count = sum(p.numel() for p in dual.parameters())
    trained = sum(p.numel() for p in dual.parameters() if p.requires_grad)
    state = (4 * count + 12 * trained) / MIB  # fp32 weights; gradient and two Adam moments for what trains
    yield Finding(
        "ok", "parameters", f"{count / 1e6:.1f} M, {trained / 1e6:.1f} M trained; weights and optimizer {state:.0f} MiB"
    )
    checkpoint = (4 * count + 8 * trained) / MIB * max(2, run.save.keep + 1)
    run.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run.folder).free / MIB
    enough = free > checkpoint
    yield Finding("ok" if enough else "stop", "disk", f"{checkpoint:.0f} MiB for checkpoints, {free:.0f} MiB free")
    memory = _memory()
    if memory:
        yield Finding(
            "ok" if memory > 2 * state else "look", "memory", f"{memory:.0f} MiB free beside {state:.0f} MiB of state"
        )


def _memory() -> float:
    """Free memory of the device in MiB; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]) / MIB
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    except (ValueError, OSError, AttributeError):
        return 0.0
