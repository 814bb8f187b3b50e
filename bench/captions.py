"""Captions made on the spot, for the scripts that need text: those of rendered scenes, and odd ones from the web.

Like `paired.py` a module to import: it does nothing when it is run.
"""

# ruff: noqa: RUF001  the odd characters are what these captions are for

from __future__ import annotations

import random

from data_tools.scenes.tool import Scenes

ODD = (
    "&lt;b&gt;{}&lt;/b&gt; &amp;amp; more",
    "{} &#8212; 50&nbsp;% off! http://shop.example/item?id={n}&ref=home",
    "IMG_{n}.JPG: {}",
    "cafÃ© menu, {}",  # UTF-8 read as Latin-1, which ftfy repairs
    "“{}” – naïve façade, Ångström, straße",
    "{} 🎨🖼️ #art #shapes{n}",
    "一张图片：{}",
    "  {}\n\twith\u00a0odd\u3000spaces  ",
    "{}'s <end_of_text> isn't we'll they've",
    "ＦＵＬＬ ｗｉｄｔｈ {} ½ ①",
    "",
)


def scene_captions(count: int, *, forms: int = 5, odd: float = 0.0, seed: int = 0) -> list[str]:
    """`count` captions, one of a scene each, a share of them made odd.

    A scene has five forms, and the first `forms` are drawn from: two of one relation, a sentence, two sentences, a
    paragraph.
    """
    rng = random.Random(seed)
    scenes = Scenes(seed=seed)
    texts = [rng.choice(scenes.scene(index)[1].captions[:forms]) for index in range(count)]
    return [rng.choice(ODD).format(text, n=rng.randrange(10**6)) if rng.random() < odd else text for text in texts]
