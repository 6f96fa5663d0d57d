"""Templates of model configurations: text in which `${name}` stands for a value."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

# What the server cannot parse unfilled, because it stands where the text wants a number or a type.
DEFAULTS = {
    "max_queue_size": "0",
    "max_queue_delay_microseconds": "0",
    "triton_backend": "inflight",
    "preprocessing_instance_count": "1",
    "postprocessing_instance_count": "1",
    "bls_instance_count": "1",
    "logits_datatype": "TYPE_FP32",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
}
_BARE_VARIABLE = re.compile(r'(?<!")\$\{(\w+)\}(?!")')


def split(text: str, delimiter: str) -> list[str]:
    """Splits where the delimiter is not behind a backslash; the backslash itself goes."""
    parts = re.split(rf"(?<!\\){re.escape(delimiter)}", text)
    return [part.replace(f"\\{delimiter}", delimiter) for part in parts]


def parse_substitutions(text: str) -> dict[str, str]:
    """Parses key:value,key:value, where `\\,` and `\\:` stand for themselves. Raises ValueError."""
    pairs = {}
    for item in re.split(r"(?<!\\),", text):
        parts = split(item.replace("\\,", ","), ":")
        if len(parts) != 2:
            raise ValueError(f"'{item}' has {len(parts) - 1} colons, wanted key:value, with \\: for a colon in it")
        pairs[parts[0]] = parts[1]
    return pairs


def fill(text: str, substitutions: Mapping[str, str]) -> str:
    """Fills the given variables and DEFAULTS; others stay in place. Raises ValueError for a key that the text lacks."""
    for key in substitutions:
        if key not in text:
            raise ValueError(f"key '{key}' does not occur in the file")
    return string.Template(text).safe_substitute({**DEFAULTS, **substitutions})


def unparsable_variables(text: str) -> list[str]:
    """Variables left where the server would fail to parse the file."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return sorted(set(_BARE_VARIABLE.findall("\n".join(lines))))
