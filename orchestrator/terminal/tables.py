"""Tables that fit the terminal: framed on one, aligned lines in a pipe. No cell is ever cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ablatrix.trainer.rundir.console import visible

WRAPPED_WIDTH = 24  # characters that a wrapped cell gets at least
EMPTY = ("", "-", "unknown")

Row = Mapping[str, str]  # heading -> cell


def print_table(
    title: str,
    rows: Sequence[Row],
    console: Console,
    *,
    columns: Sequence[str] = (),
    left: Collection[str] = (),
    wrapped: Collection[str] = (),
    dropped_first: Sequence[str] = (),
) -> None:
    """Print rows under a title. columns: the headings, by default those of the first row; see `fit_table`."""
    columns = columns or (list(rows[0]) if rows else [])
    if console.is_terminal:
        console.print(fit_table(title, rows, console.width, columns, left or columns, wrapped, dropped_first))
    else:
        console.file.write("\n".join([visible(title), *align(rows, columns, left or columns), ""]))


def fit_table(
    title: str,
    rows: Sequence[Row],
    width: int,
    columns: Sequence[str],
    left: Collection[str],
    wrapped: Collection[str] = (),
    dropped_first: Sequence[str] = (),
    below: str = "",
    styles: Mapping[str, str] | None = None,
) -> RenderableType:
    """Return a framed table that is at most `width` wide; if nothing fits, a line per row.

    Columns without content are left out, then those of `dropped_first` in this order until the others fit. left:
    columns that are aligned to the left. wrapped: columns whose cells may take several lines. below: a column that is
    printed below the table rather than drop others for it. styles: of rows, by the text of one of their cells.
    """
    filled = _filled(rows, columns)
    widths = {name: _width(name, rows, name in wrapped) for name in filled}
    for names in (filled, [name for name in filled if name != below]):
        for dropped in ("", *dropped_first):
            names = [name for name in names if name != dropped]
            if sum(widths[name] + 3 for name in names) + 1 <= width:
                table = _frame(title, rows, names, widths, left, wrapped, styles or {})
                first = columns[0]
                hidden = below in filled and below not in names
                lines = [Text(f"{row[first]}: {row[below]}") for row in rows if row[below]] if hidden else []
                return Group(table, *lines)
    narrow = [name for name in filled if name not in dropped_first or name == dropped_first[-1]]
    lines = [Text(" ".join(filter(None, (row[name] for name in narrow))), overflow="fold") for row in rows]
    return Group(Text(title), *lines)


def align(rows: Sequence[Row], columns: Sequence[str], left: Collection[str]) -> list[str]:
    """Return a line per row under a header, for pipes and files."""
    names = _filled(rows, columns)
    lines = [{name: name for name in names}, *({n: visible(" ".join(row[n].split())) for n in names} for row in rows)]
    widths = {name: max(len(line[name]) for line in lines) for name in names}
    return [
        "  ".join(line[n].ljust(widths[n]) if n in left else line[n].rjust(widths[n]) for n in names).rstrip()
        for line in lines
    ]


def format_loss(value: float | None) -> str:
    """Return `2.3457`, '' for None."""
    return "" if value is None else f"{value:.4f}"


def _filled(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return the first column and those that hold something."""
    return [name for name in columns if name == columns[0] or any(row[name] not in EMPTY for row in rows)]


def _width(name: str, rows: Sequence[Row], wrapped: bool) -> int:
    lines = [line for cell in (name, *(row[name] for row in rows)) for line in cell.splitlines()]
    longest = max(map(cell_len, lines), default=0)
    return min(longest, WRAPPED_WIDTH) if wrapped else longest


def _frame(
    title: str,
    rows: Sequence[Row],
    names: Sequence[str],
    widths: Mapping[str, int],
    left: Collection[str],
    wrapped: Collection[str],
    styles: Mapping[str, str],
) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name in names:
        table.add_column(Text(name), no_wrap=name not in wrapped, min_width=widths[name], overflow="fold")
        table.columns[-1].justify = "left" if name in left else "right"
    for row in rows:
        table.add_row(*(Text(row[name], style=styles.get(row[name], "")) for name in names))
    return table
