"""A look at a run before it starts: what would go wrong in an hour is said in a minute."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table as Grid
from torch import nn

from vlp.data.feed import Feed
from vlp.losses.objective import Objective
from vlp.models.dual import Dual
from vlp.prepare import accompanied, clock_of, companions_of, dual_of, feed_of
from vlp.run import Run
from vlp.types import Batch

Mark = Literal["ok", "look", "stop"]
MIB = 2**20
COLOURS = {"ok": "green", "look": "yellow", "stop": "red"}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Finding(NamedTuple):
    """One line of the examination; "stop" means the run cannot work as it is."""

    mark: Mark
    what: str
    text: str


class Pace(NamedTuple):
    """What was measured: samples a second, the loss terms of one batch, and the memory a step takes in MiB."""

    loader: float
    model: float
    terms: dict[str, float]
    memory: float


def examine(run: Run, *, console: Console) -> bool:
    """Print the findings, write RUN/doctor.png; False if one of them says stop."""
    torch.set_num_threads(run.torch_threads())
    objective = Objective(run.losses)
    device = torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")
    dual = dual_of(run, objective).to(device)
    feed, companions = feed_of(run, dual), companions_of(run, dual)
    batch = feed.batch(0)
    pace = Pace(_loader_pace(run, feed), *_model_pace(run, batch.to(device), dual, objective, companions))
    findings = [*_data(run, feed), *_first_batch(run, feed, batch), *_speed(run, feed, pace)]
    findings += _space(run, dual, companions, pace)
    grid = Grid("", "what", "finding", title=f"vlp doctor: {run.name}")
    for finding in findings:
        grid.add_row(f"[{COLOURS[finding.mark]}]{finding.mark}", finding.what, finding.text)
    console.print(grid)
    return all(finding.mark != "stop" for finding in findings)


def _data(run: Run, feed: Feed) -> Iterator[Finding]:
    for name, value in feed.describe().items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        yield Finding("ok", f"data: {name}", text)
    clock = clock_of(run, feed)
    seen = clock.total * feed.batch_size
    epochs = f"{clock.epoch(clock.total):.2f} epochs of {feed.num_samples}"
    yield Finding("ok", "length", f"{clock.total} steps, {seen} samples, {epochs}")
    fits = [w for w in range(1, feed.streams + 1) if feed.streams % w == 0]
    yield Finding("ok", "processes", f"{feed.streams} streams: run on {', '.join(map(str, fits))} processes")
    if feed.num_samples < feed.batch_size:
        times = feed.batch_size / feed.num_samples
        yield Finding("look", "epoch", f"one batch is {times:.1f} epochs: keys repeat inside it")


def _first_batch(run: Run, feed: Feed, batch: Batch) -> Iterator[Finding]:
    bad = sum(bool(key) for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if not valid)
    reasons = "; ".join(f"{skip.reason}: {skip.shard} {skip.key}" for skip in batch.skips[:3])
    unusable: Mark = "stop" if bad and not batch.valid.any() else "look"
    yield Finding("ok" if not bad else unusable, "unreadable", f"{bad} of {len(batch)} slots. {reasons}")
    slots = feed.slot_captions(0)
    texts = [text for slot in slots for text in slot]
    lengths, context = feed.tokenizer.lengths(texts), feed.tokenizer.context
    cut = sum(n > context for n in lengths) / max(1, len(lengths))
    text = f"{100 * cut:.1f}% of captions are longer than {context} tokens (longest {max(lengths, default=0)})"
    yield Finding("ok" if cut < 0.05 else "look", "cut captions", text)
    labels = batch.label[batch.valid].tolist()
    positives = len(labels) - len(set(labels))
    yield Finding("ok", "positives", f"{positives} of {len(labels)} pairs share their label with an earlier one")
    yield _equal_captions(run, slots)
    path = contact_sheet(batch, [" / ".join(slot) for slot in slots], run.folder / "doctor.png")
    yield Finding("ok", "contact sheet", str(path))


def _equal_captions(run: Run, slots: list[list[str]]) -> Finding:
    """Captions that two pictures of the batch share, where they would be contrasted with each other."""
    texts = [text for slot in slots for text in set(slot)]
    repeats = len(texts) - len(set(texts))
    known = run.data.same_caption_same_label or all(source.kind == "label" for source in run.data.sources)
    note = "; equal labels make them positives" if known else ": false negatives; see data.same_caption_same_label"
    return Finding("ok" if known or not repeats else "look", "equal captions", f"{repeats}{note if repeats else ''}")


def contact_sheet(batch: Batch, texts: list[str], path: Path, *, columns: int = 8, rows: int = 4) -> Path:
    """A PNG of the first pictures as the model will see them, each with the start of its captions under it."""
    kept = batch.valid.nonzero().flatten().tolist()[: columns * rows]
    side = max(96, int(batch.image.shape[-1]))
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 28)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, slot in enumerate(kept):
        x, y = place % columns * (side + 4), place // columns * (side + 28)
        image = Image.fromarray(batch.image[slot].permute(1, 2, 0).numpy())
        sheet.paste(image.resize((side, side * image.height // image.width), Image.Resampling.NEAREST), (x, y))
        for line in range(2):
            words = texts[slot][line * side // 6 : (line + 1) * side // 6]
            draw.text((x, y + side + 1 + 12 * line), words, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _loader_pace(run: Run, feed: Feed) -> float:
    """Samples a second of the loader alone, start-up left out: batches are taken as soon as they are made."""
    ahead = max(1, run.data.workers) * run.data.prefetch
    count = max(4, 2 * max(1, run.data.workers))
    stream = feed.batches(0, ahead + count + 1)
    for _ in range(ahead + 1):
        next(stream)
    start = time.perf_counter()
    for _ in stream:
        pass
    return count * feed.batch_size / (time.perf_counter() - start)


def _model_pace(
    run: Run, batch: Batch, dual: Dual, objective: Objective, companions: Mapping[str, Any]
) -> tuple[float, dict[str, float], float]:
    """Samples a second, companions, forward and backward; loss terms; MiB that a step takes beside the weights."""
    device = batch.image.device
    given = batch.rows(0, min(len(batch), run.micro_batch or len(batch)))
    before, seconds = _used(device), []
    for _ in range(2):
        _wait(device)
        start = time.perf_counter()
        part = accompanied(given, companions, dual)
        with torch.autocast(device.type, dtype=AUTOCAST.get(run.precision), enabled=run.precision != "no"):
            features = dual(part)
        value = objective(features._replace(image=features.image.float(), text=features.text.float()), part)
        value.total.backward()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    peak = _used(device) - before
    return len(part) / min(seconds), {name: float(term) for name, term in value.terms.items()}, peak


def _speed(run: Run, feed: Feed, pace: Pace) -> Iterator[Finding]:
    yield Finding("ok", "loader", f"{pace.loader:.0f} samples/s with {run.data.workers} worker(s)")
    yield Finding("ok", "model", f"{pace.model:.0f} samples/s forward and backward, precision {run.precision}")
    hours = clock_of(run, feed).total * feed.batch_size / min(pace.loader, pace.model) / 3600
    slower = "model" if pace.loader > pace.model else "loader"
    mark: Mark = "ok" if slower == "model" else "look"
    yield Finding(mark, "expected", f"{60 * hours:.1f} minutes; the {slower} sets the pace")
    finite = all(value == value and abs(value) != float("inf") for value in pace.terms.values())
    terms = ", ".join(f"{name} {value:.4f}" for name, value in pace.terms.items())
    yield Finding("ok" if finite else "stop", "first loss", terms)


def _space(run: Run, dual: nn.Module, companions: Mapping[str, Any], pace: Pace) -> Iterator[Finding]:
    count = sum(p.numel() for p in dual.parameters())
    trained = sum(p.numel() for p in dual.parameters() if p.requires_grad)
    yield Finding("ok", "parameters", f"{count / 1e6:.1f} M, {trained / 1e6:.1f} M trained")
    held = sum(t.numel() * t.element_size() for c in companions.values() for t in c.state_dict().values())
    state = (4 * count + held + 12 * trained) / MIB  # weights, what companions hold; gradient, two moments
    need, free = state + pace.memory, _free_memory(run)
    parts = f"{state:.0f} MiB of weights and optimizer, {pace.memory:.0f} MiB for a step"
    mark: Mark = "ok" if free > 1.2 * need else "look"
    yield Finding(mark, "memory", f"{need:.0f} MiB: {parts}; {free:.0f} MiB free")
    models = 1 + sum(hasattr(companion, "applied") for companion in companions.values())  # averages, as models too
    saved = (4 * count * models + held + 8 * trained) / MIB * max(2, run.save.keep + 1)
    run.folder.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(run.folder).free / MIB
    yield Finding("ok" if room > saved else "stop", "disk", f"{saved:.0f} MiB for checkpoints, {room:.0f} MiB free")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _used(device: torch.device) -> float:
    """MiB that torch (CUDA) or this process (CPU) has needed at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _free_memory(run: Run) -> float:
    """Free MiB of the device that the run uses; infinite where the system does not tell."""
    if run.device != "cpu" and torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]) / MIB
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    except (ValueError, OSError, AttributeError):
        return float("inf")
