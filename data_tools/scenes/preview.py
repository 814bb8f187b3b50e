"""A look at what `scenes` draws, without reading it back from shards."""

from __future__ import annotations

from pathlib import Path

from data_tools.scenes.tool import SceneMaker, Scenes
from data_tools.sheet import write_sheet


def write_preview(scenes: Scenes, path: Path, *, count: int = 48) -> None:
    """Contact sheet of the first scenes of the settings, before any redraw."""
    maker = SceneMaker(scenes)
    pictures = []
    for index in range(min(count, scenes.count)):
        scene, texts = scenes.scene(index)
        label = "" if scene.label is None else f"[{scene.label}] "
        pictures.append((maker.picture(index, scene).image, label + texts.caption))
    write_sheet(path, pictures)
