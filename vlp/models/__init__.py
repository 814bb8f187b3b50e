"""Two towers behind one `forward`: from open_clip configurations, timm, and Hugging Face text encoders."""

from __future__ import annotations

from vlp.registry import Table

COMPANIONS = Table("companion", {"ema": "vlp.models.companions:Ema"})
