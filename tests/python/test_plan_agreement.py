"""The Python and the C++ reader of a plan agree: what one refuses, so does the other, with a clear error, no crash."""

import copy
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import make_llama
from inflight import plan
from inflight.errors import PlanError
from inflight.executor import Executor, ExecutorError

SMALL = dict(num_threads=1, max_batch_size=2, max_num_tokens=16, kv_cache_max_tokens=64)
DELETE = object()
BOUNDED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    return plan.build(make_llama(folder / "llama", num_hidden_layers=2), folder / "engine")


@pytest.fixture(scope="module")
def document(engine) -> dict:
    return plan.read(engine)


@pytest.fixture
def scratch(engine, tmp_path) -> Path:
    shutil.copytree(engine, tmp_path / "engine")
    return tmp_path / "engine"


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a JSON document but its root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(document: dict, path: tuple, value: object) -> dict:
    result = copy.deepcopy(document)
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    if value is DELETE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return result


def at(document: dict, path: tuple) -> object:
    for key in path:
        document = document[key]
    return document


def python_error(folder: Path) -> str | None:
    try:
        plan.read(folder)
    except PlanError as error:
        return str(error)
    return None


def native_error(folder: Path, **config) -> ExecutorError | None:
    try:
        Executor(folder, **(SMALL | config)).close()
    except ExecutorError as error:
        return error
    return None


def write(folder: Path, text: str | bytes):
    (folder / plan.PLAN_FILE).write_bytes(text.encode() if isinstance(text, str) else text)


def expect_both_refuse(folder: Path, text: str | bytes):
    write(folder, text)
    found, native = python_error(folder), native_error(folder)
    assert found and plan.PLAN_FILE in found
    assert native and native.code in ("invalid_argument", "unsupported"), native
    assert len(str(native)) > 20


LAYERS = ("blocks", "layers")
OP, LAST = (*LAYERS, "ops", 0), (*LAYERS, "ops", -1)
QKV = ("weights", "layers.0.attention.qkv.weight")
SOURCE = (*QKV, "sources", 0)


def op_of(document: dict, name: str) -> tuple:
    """The path of the first op of that name in the layers."""
    return next((*LAYERS, "ops", i) for i, op in enumerate(document["blocks"]["layers"]["ops"]) if op["op"] == name)


OBJECTS = {
    "document": (),
    "network": ("network",),
    "checkpoint": ("checkpoint",),
    "blocks": ("blocks",),
    "layers": LAYERS,
    "op": OP,
    "weight": QKV,
    "source": SOURCE,
    "kv_cache": ("kv_cache", 0),
}
OPTIONAL = {"units", "bos_id", "pad_id", "transpose"}


@pytest.mark.parametrize("place", OBJECTS)
def test_every_required_key_is_required_by_both(scratch, document, place):
    keys = set(at(document, OBJECTS[place])) - OPTIONAL
    assert keys
    for key in sorted(keys):
        expect_both_refuse(scratch, json.dumps(changed(document, (*OBJECTS[place], key), DELETE)))


@pytest.mark.parametrize("place", OBJECTS)
def test_unknown_keys_are_refused_by_both(scratch, document, place):
    expect_both_refuse(scratch, json.dumps(changed(document, (*OBJECTS[place], "surprise"), 1)))


@pytest.mark.parametrize("place", OBJECTS)
def test_wrong_types_are_refused_by_both(scratch, document, place):
    for key, value in at(document, OBJECTS[place]).items():
        for wrong in ([{}], {"a": 1}, 1.5) if not isinstance(value, (dict, list)) else ("text", 7, None):
            if wrong is None and key in OPTIONAL:
                continue
            expect_both_refuse(scratch, json.dumps(changed(document, (*OBJECTS[place], key), wrong)))


