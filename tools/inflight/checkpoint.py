"""Hugging Face checkpoint folders: config.json and safetensors, of which only the headers are read."""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from inflight.errors import CheckpointError, UnsupportedError
from inflight.network.definition import Definition
from inflight.network.graph import Graph, Source, Weight, at_layer

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """dtype as safetensors names it ("BF16")."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    directory: Path
    config: Mapping
    generation_config: Mapping
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, directory: Path | str) -> "Checkpoint":
        directory = Path(directory)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: not a folder; wanted a Hugging Face checkpoint")
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory}: has no config.json; wanted a Hugging Face checkpoint")
        generation = directory / "generation_config.json"
        return cls(
            directory,
            read_json(directory / "config.json"),
            read_json(generation) if generation.is_file() else {},
            _read_tensors(directory),
        )

    @property
    def files(self) -> list[str]:
        return sorted({tensor.file for tensor in self.tensors.values()})


def implied(config: Mapping, definition: Definition, graph: Graph, dtype: str = "BF16") -> Checkpoint:
    """The checkpoint that a freshly traced graph asks for: one file, which need not exist, in the folder "."."""
    sources = _sources_by_name(graph, definition.checkpoint_names)
    tensors = {}
    for name, weight in graph.weights.items():
        source = sources.get(name) or weight.sources[0]
        tensors[source.tensor] = StoredTensor(_SINGLE_FILE, dtype, stored_shape(weight.shape, source))
    return Checkpoint(Path(), config, {}, tensors)


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files: those of the index if there is one, else the single file."""
    if (directory / _INDEX_FILE).is_file():
        return sorted(set(_weight_map(directory).values()))
    if (directory / _SINGLE_FILE).is_file():
        return [_SINGLE_FILE]
    raise CheckpointError(f"{directory}: has neither {_SINGLE_FILE} nor {_INDEX_FILE}")


def read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: found a {type(document).__name__}, wanted an object")
    return document


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: 8 bytes little-endian header length, then the header as JSON."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length_bytes = file.read(8)
            length = struct.unpack("<Q", length_bytes)[0] if len(length_bytes) == 8 else size
            if length + 8 > size:
                raise CheckpointError(f"{path}: the header wants {length} bytes, the file has {size}; truncated?")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    _check_extent(path, header, size - 8 - length)
    return {name: StoredTensor(path.name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def _check_extent(path: Path, header: Mapping, data_bytes: int):
    for name, entry in header.items():
        if entry["data_offsets"][1] > data_bytes:
            end = entry["data_offsets"][1]
            raise CheckpointError(f"{path}: tensor {name!r} ends at byte {end} of {data_bytes} of data; truncated?")


def _weight_map(directory: Path) -> dict[str, str]:
    weight_map = read_json(directory / _INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{directory / _INDEX_FILE}: has no weight_map")
    return weight_map


def _read_tensors(directory: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        tensors |= read_header(directory / file)
    if (directory / _INDEX_FILE).is_file():
        missing = [f"{name} ({file})" for name, file in _weight_map(directory).items() if name not in tensors]
        if missing:
            raise CheckpointError(f"{directory}: the index lists tensors that its files lack: {_listing(missing)}")
    return tensors


def bind(graph: Graph, definition: Definition, checkpoint: Checkpoint, warn: Callable[[str], None]) -> Graph:
    """Fills in where each weight of a freshly traced graph lies, and its dtype.

    Missing tensors and wrong shapes raise CheckpointError naming all of them; leftovers are reported through warn.
    """
    binder = _Binder(checkpoint, definition.optional_prefix)
    sources = _sources_by_name(graph, definition.checkpoint_names)
    weights = {name: binder.bind(name, weight, sources.get(name)) for name, weight in graph.weights.items()}
    if binder.problems:
        raise CheckpointError(f"{checkpoint.directory} does not fit the network: {_listing(binder.problems, '; ')}")
    leftover = sorted(checkpoint.tensors.keys() - binder.used)
    unknown = [name for name in leftover if not any(re.search(pattern, name) for pattern in definition.ignorable)]
    if unknown:
        warn(f"{checkpoint.directory}: {len(unknown)} tensors are not used by the network: {_listing(unknown)}")
    return replace(graph, weights=weights)


class _Binder:
    def __init__(self, checkpoint: Checkpoint, optional_prefix: str):
        self.tensors = checkpoint.tensors
        self.prefix = optional_prefix
        self.used: set[str] = set()
        self.problems: list[str] = []

    def bind(self, name: str, weight: Weight, source: Source | None) -> Weight:
        source = source or weight.sources[0]
        stored_name = self._stored_name(source.tensor)
        wanted = stored_shape(weight.shape, source)
        if stored_name is None:
            self.problems.append(f"tensor {source.tensor!r} {list(wanted)} is missing (for weight {name!r})")
            return weight
        self.used.add(stored_name)
        stored = self.tensors[stored_name]
        if stored.shape != wanted:
            found = list(stored.shape)
            self.problems.append(f"tensor {stored_name!r} is {found}, wanted {list(wanted)} (for weight {name!r})")
        if stored.dtype not in DTYPES:
            raise UnsupportedError(f"tensor {stored_name!r} is {stored.dtype}, wanted one of {', '.join(DTYPES)}")
        bound = replace(source, tensor=stored_name, file=stored.file)
        return replace(weight, sources=(bound,), dtype=DTYPES[stored.dtype])

    def _stored_name(self, name: str) -> str | None:
        bare = name.removeprefix(self.prefix)
        return next((candidate for candidate in (name, bare) if candidate in self.tensors), None)


def stored_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """The shape that the stored tensor must have so that the source yields `shape`."""
    sizes = list(reversed(shape) if source.transpose else shape)
    if source.slice:
        sizes[source.slice.axis] = source.slice.extent
    return tuple(sizes)


def _sources_by_name(graph: Graph, table: Mapping[str, str | Source]) -> dict[str, Source]:
    """The definition's table with "{layer}" filled in for every layer."""
    sources: dict[str, Source] = {}
    for pattern, entry in table.items():
        source = Source(entry) if isinstance(entry, str) else entry
        for layer in range(graph.num_layers):
            sources[at_layer(pattern, layer)] = replace(source, tensor=at_layer(source.tensor, layer))
    return sources


def _listing(items: Iterable[str], separator: str = ", ", most: int = 5) -> str:
    items = list(items)
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
