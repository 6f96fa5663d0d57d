"""model.yaml of the llmapi model: what it serves and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from inflight.errors import InflightError
from inflight.serve.llmapi_repository import SETTINGS_FILE

PATH_VARIABLE = "LLM_CONFIG_PATH"

# Setting -> keyword of the executor.
_EXECUTOR = {
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "max_batch_size": "max_batch_size",
    "max_num_tokens": "max_num_tokens",
    "max_seq_len": "max_sequence_length",
    "enable_chunked_prefill": "enable_chunked_context",
}
_KV_CACHE = {
    "free_gpu_memory_fraction": "kv_cache_free_memory_fraction",
    "max_tokens": "kv_cache_max_tokens",
    "tokens_per_block": "kv_cache_block_size",
    "enable_block_reuse": "kv_cache_enable_block_reuse",
    "enable_partial_reuse": "kv_cache_enable_partial_reuse",
    "host_cache_size": "kv_cache_host_memory_bytes",
    "max_attention_window": "kv_cache_attention_windows",
    "sink_token_length": "kv_cache_sink_tokens",
}
_TRITON = {"max_batch_size": int, "decoupled": bool, "cancellation_check_period_ms": int}
# Settings that would change the answers, and what they belong to.
_UNSUPPORTED = {
    "quant_config": "quantization",
    "enable_lora": "LoRA adapters",
    "lora_config": "LoRA adapters",
    "speculative_config": "speculative decoding",
    "guided_decoding_backend": "guided decoding",
    "logits_post_processors": "logits post-processors",
}
_UNFILLED = re.compile(r"\$\{\w+\}")


class SettingsError(InflightError):
    """model.yaml cannot be served."""


@dataclass(frozen=True)
class Settings:
    model: Path
    tokenizer: Path
    executor: dict[str, Any] = field(default_factory=dict)  # keywords of inflight.executor.Executor
    decoupled: bool = False
    cancellation_period_s: float = 0.1
    ignored: tuple[str, ...] = ()  # settings without effect

    @property
    def ranks(self) -> int:
        return self.executor.get("tensor_parallel", 1) * self.executor.get("pipeline_parallel", 1)


def read_settings(folder: Path, environment: Mapping[str, str]) -> Settings:
    """Settings of the model whose version folder this is. Raises SettingsError."""
    path = folder / (environment.get(PATH_VARIABLE) or SETTINGS_FILE)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} holds {_kind(document)}, wanted a mapping of settings")
    try:
        return _settings(_filled(document))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def check_model_config(config: Mapping[str, Any], settings: Settings) -> None:
    """Whether the configuration that the server has (config.pbtxt with what model.yaml adds) fits the settings. Raises
    SettingsError."""
    decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
    found = {"decoupled": (decoupled, settings.decoupled), "max_batch_size": (config.get("max_batch_size", 0), 0)}
    for name, (has, wanted) in found.items():
        if has != wanted:
            raise SettingsError(
                f"config.pbtxt makes {name} {has}, {SETTINGS_FILE} {wanted}: leave it out of config.pbtxt and start "
                "the server without --disable-auto-complete-config, or write the same into both"
            )
    if (count := sum(group.get("count", 1) for group in config.get("instance_group", []))) > 1:
        raise SettingsError(f"instance_group has {count} instances, wanted 1: it serves many requests at once")
    ranks = config.get("parameters", {}).get("tensor_parallel_size", {}).get("string_value", "")
    if ranks.isdigit() and int(ranks) != settings.ranks:  # the launcher's --world_size
        raise SettingsError(f"the server was started for {ranks} ranks, {SETTINGS_FILE} has {settings.ranks}")


def _settings(document: dict[str, Any]) -> Settings:
    for name, feature in _UNSUPPORTED.items():
        if document.pop(name, None):
            raise SettingsError(f"{name} is set, which is for {feature}; this is not supported")
    model, tokenizer = (_folder(document, name) for name in ("model", "tokenizer"))
    if model is None:
        raise SettingsError("model is not set, wanted the folder of an engine or of a checkpoint")
    document.pop("backend", None)
    triton = _triton_settings(_section(document, "triton_config"))
    cache = _section(document, "kv_cache_config")
    executor = {keyword: document.pop(name) for name, keyword in _EXECUTOR.items() if name in document}
    executor |= {keyword: cache.pop(name) for name, keyword in _KV_CACHE.items() if name in cache}
    for name in ("tensor_parallel", "pipeline_parallel"):
        if type(size := executor.get(name, 1)) is not int or size < 1:
            raise SettingsError(f"{name}_size is {size!r}, wanted a number of at least 1")
    return Settings(
        model,
        tokenizer or model,
        executor,
        triton.get("decoupled", False),
        triton.get("cancellation_check_period_ms", 100) / 1000,
        (*document, *(f"kv_cache_config.{name}" for name in cache)),
    )


def _triton_settings(section: dict[str, Any]) -> dict[str, Any]:
    for name, value in section.items():
        if name not in _TRITON:
            raise SettingsError(f"triton_config has {name}, wanted only {', '.join(_TRITON)}")
        if type(value) is not _TRITON[name]:
            raise SettingsError(f"triton_config.{name} is {value!r}, wanted a value of type {_TRITON[name].__name__}")
    if (size := section.get("max_batch_size", 0)) != 0:
        raise SettingsError(f"triton_config.max_batch_size is {size}, wanted 0: a request holds one prompt")
    if (period := section.get("cancellation_check_period_ms", 1)) < 1:
        raise SettingsError(f"triton_config.cancellation_check_period_ms is {period}, wanted at least 1")
    return section


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    section = document.pop(name, {})
    if not isinstance(section, dict):
        raise SettingsError(f"{name} is {section!r}, wanted a mapping")
    return section


def _folder(document: dict[str, Any], name: str) -> Path | None:
    value = document.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, str) or not Path(value).is_dir():
        raise SettingsError(f"{name} is {value!r}, wanted a folder on this machine")
    return Path(value)


def _filled(document: dict[str, Any]) -> dict[str, Any]:
    """Without what is null or an unfilled variable."""
    sections = {name: _filled(value) if isinstance(value, dict) else value for name, value in document.items()}
    return {
        name: value
        for name, value in sections.items()
        if value is not None and not (isinstance(value, str) and _UNFILLED.fullmatch(value))
    }


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
