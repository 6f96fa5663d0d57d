"""The network of a plan as readable tables: facts, ops with their weights, totals, memory per token, marked outputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table

from inflight import plan as plans
from inflight.checkpoint import DTYPE_BYTES
from inflight.network.graph import at_layer


@dataclass(frozen=True)
class Totals:
    """parameters counts a tied weight once; weight_bytes is what one rank loads, where a tied weight lies twice."""

    parameters: int
    weight_bytes: int
    kv_elements_per_token: int


def inspect(path: Path | str, console: Console | None = None):
    """Prints the tables of an engine folder or a Hugging Face checkpoint."""
    console = console or Console()
    console.print(render(plans.read(plans.ensure(path))))


def totals(plan: Mapping) -> Totals:
    return Totals(
        plan["network"]["num_parameters"],
        sum(prod(weight["shape"]) * DTYPE_BYTES[weight["dtype"]] for weight in plan["weights"].values()),
        sum(2 * layer["kv_heads"] * layer["head_size"] for layer in plan["kv_cache"]),
    )


def render(plan: Mapping) -> RenderableType:
    parts: list[RenderableType] = [_facts(plan), _ops(plan)]
    if plan["outputs"]:
        parts.append(_outputs(plan))
    return Group(*parts)


def _facts(plan: Mapping) -> Table:
    network, sums = plan["network"], totals(plan)
    table = Table(title="network", show_header=False, title_justify="left")
    kv_float32, kv_bfloat16 = 4 * sums.kv_elements_per_token, 2 * sums.kv_elements_per_token
    rows = {
        "family": network["family"],
        "layers": network["num_layers"],
        "hidden size": network["hidden_size"],
        "vocabulary": network["vocabulary_size"],
        "positions": network["max_positions"],
        "attention": _attention(plan),
        "end / begin / pad ids": f"{network['eos_ids']} / {network.get('bos_id')} / {network.get('pad_id')}",
        "parameters": f"{sums.parameters:,}",
        "weights": f"{_bytes(sums.weight_bytes)}, mostly {network['dtype']}",
        "KV cache per token": f"{_bytes(kv_float32)} (float32, CPU), {_bytes(kv_bfloat16)} (bfloat16, GPU)",
        "checkpoint": f"{plan['checkpoint']['directory']} ({len(plan['checkpoint']['files'])} files)",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _attention(plan: Mapping) -> str:
    """ "4 heads, 2 KV heads of 64", once for each different layer of the unit."""
    kinds = []
    for op in plan["blocks"]["layers"]["ops"]:
        if op["op"] == "attention":
            found = op["attributes"]
            heads = f"{found['num_heads']} heads, {found['num_kv_heads']} KV heads of {found['head_size']}"
            kinds.append(heads + (f", window {found['window']}" if found["window"] else ""))
    return "; ".join(dict.fromkeys(kinds))


def _ops(plan: Mapping) -> Table:
    layers = plan["blocks"]["layers"]
    table = Table(title="ops", title_justify="left")
    for column in ("op", "reads", "writes", "weight", "shape", "dtype", "ranks"):
        table.add_column(column, overflow="fold")
    table.add_column("parameters", justify="right")
    unit = f"{layers['repeat']} x unit of {layers['unit']}" if layers["unit"] > 1 else f"x {layers['repeat']}"
    _add_block(table, plan, "prologue", plan["blocks"]["prologue"])
    _add_block(table, plan, f"layers ({unit})", layers["ops"])
    _add_block(table, plan, "epilogue", plan["blocks"]["epilogue"])
    return table


def _add_block(table: Table, plan: Mapping, title: str, ops: Iterable[Mapping]):
    table.add_section()
    block_parameters = sum(_parameters(plan, name) for op in ops for name in op["weights"].values())
    table.add_row(f"[bold]{title}[/bold]", *[""] * 6, f"[bold]{block_parameters:,}[/bold]")
    for op in ops:
        reads, writes = ", ".join(op["inputs"].values()), ", ".join(op["outputs"].values())
        cells = [_weight_cells(plan, name) for name in op["weights"].values()] or [("", "", "", "", "")]
        for line, weight in enumerate(cells):
            table.add_row(*(("", "", "") if line else (op["op"], reads, writes)), *weight)


def _weight_cells(plan: Mapping, pattern: str) -> tuple[str, str, str, str, str]:
    weight = plan["weights"][at_layer(pattern, 0)]
    shape = " x ".join(map(str, weight["shape"]))
    return pattern, shape, weight["dtype"], weight["shard"], f"{_parameters(plan, pattern):,}"


def _parameters(plan: Mapping, pattern: str) -> int:
    return prod(plan["weights"][at_layer(pattern, 0)]["shape"])


def _outputs(plan: Mapping) -> Table:
    table = Table("output", "tensor", "block", title="marked outputs", title_justify="left")
    for output in plan["outputs"]:
        table.add_row(output["name"], output["tensor"], output["block"])
    return table


def _bytes(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.1f} {units[0]}" if units[0] != "B" else f"{count} B"
