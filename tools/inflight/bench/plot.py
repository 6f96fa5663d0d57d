"""Throughput against latency, a line for each engine and model.

python -m inflight.bench.plot ROWS.jsonl PLOT.svg draws what an earlier bench wrote with --json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inflight.errors import InflightError

# Title, unit, and the latencies drawn: row's key -> (style, name).
_PANELS = (
    ("Time per output token", {"tpot_ms_p50": ("o-", "median"), "tpot_ms_p99": ("x:", "99th percentile")}),
    ("Time to first token", {"ttft_ms_p50": ("o-", "median"), "ttft_ms_p99": ("x:", "99th percentile")}),
)


def require_matplotlib() -> Any:
    """matplotlib's figure module. Raises InflightError when it is not installed."""
    try:
        from matplotlib import figure
    except ImportError:
        raise InflightError("a plot needs matplotlib: pip install 'inflight[plot]'") from None
    return figure


def draw(rows: Iterable[Mapping], path: Path) -> None:
    """Writes the plot of JSON rows as the file's ending says (.svg, .png, .pdf)."""
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        lengths = row.get("lengths", f"{row['isl']}/{row['osl']}")
        groups.setdefault(f"{row['engine']}: {row['model']} {lengths}", []).append(row)
    figure = require_matplotlib().Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (title, latencies) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for index, (group, points) in enumerate(groups.items()):
            _draw_group(axes, f"C{index}", group, points, latencies)
        axes.set(title=title, xlabel="ms", ylabel="output tokens/s", ylim=(0, None))
        axes.set_xscale("log", subs=(2, 5))  # where the axis has small ticks
        for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            ticks("{x:g}")
        axes.tick_params(axis="x", which="minor", labelsize="x-small")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InflightError(f"{path}: {error}") from None


def _draw_group(axes: Any, color: str, group: str, points: list[Mapping], latencies: Mapping) -> None:
    for key, (style, name) in latencies.items():
        drawn = [point for point in points if key in point]
        x, y = [point[key] for point in drawn], [point["out_tok_s"] for point in drawn]
        axes.plot(x, y, style, color=color, label=f"{group}, {name}")
        if style.startswith("o"):
            for point, place in zip(drawn, zip(x, y, strict=True), strict=True):
                axes.annotate(_label(point), place, textcoords="offset points", xytext=(4, -10), fontsize="x-small")


def _label(row: Mapping) -> str:
    """What the sweep varied."""
    if row.get("rate") is not None:
        return f"{row['rate']:g}/s"
    return str(row["n"] if row["concurrency"] is None else row["concurrency"])


def main(rows: str, path: str) -> None:
    draw((json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()), Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
