"""plan.json: writing it from a checkpoint, reading it, and finding or making the engine folder of any path.

A plan copies no weights; it names the safetensors of the checkpoint. plan.schema.json defines the document.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import jsonschema

from inflight import __version__
from inflight.checkpoint import Checkpoint, bind, implied, weight_files
from inflight.errors import InflightError, PlanError
from inflight.models import define as define_from_config
from inflight.network import Definition, Facts, trace
from inflight.network.graph import BLOCKS, Graph, Op, Weight
from inflight.passes import run_passes
from inflight.plan_check import check_plan, kv_cache_entries

PLAN_FILE = "plan.json"
CACHE_DIRECTORY = Path.home() / ".cache" / "inflight" / "plans"

_COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def build(
    checkpoint: Path | str,
    out_dir: Path | str,
    *,
    force: bool = False,
    relative: bool = False,
    define: Callable[[Mapping], Definition] = define_from_config,
    warn: Callable[[str], None] = lambda text: print(f"warning: {text}", file=sys.stderr),
) -> Path:
    """Writes the engine folder of a Hugging Face checkpoint: plan.json, tokenizer and config files. Returns out_dir.

    force: replace an existing plan. relative: write the checkpoint's place relative to out_dir, so that both can move
    together. define: config -> Definition, for networks of one's own. warn: receives lines about unused tensors.
    """
    source, target = Path(checkpoint), Path(out_dir)
    _require_absent(target, force)
    opened = Checkpoint.open(source)
    definition = define(opened.config)
    directory = os.path.relpath(source.resolve(), target.resolve()) if relative else str(source.resolve())
    _write_bound(trace(definition.network), definition, opened, directory, target, warn)
    _copy_files(source, target)
    return target


def build_without_weights(
    config: Mapping,
    out_dir: Path | str,
    *,
    force: bool = False,
    dtype: str = "BF16",
    define: Callable[[Mapping], Definition] = define_from_config,
) -> Path:
    """Writes the plan of a config whose weights are nowhere: for an executor that draws random ones. Returns out_dir.

    force and define: as for build. dtype: of the weights, as safetensors names it.
    """
    target = Path(out_dir)
    _require_absent(target, force)
    definition = define(config)
    graph = trace(definition.network)
    _write_bound(graph, definition, implied(config, definition, graph, dtype), ".", target)
    return target


def _require_absent(target: Path, force: bool):
    if (target / PLAN_FILE).exists() and not force:
        raise PlanError(f"{target / PLAN_FILE} exists already; give --force to replace it")


def _write_bound(
    graph: Graph,
    definition: Definition,
    checkpoint: Checkpoint,
    directory: str,
    target: Path,
    warn: Callable[[str], None] = lambda text: None,
):
    bound = run_passes(bind(graph, definition, checkpoint, warn))
    target.mkdir(parents=True, exist_ok=True)
    write(document(bound, definition.facts, checkpoint, directory), target)


def ensure(path: Path | str, cache_dir: Path | str | None = None) -> Path:
    """The folder itself if it holds a plan, else the folder of a plan made from this checkpoint, kept in a cache.

    The cache's key changes with the checkpoint's config and weight files and with this package.
    """
    path = Path(path)
    if (path / PLAN_FILE).is_file():
        return path
    if not path.is_dir():
        raise PlanError(f"{path}: not a folder; wanted an engine folder (with {PLAN_FILE}) or a checkpoint")
    parent = CACHE_DIRECTORY if cache_dir is None else Path(cache_dir)
    target = parent / f"{path.resolve().name}-{_cache_key(path)}"
    if (target / PLAN_FILE).is_file():
        return target
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".building-") as building:
        made = build(path, Path(building) / target.name)
        try:
            made.rename(target)
        except OSError:
            if not (target / PLAN_FILE).is_file():
                raise
    return target


def document(graph: Graph, facts: Facts, checkpoint: Checkpoint, directory: str) -> dict:
    """The plan of a graph after the passes."""
    files = {source.file for weight in graph.weights.values() for source in weight.sources}
    return {
        "format": "inflight-plan",
        "version": 1,
        "network": _network(graph, facts, checkpoint),
        "checkpoint": {"directory": directory, "files": sorted(files)},
        "weights": {name: _weight(weight) for name, weight in graph.weights.items()},
        "blocks": {
            "prologue": [_op(op) for op in graph.prologue],
            "layers": {
                "repeat": graph.repeat,
                "unit": graph.unit,
                "carry": [list(pair) for pair in graph.carry],
                "ops": [_op(op) for op in graph.layers],
            },
            "epilogue": [_op(op) for op in graph.epilogue],
        },
        "kv_cache": kv_cache_entries([_op(op) for op in graph.layers], graph.repeat, graph.unit),
        "quantization": None,
        "outputs": [
            {"name": output.name, "tensor": output.tensor, "block": output.block}
            for block in BLOCKS
            for output in graph.outputs
            if output.block == block
        ],
    }


def write(plan: Mapping, directory: Path):
    """Checks the plan and writes plan.json in one step, so that a reader sees the old one or the new one."""
    validate(plan, directory / PLAN_FILE)
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".plan-", delete=False, encoding="utf-8") as file:
        json.dump(plan, file, indent=1)
        file.write("\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(directory / PLAN_FILE)


def read(directory: Path | str) -> dict:
    """The checked plan of an engine folder."""
    path = Path(directory) / PLAN_FILE
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    validate(plan, path)
    return plan


def validate(plan: Mapping, path: Path):
    """Raises PlanError unless the plan fits the schema and refers only to what it defines."""
    error = jsonschema.exceptions.best_match(_validator().iter_errors(plan))
    if error is not None:
        raise PlanError(f"{path}: at {error.json_path}: {error.message[:200]}")
    try:
        check_plan(plan)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


@cache
def _validator() -> jsonschema.Draft7Validator:
    schema = Path(__file__).with_name("plan.schema.json")
    return jsonschema.Draft7Validator(json.loads(schema.read_text(encoding="utf-8")))


def _network(graph: Graph, facts: Facts, checkpoint: Checkpoint) -> dict:
    eos = _token(checkpoint, "eos_token_id")
    return {
        "family": facts.family,
        "vocabulary_size": facts.vocabulary_size,
        "hidden_size": facts.hidden_size,
        "num_layers": graph.num_layers,
        "max_positions": facts.max_positions,
        "eos_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "bos_id": _token(checkpoint, "bos_token_id"),
        "pad_id": _token(checkpoint, "pad_token_id"),
        "dtype": _commonest_dtype(graph),
        "num_parameters": _num_parameters(graph),
    }


def _token(checkpoint: Checkpoint, key: str) -> int | list[int] | None:
    found = checkpoint.generation_config.get(key)
    return checkpoint.config.get(key) if found is None else found


def _commonest_dtype(graph: Graph) -> str:
    elements: Counter[str] = Counter()
    for weight in graph.weights.values():
        elements[weight.dtype] += _elements(weight)
    return elements.most_common(1)[0][0]


def _num_parameters(graph: Graph) -> int:
    """Weights with the same recipe (a tied head and its embedding) count once."""
    recipes = {
        tuple((source.file, source.tensor, source.slice) for source in weight.sources): _elements(weight)
        for weight in graph.weights.values()
    }
    return sum(recipes.values())


def _elements(weight: Weight) -> int:
    return weight.shape[0] * (weight.shape[1] if len(weight.shape) > 1 else 1)


def _weight(weight: Weight) -> dict:
    sources = []
    for source in weight.sources:
        entry: dict = {"file": source.file, "tensor": source.tensor}
        if source.slice:
            cut = source.slice
            entry["slice"] = {"axis": cut.axis, "start": cut.start, "stop": cut.stop}
        if source.transpose:
            entry["transpose"] = True
        if source.units:
            entry["units"] = source.units
        sources.append(entry)
    return {"dtype": weight.dtype, "shape": list(weight.shape), "shard": weight.shard, "sources": sources}


def _op(op: Op) -> dict:
    return {
        "op": op.op,
        "inputs": dict(op.inputs),
        "weights": dict(op.weights),
        "outputs": dict(op.outputs),
        "attributes": dict(op.attributes),
    }


def _copy_files(source: Path, target: Path):
    for pattern in _COPIED_FILES:
        for file in source.glob(pattern):
            destination = target / file.name
            if file.is_file() and file.resolve() != destination.resolve():
                shutil.copyfile(file, destination)


def _cache_key(checkpoint: Path) -> str:
    package = Path(__file__).parent
    watched = [checkpoint / "config.json", *(checkpoint / name for name in weight_files(checkpoint))]
    watched += [file for pattern in _COPIED_FILES for file in sorted(checkpoint.glob(pattern))]
    watched += [package / "plan.schema.json", *sorted(package.rglob("*.py"))]
    state = [__version__, str(checkpoint.resolve())]
    for file in watched:
        if not file.is_file():
            raise InflightError(f"{checkpoint}: has no {file.name}; wanted a Hugging Face checkpoint")
        stat = file.stat()
        state.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
