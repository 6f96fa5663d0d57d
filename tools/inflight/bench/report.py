"""What a bench shows: a line of progress on standard error, a table, JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Row = Mapping[str, object]
WIDTH = 130  # columns that the widest table needs


def _number(value: object) -> str:
    """Four digits or so."""
    if not isinstance(value, float):
        return "-" if value is None else f"{value:,}"
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def _share(row: Row) -> str:
    return f"{100 * row['share_of_limit']:.0f} % {row['limit']}" if "share_of_limit" in row else "-"


# Heading -> the cell of a row.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "in": lambda row: _number(row["isl"]),
    "out": lambda row: _number(row["osl"]),
    "requests": lambda row: _number(row["n"]),
    "at a time": lambda row: "all" if row["concurrency"] is None else _number(row["concurrency"]),
    "per s": lambda row: _number(row.get("rate")),
    "output tok/s": lambda row: _number(row["out_tok_s"]),
    "TTFT p50 ms": lambda row: _number(row.get("ttft_ms_p50")),
    "p99": lambda row: _number(row.get("ttft_ms_p99")),
    "TPOT mean ms": lambda row: _number(row.get("tpot_ms_mean")),
    " p99": lambda row: _number(row.get("tpot_ms_p99")),
    "step ms": lambda row: _number(row.get("step_ms")),
    "of the limit": _share,
}


def table(title: str, rows: list[Row]) -> Table:
    """Columns that no row fills are left out."""
    cells = {heading: [cell(row) for row in rows] for heading, cell in COLUMNS.items()}
    shown = {heading: column for heading, column in cells.items() if set(column) != {"-"}}
    made = Table(title=title, title_justify="left")
    for heading in shown:
        made.add_column(heading.strip(), justify="right", no_wrap=True)
    for line in zip(*shown.values(), strict=True):
        made.add_row(*line)
    return made


def write_json(rows: list[Row], path: str) -> None:
    """Appends a line a row; "-" is standard output."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path == "-":
        sys.stdout.write(lines)
        return
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(lines)


@contextmanager
def progress(console: Console, title: str, requests: int) -> Iterator[Callable[[], None]]:
    """A bar while the run lasts, on a terminal; its value is called at each request's end."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=requests)
        yield lambda: bar.advance(task)
