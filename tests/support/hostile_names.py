"""Names of features that break careless output."""

from __future__ import annotations

HOSTILE = {
    "_x": {"model.swiglu": True},
    "a$b$": {"model.rmsnorm": True},
    "<script>alert(1)</script>": {"model.rope": True},
    "x" * 80: {"trainer.warmup_steps": 9},
    "&amp;|`*_\\": {"trainer.use_cosine": True},
    "漢字": {"trainer.warmup_steps": 5},
    "$$": {"trainer.warmup_steps": 4},
}
