"""Two towers behind one `forward`: from open_clip configurations, timm, and Hugging Face text encoders."""

from __future__ import annotations

from vlp.registry import Table

COMPANIONS = Table(
    "companion",
    {
        "compatible_momentum": "vlp.models.compatible:CompatibleMomentum",
        "ema": "vlp.models.companions:Ema",
        "momentum": "vlp.models.momentum:Momentum",
        "queue": "vlp.models.momentum:Queue",
        "teacher": "vlp.models.teacher:Teacher",
    },
)