VALUES: dict[str, Callable[[dict], tuple[tuple, object]]] = {
    "dtype": lambda d: ((*QKV, "dtype"), "int8"),
    "shard": lambda d: ((*QKV, "shard"), "axis2"),
    "format": lambda d: (("format",), "other-plan"),
    "version": lambda d: (("version",), 2),
    "zero size": lambda d: (("network", "hidden_size"), 0),
    "huge size": lambda d: (("network", "vocabulary_size"), 2**31),
    "negative window": lambda d: (("kv_cache", 0, "window"), -1),
    "shape of three": lambda d: ((*QKV, "shape"), [2, 2, 2]),
    "no sources": lambda d: ((*QKV, "sources"), []),
    "empty name": lambda d: ((*SOURCE, "tensor"), ""),
    "slice axis": lambda d: ((*SOURCE, "slice"), {"axis": 2, "start": 0, "stop": 1}),
    "quantization": lambda d: (("quantization",), "int8"),
    "empty carry": lambda d: ((*LAYERS, "carry"), []),
    "carry of one": lambda d: ((*LAYERS, "carry", 0), ["embedding"]),
    "carry from nowhere": lambda d: ((*LAYERS, "carry", 0, 1), "nowhere"),
    "carry to nowhere": lambda d: ((*LAYERS, "carry", 0, 0), "nowhere"),
    "repeat": lambda d: ((*LAYERS, "repeat"), 5),
    "unit": lambda d: ((*LAYERS, "unit"), 2),
    "layers": lambda d: (("network", "num_layers"), 3),
    "kv layers": lambda d: (("kv_cache",), d["kv_cache"][:1]),
    "kv heads": lambda d: (("kv_cache", 0, "kv_heads"), 4),
    "kv head size": lambda d: (("kv_cache", 1, "head_size"), 16),
    "kv window": lambda d: (("kv_cache", 1, "window"), 9),
    "unknown op": lambda d: ((*OP, "op"), "softplus"),
    "op of another kind": lambda d: ((*op_of(d, "gated_activation"), "op"), "add"),
    "dangling input": lambda d: ((*OP, "inputs", "x"), "nowhere"),
    "dangling weight": lambda d: ((*OP, "weights", "weight"), "nowhere.weight"),
    "layer that is not there": lambda d: ((*OP, "weights", "weight"), "layers.{layer+9}.attention.qkv.weight"),
    "input of a later op": lambda d: ((*op_of(d, "attention"), "inputs", "q"), at(d, LAST)["outputs"]["out"]),
    "name defined twice": lambda d: ((*op_of(d, "attention"), "outputs", "out"), at(d, OP)["outputs"]["out"]),
    "unknown input": lambda d: ((*OP, "inputs", "y"), at(d, OP)["inputs"]["x"]),
    "unknown output": lambda d: ((*OP, "outputs", "more"), "more"),
    "unknown weight": lambda d: ((*OP, "weights", "scale"), "embedding.weight"),
    "unknown attribute": lambda d: ((*OP, "attributes", "alpha"), 1.0),
    "missing attribute": lambda d: ((*op_of(d, "attention"), "attributes", "scale"), DELETE),
    "layer outside the unit": lambda d: ((*op_of(d, "attention"), "attributes", "layer"), 1),
    "residual only in": lambda d: ((*op_of(d, "rms_norm"), "outputs", "residual"), DELETE),
    "no logits": lambda d: (("blocks", "epilogue", len(d["blocks"]["epilogue"]) - 1, "outputs", "out"), "lodgits"),
    "prologue tensor in the layers": lambda d: (("blocks", "prologue", 0, "outputs", "out"), "elsewhere"),
    "output of nothing": lambda d: (("outputs",), [{"name": "a", "tensor": "nowhere", "block": "layers"}]),
    "output block": lambda d: (("outputs",), [{"name": "a", "tensor": "embedding", "block": "middle"}]),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_are_refused_by_both(scratch, document, case):
    path, value = VALUES[case](document)
    expect_both_refuse(scratch, json.dumps(changed(document, path, value)))


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '"plan"', "[" * 5000, b"\xff\xfe\x00", "{}", '{"version": 7}']
)
def test_texts_that_are_no_plan_are_refused_by_both(scratch, text):
    expect_both_refuse(scratch, text)


def test_a_valid_plan_is_accepted_by_both(scratch):
    assert python_error(scratch) is None
    assert native_error(scratch) is None


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(-3, 3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@BOUNDED
@given(data=st.data())
def test_what_python_refuses_at_random_places_the_engine_refuses_too(scratch, document, data):
    """The engine may be stricter (it knows the weights' shapes); it is never laxer, and it never crashes."""
    path = data.draw(st.sampled_from(list(places(document))))
    kept = [other for other in places(document) if type(at(document, other)) is type(at(document, path))]
    value = data.draw(st.one_of(st.just(DELETE), JUNK, st.sampled_from(kept).map(lambda other: at(document, other))))
    write(scratch, json.dumps(changed(document, path, value)))
    found, native = python_error(scratch), native_error(scratch)
    assert native or not found, f"at {path}, {value!r}: only Python refuses it: {found}"
    assert native is None or native.code in ("invalid_argument", "unsupported", "not_found"), native


def weights_file(document: dict) -> Path:
    return Path(document["checkpoint"]["directory"]) / document["checkpoint"]["files"][0]


@pytest.fixture
def own_weights(scratch, document) -> Path:
    """The weights file of an engine folder whose checkpoint is its own."""
    file = weights_file(document)
    shutil.copyfile(file, scratch / file.name)
    write(scratch, json.dumps(changed(document, ("checkpoint", "directory"), ".")))
    assert native_error(scratch) is None
    return scratch / file.name


def expect_refused_weights(file: Path, content: bytes):
    file.write_bytes(content)
    error = native_error(file.parent)
    assert error, "the engine takes it"
    assert error.code in ("invalid_argument", "not_found", "unsupported"), error
    assert file.name in str(error)


@BOUNDED
@given(header=st.binary(max_size=80), length=st.none() | st.integers(0, 2**64 - 1), data=st.binary(max_size=40))
def test_garbage_headers_are_refused_and_nothing_crashes(own_weights, header, length, data):
    size = len(header) if length is None else length
    expect_refused_weights(own_weights, struct.pack("<Q", size) + header + data)


@BOUNDED
@given(data=st.data())
def test_headers_changed_at_random_never_crash_the_engine(own_weights, document, data):
    original = weights_file(document).read_bytes()
    (size,) = struct.unpack_from("<Q", original)
    header = json.loads(original[8 : 8 + size])
    path = data.draw(st.sampled_from([place for place in places(header) if place[0] != "__metadata__"]))
    value = data.draw(st.one_of(st.just(DELETE), JUNK))
    text = json.dumps(changed(header, path, value)).encode()
    own_weights.write_bytes(struct.pack("<Q", len(text)) + text + original[8 + size :])
    error = native_error(own_weights.parent)
    assert error is None or error.code in ("invalid_argument", "not_found", "unsupported"), error


@BOUNDED
@given(data=st.data())
def test_bytes_flipped_in_the_header_never_crash_the_engine(own_weights, document, data):
    content = bytearray(weights_file(document).read_bytes())
    (size,) = struct.unpack_from("<Q", content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 7 + size))] = data.draw(st.integers(0, 255))
    own_weights.write_bytes(content)
    error = native_error(own_weights.parent)
    assert error is None or error.code in ("invalid_argument", "not_found", "unsupported"), error


def test_weights_cut_short_anywhere_are_refused(own_weights, document):
    content = weights_file(document).read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        expect_refused_weights(own_weights, content[:size])
