"""Runs a plan on one whole sequence with numpy in float32, one rank: the reference that proves plans right.

Attention sees the sequence at once, so there is no cache; rope_kv_write keeps the layer's keys and values.
"""

import json
import math
import re
import struct
from pathlib import Path

import numpy as np

from inflight import plan as plans

_STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        raw = np.frombuffer(data[start:stop], _STORED[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = raw.astype(np.float32).reshape(entry["shape"])
    return tensors


def load_weights(plan: dict, directory: Path) -> dict[str, np.ndarray]:
    stored = {file: read_safetensors(directory / file) for file in plan["checkpoint"]["files"]}
    weights = {}
    for name, recipe in plan["weights"].items():
        parts = []
        for source in recipe["sources"]:
            part = stored[source["file"]][source["tensor"]]
            if "slice" in source:
                cut = source["slice"]
                part = np.take(part, range(cut["start"], cut["stop"]), axis=cut["axis"])
            parts.append(part.T if source.get("transpose") else part)
        weights[name] = np.concatenate(parts)
        assert list(weights[name].shape) == recipe["shape"], name
    return weights


class Interpreter:
    def __init__(self, engine_dir: Path):
        self.plan = plans.read(engine_dir)
        self.weights = load_weights(self.plan, Path(engine_dir) / self.plan["checkpoint"]["directory"])
        self.cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.outputs: dict[str, list[np.ndarray]] = {}

    def run(self, token_ids, logits_rows=None) -> np.ndarray:
        """The logits [rows, vocabulary] of all tokens, or of those listed. Marked tensors go to self.outputs."""
        count = len(token_ids)
        rows = np.arange(count) if logits_rows is None else np.asarray(logits_rows)
        outside = {"token_ids": np.asarray(token_ids), "positions": np.arange(count), "logits_rows": rows}
        self.outputs = {output["name"]: [] for output in self.plan["outputs"]}
        layers = self.plan["blocks"]["layers"]
        tensors = self._block("prologue", self.plan["blocks"]["prologue"], dict(outside), 0)
        for unit in range(layers["repeat"]):
            entry = outside | {name: tensors[name] for name, _ in layers["carry"]}
            done = self._block("layers", layers["ops"], entry, unit * layers["unit"])
            tensors = {name: done[leave] for name, leave in layers["carry"]}
        return self._block("epilogue", self.plan["blocks"]["epilogue"], outside | tensors, 0)["logits"]

    def _block(self, block: str, ops: list[dict], tensors: dict, layer: int) -> dict:
        for op in ops:
            inputs = {key: tensors[name] for key, name in op["inputs"].items()}
            weights = {key: self.weights[_at_layer(name, layer)] for key, name in op["weights"].items()}
            results = getattr(self, "_" + op["op"])(op["attributes"] | {"first_layer": layer}, **inputs, **weights)
            results = results if isinstance(results, dict) else {next(iter(op["outputs"])): results}
            tensors |= {name: results[key] for key, name in op["outputs"].items()}
        for output in self.plan["outputs"]:
            if output["block"] == block:
                self.outputs[output["name"]].append(tensors[output["tensor"]])
        return tensors

    def _embedding(self, attributes, ids, table):
        return table[ids]

    def _linear(self, attributes, x, weight, bias=0.0):
        return x @ weight.T + bias

    def _rms_norm(self, attributes, x, weight, residual=None):
        total = x if residual is None else x + residual
        mean = np.mean(total**2, axis=-1, keepdims=True)
        return {"out": total / np.sqrt(mean + attributes["epsilon"]) * weight, "residual": total}

    def _layer_norm(self, attributes, x, weight, bias=0.0, residual=None):
        total = x if residual is None else x + residual
        centred = total - np.mean(total, axis=-1, keepdims=True)
        variance = np.mean(centred**2, axis=-1, keepdims=True)
        return {"out": centred / np.sqrt(variance + attributes["epsilon"]) * weight + bias, "residual": total}

    def _rope_kv_write(self, attributes, qkv):
        heads, kv_heads, size = (attributes[key] for key in ("num_heads", "num_kv_heads", "head_size"))
        split = qkv.reshape(len(qkv), heads + 2 * kv_heads, size).transpose(1, 0, 2)  # [heads, T, size]
        q, k, v = split[:heads], split[heads : heads + kv_heads], split[heads + kv_heads :]
        self.cache[attributes["first_layer"] + attributes["layer"]] = (_rotate(k, attributes), v)
        return _rotate(q, attributes).transpose(1, 0, 2).reshape(len(qkv), heads * size)

    def _attention(self, attributes, q):
        heads, kv_heads, size = (attributes[key] for key in ("num_heads", "num_kv_heads", "head_size"))
        layer = attributes["first_layer"] + attributes["layer"]
        k, v = (np.repeat(part, heads // kv_heads, 0) for part in self.cache[layer])
        queries = q.reshape(len(q), heads, size).transpose(1, 0, 2)
        scores = queries @ k.transpose(0, 2, 1) * attributes["scale"]  # [heads, T, T]
        if attributes["soft_cap"]:
            scores = attributes["soft_cap"] * np.tanh(scores / attributes["soft_cap"])
        distance = np.arange(len(q))[:, None] - np.arange(len(q))[None, :]  # query - key
        if attributes["alibi_slopes"]:
            scores = scores - np.array(attributes["alibi_slopes"], np.float32)[:, None, None] * distance
        hidden = (distance < 0) | (bool(attributes["window"]) & (distance >= attributes["window"]))
        scores = np.where(hidden, -np.inf, scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out = shares / shares.sum(-1, keepdims=True) @ v
        return out.transpose(1, 0, 2).reshape(q.shape)

    def _activation(self, attributes, x):
        return _ACTIVATIONS[attributes["activation"]](x)

    def _gated_activation(self, attributes, x):
        gate, up = np.split(x, 2, axis=-1)
        return _ACTIVATIONS[attributes["activation"]](gate) * up

    def _add(self, attributes, a, b):
        return a + b

    def _gather_rows(self, attributes, x, rows):
        return x[rows]

    def _all_reduce(self, attributes, x):
        return x

    _all_gather = _all_reduce


_erf = np.vectorize(math.erf, otypes=[np.float32])

_ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def _rotate(x: np.ndarray, attributes: dict) -> np.ndarray:
    """x [heads, T, D]; pairs (i, i + R/2)."""
    frequencies = np.array(attributes["inverse_frequencies"], np.float32)
    half = len(frequencies)
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * frequencies  # [T, R/2]
    cos, sin = np.cos(angles) * attributes["rope_scale"], np.sin(angles) * attributes["rope_scale"]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(np.float32)


def _at_layer(pattern: str, layer: int) -> str:
    return re.sub(r"\{layer(?:\+(\d+))?\}", lambda match: str(layer + int(match[1] or 0)), pattern)
