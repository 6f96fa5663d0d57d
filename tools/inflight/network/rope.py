"""Rotary position embedding (Su et al. 2021, "RoFormer"): inverse frequencies from a model's config.

Frequencies are rounded to float32 after each step, as the float32 arithmetic that the models were trained with does.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inflight.errors import UnsupportedError


@dataclass(frozen=True)
class Rope:
    """One inverse frequency a pair: the leading 2 · len elements of a head turn. scale: factor on cos and sin."""

    inverse_frequencies: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False


NO_ROPE = Rope(())


def rope_from_config(config: Mapping, head_size: int) -> Rope:
    """Reads `rope_parameters`, or the older `rope_theta` with `rope_scaling`.

    Kinds whose frequencies depend on the length at run time raise UnsupportedError.
    """
    parameters = _parameters(config)
    kind = parameters["rope_type"]
    if kind not in _KINDS:
        why = " (its frequencies depend on the length at run time)" if kind in ("dynamic", "longrope") else ""
        raise UnsupportedError(f"rope_type {kind!r} is not supported{why}; supported: {', '.join(_KINDS)}")
    missing = [key for key in _REQUIRED[kind] if parameters.get(key) is None]
    if missing:
        raise UnsupportedError(f"rope_type {kind!r} needs {', '.join(missing)}; found {sorted(parameters)}")
    rotated = int(head_size * parameters.get("partial_rotary_factor", 1.0))
    frequencies, scale = _KINDS[kind](_default(parameters["rope_theta"], rotated), parameters, rotated)
    return Rope(tuple(frequencies), scale)


def _parameters(config: Mapping) -> dict:
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedError(f"rope_parameters by layer type are not supported, found {sorted(found)}")
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    for key, default in (("rope_theta", 10000.0), ("partial_rotary_factor", 1.0)):
        found[key] = found.get(key) or config.get(key) or default
    if not found.get("original_max_position_embeddings"):
        found["original_max_position_embeddings"] = config.get("max_position_embeddings")
    return found


def _default(base: float, rotated: int) -> list[float]:
    return [_f32(1 / _f32(base ** _f32(i / rotated))) for i in range(0, rotated, 2)]


def _unscaled(frequencies: list[float], parameters: Mapping, rotated: int) -> tuple[list[float], float]:
    return frequencies, 1.0


def _linear(frequencies: list[float], parameters: Mapping, rotated: int) -> tuple[list[float], float]:
    """Position interpolation (Chen et al. 2023): all positions shrink by the factor."""
    return [_f32(frequency / parameters["factor"]) for frequency in frequencies], 1.0


def _llama3(frequencies: list[float], parameters: Mapping, rotated: int) -> tuple[list[float], float]:
    """Long waves shrink by the factor, short ones stay, those between are blended (Llama 3.1's model card)."""
    factor, length = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]

    def scaled(frequency: float) -> float:
        waves = length * frequency / (2 * math.pi)
        kept = min(max((waves - low) / (high - low), 0.0), 1.0)
        return _f32((1 - kept) * frequency / factor + kept * frequency)

    return [scaled(frequency) for frequency in frequencies], 1.0


def _yarn(frequencies: list[float], parameters: Mapping, rotated: int) -> tuple[list[float], float]:
    """YaRN (Peng et al. 2023): interpolates by wavelength and sharpens attention through the scale of cos and sin."""
    length, base = parameters["original_max_position_embeddings"], parameters["rope_theta"]
    factor = parameters["factor"]

    def pair_of(rotations: float) -> float:
        return rotated * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_of(parameters.get("beta_fast") or 32), pair_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    width = (high - low) or 0.001
    scaled = []
    for pair, frequency in enumerate(frequencies):
        interpolated = min(max((pair - low) / width, 0.0), 1.0)
        scaled.append(_f32(frequency / factor * interpolated + frequency * (1 - interpolated)))
    return scaled, _yarn_scale(parameters)


def _yarn_scale(parameters: Mapping) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def sharpening(weight: float) -> float:
        factor = parameters["factor"]
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, weight_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return sharpening(weight) / sharpening(weight_all) if weight and weight_all else sharpening(1.0)


def _f32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


_KINDS: dict[str, Callable[[list[float], Mapping, int], tuple[list[float], float]]] = {
    "default": _unscaled,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
