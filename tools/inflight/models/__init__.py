"""The model families: one file each, and one line here."""

from collections.abc import Callable, Mapping

from inflight.errors import UnsupportedError
from inflight.models import gpt2, llama
from inflight.network import Definition

FAMILIES: dict[str, Callable[[Mapping], Definition]] = {
    "gpt2": gpt2.define,
    "llama": llama.define,
}


def define(config: Mapping) -> Definition:
    """The network of a Hugging Face config, by its model_type."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedError(f"config.json: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    if config.get("quantization_config"):
        raise UnsupportedError("config.json: quantization_config is not supported; wanted an unquantized checkpoint")
    return FAMILIES[family](config)
