"""report.pdf: the verdict, the forest plot, the curves and the methods on A4 pages, to print or hand in."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure as Canvas

from ablatrix.orchestrator.report import drawing, forest_plot
from ablatrix.orchestrator.report.palette import GREY, INK
from ablatrix.trainer.rundir.console import visible

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.figure_data import Figure, Forest, Panel

# inches
WIDTH, HEIGHT, MARGIN = 8.27, 11.69, 0.6
INNER = WIDTH - 2 * MARGIN
PANEL, PANEL_LEFT, PANEL_RIGHT, PANEL_BELOW, PANEL_ABOVE = 1.75, 0.6, 1.15, 0.45, 0.25
WITH_TITLE = 3.1  # height that a title is kept together with
TIGHT_ROW, MANY_ROWS = 0.185, 16  # from this many rows on, rows are closer together
LETTER = 0.53  # mean width of a letter, relative to the font size


class Wrapper(textwrap.TextWrapper):
    """Wraps text, also within names, such as after an underscore."""

    wordsep_simple_re = re.compile(r"(\s+|(?<=\w[_+/@])(?=\w))")


class Layout:
    """A4 pages filled from top to bottom; content that does not fit starts a new page."""

    def __init__(self) -> None:
        self.pages: list[Canvas] = []
        self._begin()

    def _begin(self) -> None:
        self.page = Canvas(figsize=(WIDTH, HEIGHT))
        FigureCanvasAgg(self.page)
        self.pages.append(self.page)
        self.top = HEIGHT - MARGIN

    @property
    def room(self) -> float:
        """Inches left on the page."""
        return self.top - MARGIN

    def take(self, height: float) -> float:
        """Reserve the next `height` inches, on a new page if needed, and return their lower edge."""
        if height > self.room:
            self._begin()
        self.top -= height
        return self.top

    def keep(self, height: float) -> None:
        """Start a new page unless this one has room for `height` inches."""
        if height > self.room:
            self._begin()

    def text(self, text: str, size: float, after: float = 0.1, **style: Any) -> None:
        """Write a paragraph; its lines may continue on the next page."""
        bold = 1.12 if style.get("weight") == "bold" else 1.0
        wrapper = Wrapper(int(INNER * 72 / (LETTER * bold * size)), break_on_hyphens=False)
        for line in wrapper.wrap(visible(text)):
            y = self.take(1.35 * size / 72)
            self.page.text(MARGIN / WIDTH, y / HEIGHT, line, fontsize=size, va="bottom", **{"color": INK, **style})
        self.top -= after

    def forest(self, forest: Forest) -> None:
        """Draw a forest plot; its rows may continue on the next page."""
        row = TIGHT_ROW if len(forest.rows) >= MANY_ROWS else forest_plot.ROW
        rows = forest.rows
        while rows:
            fixed = forest_plot.height_of(0, row)
            if self.room < fixed + 3 * row:
                self._begin()
            fitting = min(len(rows), int((self.room - fixed) / row))
            bottom = self.take(fixed + fitting * row)
            forest_plot.place(self.page, replace(forest, rows=rows[:fitting]), MARGIN, bottom, INNER, row=row)
            rows = rows[fitting:]
        self.top -= 0.05

    def panel(self, panel: Panel) -> None:
        """Draw a panel of curves across the width of the page."""
        bottom = self.take(PANEL + PANEL_BELOW + PANEL_ABOVE + (0.35 if panel.per_step else 0)) + PANEL_BELOW
        width = INNER - PANEL_LEFT - PANEL_RIGHT
        rectangle = ((MARGIN + PANEL_LEFT) / WIDTH, bottom / HEIGHT, width / WIDTH, PANEL / HEIGHT)
        drawing.fill_panel(self.page.add_axes(rectangle), panel, steps=True)


def write(title: str, lead: str, subtitle: str, figures: Sequence[Figure], methods: Sequence[str]) -> bytes:
    """Return the pages as PDF; the bytes are the same every time.

    figures: forest plots, and curves, of which only the first panel is drawn.
    """
    with drawing.settings():
        layout = Layout()
        layout.text(title, 14, 0.04, weight="bold")
        layout.text(subtitle, 8, 0.12, color=GREY)
        layout.text(lead, 10, 0.12, weight="bold")
        for figure in figures:
            if figure is not figures[0] or figure.name != "effects":
                layout.keep(WITH_TITLE)
                layout.text("Cells" if figure.name == "effects" else figure.title, 8.5, 0.02, weight="bold")
            if figure.forest:
                layout.forest(figure.forest)
            for panel in figure.panels[:1]:
                layout.panel(panel)
            layout.text(figure.caption, 7, 0.14, color=GREY)
        layout.text("Methods", 9, 0.03, weight="bold")
        for paragraph in methods:
            layout.text(paragraph, 7, 0.05)
        return _save(layout.pages)


def _save(pages: Sequence[Canvas]) -> bytes:
    buffer = io.BytesIO()
    with PdfPages(buffer, metadata=drawing.NO_METADATA["pdf"]) as file:
        for page in pages:
            file.savefig(page)
    return buffer.getvalue()
