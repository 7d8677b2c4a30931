"""The documentation pages and the code in them."""

from __future__ import annotations

import re
from pathlib import Path

from ablatrix.orchestrator.store.code_snapshot import code_root

ROOT = code_root()
_SINGLE = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = [*(ROOT / name for name in _SINGLE), *sorted((ROOT / "docs").rglob("*.md"))]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def code_spans(page: Path) -> list[str]:
    """Return all inline code, and the lines of shell blocks."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = (line for block in code_blocks(page, "sh") for line in block.splitlines())
    return [*re.findall(r"`([^`]+)`", prose), *lines]
