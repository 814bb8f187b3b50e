"""Small JPEGs of pictures, for pages that carry them inside."""

from __future__ import annotations

import base64
import io
from typing import Any

from vlp.report.page import Html, tag


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


def embedded(jpeg: bytes, *, alt: str, least: int) -> Html:
    """The img with the JPEG inside; one smaller than `least` on both sides is shown that large."""
    from PIL import Image

    width, height = Image.open(io.BytesIO(jpeg)).size
    grown = round(width * least / max(width, height)) if max(width, height) < least else None
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return tag("img", src=uri, alt=alt, width=grown, loading="lazy")


def _on_white(picture: Any) -> Any:
    """An RGB copy; transparent parts become white."""
    from PIL import Image

    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB").copy()
