"""Small JPEGs of pictures, for pages that carry them inside."""

from __future__ import annotations

import base64
import io
from typing import Any


def thumbnail(picture: Any, side: int, *, quality: int = 80) -> bytes | None:
    """A JPEG of at most side x side of bytes or a PIL image, transparent parts white; None when it cannot be read."""
    from PIL import Image

    try:
        opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        if isinstance(picture, bytes):
            opened.draft("RGB", (2 * side, 2 * side))
        small = _on_white(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def data_uri(jpeg: bytes) -> str:
    """The JPEG as an address that needs no file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _on_white(picture: Any) -> Any:
    """An RGB copy; transparent parts become white."""
    from PIL import Image

    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB").copy()
