"""Tables that fit the output: framed on a terminal, aligned lines in a pipe. Cells are never cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ablatrix.trainer.rundir.console import visible

WRAPPED_WIDTH = 24  # least width of a wrapped cell, in characters
EMPTY = ("", "-", "\N{EM DASH}", "unknown")

Row = Mapping[str, str]  # heading -> cell


@dataclass(frozen=True)
class Layout:
    """The layout of a table's columns, and which are left out on a narrow terminal."""

    columns: Sequence[str] = ()  # headings in order; by default those of the first row
    left: Collection[str] = ()  # left-aligned columns; by default all
    wrapped: Collection[str] = ()  # columns whose cells may span several lines
    dropped_first: Sequence[str] = ()  # columns left out, in this order, until the others fit
    below: str = ""  # column printed below the table if dropping others does not help
    styles: Mapping[str, str] = field(default_factory=dict)  # row styles by the text of any cell


def print_table(title: str, rows: Sequence[Row], console: Console, layout: Layout) -> None:
    """Print rows under a title: a framed table on a terminal, aligned lines in a pipe."""
    columns = layout.columns or (list(rows[0]) if rows else [])
    layout = replace(layout, columns=columns, left=layout.left or columns)
    if console.is_terminal:
        console.print(fit_table(title, rows, console.width, layout))
    else:
        console.file.write("\n".join([visible(title), *align(rows, columns, layout.left), ""]))


def fit_table(title: str, rows: Sequence[Row], width: int, layout: Layout) -> RenderableType:
    """Return a framed table at most `width` characters wide; if nothing fits, a line per row.

    Empty columns are left out, then those of `layout.dropped_first`. layout: must have `columns` set.
    """
    filled = _filled(rows, layout.columns)
    widths = {name: _width(name, rows, name in layout.wrapped) for name in filled}
    for names in (filled, [name for name in filled if name != layout.below]):
        for dropped in ("", *layout.dropped_first):
            names = [name for name in names if name != dropped]
            if sum(widths[name] + 3 for name in names) + 1 <= width:
                table = _frame(title, rows, {name: widths[name] for name in names}, layout)
                first, below = layout.columns[0], layout.below
                hidden = below in filled and below not in names
                lines = [Text(f"{row[first]}: {row[below]}") for row in rows if row[below]] if hidden else []
                return Group(table, *lines)
    narrow = [name for name in filled if name not in layout.dropped_first or name == layout.dropped_first[-1]]
    lines = [Text(" ".join(filter(None, (row[name] for name in narrow))), overflow="fold") for row in rows]
    return Group(Text(title), *lines)


def align(rows: Sequence[Row], columns: Sequence[str], left: Collection[str]) -> list[str]:
    """Return a header and an aligned line per row, for pipes and files."""
    names = _filled(rows, columns)
    lines = [{name: name for name in names}, *({n: visible(" ".join(row[n].split())) for n in names} for row in rows)]
    widths = {name: max(len(line[name]) for line in lines) for name in names}
    return [
        "  ".join(line[n].ljust(widths[n]) if n in left else line[n].rjust(widths[n]) for n in names).rstrip()
        for line in lines
    ]


def format_loss(value: float | None) -> str:
    """Format a loss with four decimals, such as `2.3457`; '' for None."""
    return "" if value is None else f"{value:.4f}"


def _filled(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return the first column and all non-empty ones."""
    return [name for name in columns if name == columns[0] or any(row[name] not in EMPTY for row in rows)]


def _width(name: str, rows: Sequence[Row], wrapped: bool) -> int:
    lines = [line for cell in (name, *(row[name] for row in rows)) for line in cell.splitlines()]
    longest = max(map(cell_len, lines), default=0)
    return min(longest, WRAPPED_WIDTH) if wrapped else longest


def _frame(title: str, rows: Sequence[Row], widths: Mapping[str, int], layout: Layout) -> Table:
    """Return the framed table of the columns in `widths`."""
    table = Table(title=Text(title), title_justify="left")
    for name, width in widths.items():
        table.add_column(Text(name), no_wrap=name not in layout.wrapped, min_width=width, overflow="fold")
        table.columns[-1].justify = "left" if name in layout.left else "right"
    for row in rows:
        table.add_row(*(Text(row[name], style=layout.styles.get(row[name], "")) for name in widths))
    return table
