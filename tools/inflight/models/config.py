"""Reading Hugging Face configs with clear errors."""

from collections.abc import Mapping

from inflight.errors import CheckpointError, UnsupportedError

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def size(config: Mapping, key: str, default: int | None = None) -> int:
    """A positive integer. Absent and null take the default, if there is one."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}, wanted a positive integer")
    return value


def activation(config: Mapping, key: str, default: str) -> str:
    """The op's name for the config's activation."""
    name = config.get(key, default)
    if name not in _ACTIVATIONS:
        raise UnsupportedError(f"config.json: {key} {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def refuse(config: Mapping, plain_values: Mapping[str, object]):
    """Keys that change what the network computes and that the family handles only at their plain value."""
    for key, plain in plain_values.items():
        if config.get(key, plain) not in (plain, None):
            raise UnsupportedError(f"config.json: {key} = {config[key]!r} is not supported; wanted {plain!r}")
