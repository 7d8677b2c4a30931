"""MkDocs hook that adds pages from files outside docs/, such as README.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "LICENSE", "CITATION.cff")},
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, with their links rewritten relative to docs/."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace("](../docs/", "](../").replace("](../README.md", "](../index.md")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page of docs/ with its links to the added pages rewritten for the site."""
    for name, target in PAGES.items():
        if "/" not in page.file.src_uri:
            markdown = markdown.replace(f"](../{name}", f"]({target}")
    return markdown
