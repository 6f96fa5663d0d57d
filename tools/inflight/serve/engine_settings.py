"""Parameters of the engine model's config.pbtxt, for the engine model in Python (triton_backend python)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inflight.errors import InflightError
from inflight.executor import CAPACITY_POLICIES
from inflight.serve.model_support import text_parameter

MODEL_TYPES = ("inflight_fused_batching", "inflight_batching", "V1", "v1")
DECODING_MODES = ("top_k", "top_p", "top_k_top_p", "beam_search")


class ParameterError(InflightError):
    """A parameter of config.pbtxt cannot be served."""


@dataclass
class EngineSettings:
    engine_dir: Path
    executor: dict[str, Any] = field(default_factory=dict)  # keywords of inflight.executor.Executor
    exclude_input: bool = False
    random_seed: bool = False
    cancellation_period_s: float = 0.1
    ignored: list[str] = field(default_factory=list)  # parameters that no one knows


def read_parameters(config: Mapping[str, Any]) -> EngineSettings:
    """Unfilled parameters have their defaults. Raises ParameterError."""
    values = {key: text for key in config.get("parameters", {}) if (text := text_parameter(config, key)) is not None}
    _one_of("gpt_model_type", values.get("gpt_model_type", ""), MODEL_TYPES, "Invalid gpt_model_type: ")
    engine_dir = values.get("gpt_model_path", "")
    if not engine_dir or not Path(engine_dir).is_dir():
        raise ParameterError(f"parameter gpt_model_path is '{engine_dir}'; wanted the folder of an engine")
    _one_of("decoding_mode", values.get("decoding_mode", DECODING_MODES[0]), DECODING_MODES)
    settings = EngineSettings(Path(engine_dir))
    for key, text in values.items():
        _store(key, text, settings)
    return settings


def _store(key: str, text: str, settings: EngineSettings) -> None:
    if key in _EXECUTOR:
        keyword, read = _EXECUTOR[key]
        settings.executor[keyword] = read(key, text)
    elif key == "exclude_input_in_output":
        settings.exclude_input = _flag(key, text)
    elif key == "random_default_seed":
        settings.random_seed = _flag(key, text)
    elif key == "cancellation_check_period_ms":
        settings.cancellation_period_s = max(1, _integer(key, text)) / 1000
    elif key in _LATER and text not in _LATER[key]:
        raise ParameterError(f"parameter {key} is '{text}', which this model does not support; leave it unset")
    elif key not in _LATER and key not in _WITHOUT_EFFECT:
        settings.ignored.append(key)


def _one_of(key: str, text: str, wanted: tuple[str, ...], prefix: str = "") -> None:
    if text not in wanted:
        raise ParameterError(f"{prefix}parameter {key} is '{text}'; wanted {', '.join(wanted)}")


def _integer(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ParameterError(f"parameter {key} is '{text}'; wanted a whole number") from None


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ParameterError(f"parameter {key} is '{text}'; wanted a number") from None


def _flag(key: str, text: str) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if found is None:
        raise ParameterError(f"parameter {key} is '{text}'; wanted true or false")
    return found


def _text(key: str, text: str) -> str:
    return text


def _policy(key: str, text: str) -> str:
    return text if text in CAPACITY_POLICIES else "guaranteed_no_evict"


def _integers(key: str, text: str) -> list[int]:
    return [_integer(key, item) for item in text.split(",")]


# Parameter -> (keyword of the executor, how its text is read).
_EXECUTOR: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "max_beam_width": ("max_beam_width", _integer),
    "batch_scheduler_policy": ("capacity_policy", _policy),
    "enable_chunked_context": ("enable_chunked_context", _flag),
    "device": ("device", _text),
    "tensor_parallel_size": ("tensor_parallel", _integer),
    "pipeline_parallel_size": ("pipeline_parallel", _integer),
    "num_threads": ("num_threads", _integer),
    "max_batch_size": ("max_batch_size", _integer),
    "max_queue_size": ("max_queue_size", _integer),
    "max_num_tokens": ("max_num_tokens", _integer),
    "max_sequence_length": ("max_sequence_length", _integer),
    "plan_ahead": ("plan_ahead", _flag),
    "batch_invariant": ("batch_invariant", _flag),
    "random_weights": ("random_weights", _flag),
    "kv_cache_block_size": ("kv_cache_block_size", _integer),
    "kv_cache_cpu_memory_bytes": ("kv_cache_cpu_memory_bytes", _integer),
    "max_tokens_in_paged_kv_cache": ("kv_cache_max_tokens", _integer),
    "kv_cache_free_gpu_mem_fraction": ("kv_cache_free_memory_fraction", _number),
    "kv_cache_host_memory_bytes": ("kv_cache_host_memory_bytes", _integer),
    "kv_cache_onboard_blocks": ("kv_cache_onboard_blocks", _flag),
    "enable_kv_cache_reuse": ("kv_cache_enable_block_reuse", _flag),
    "max_attention_window_size": ("kv_cache_attention_windows", _integers),
    "sink_token_length": ("kv_cache_sink_tokens", _integer),
}
# Parameters of features that are not there -> values that do not ask for them.
_LATER = {
    **dict.fromkeys(("encoder_model_path", "cross_kv_cache_fraction", "lora_prefetch_dir", "participant_ids"), ()),
    **dict.fromkeys(("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"), ()),
    **dict.fromkeys(("medusa_choices", "eagle_choices"), ()),
    **dict.fromkeys(("guided_decoding_backend", "xgrammar_tokenizer_info_path", "worker_path"), ()),
    "speculative_decoding_fast_logits": ("false", "False", "FALSE", "0"),
    "gpu_weights_percent": ("1", "1.0"),
    "num_nodes": ("1",),
}
_WITHOUT_EFFECT = {"gpt_model_type", "gpt_model_path", "decoding_mode", "tokenizer_dir", "normalize_log_probs"}
_WITHOUT_EFFECT |= {"FORCE_CPU_ONLY_INPUT_TENSORS", "max_queue_delay_microseconds", "executor_worker_path"}
_WITHOUT_EFFECT |= {"stats_check_period_ms", "recv_poll_period_ms", "iter_stats_max_iterations"}
_WITHOUT_EFFECT |= {"request_stats_max_iterations", "gpu_device_ids", "lora_cache_optimal_adapter_size"}
_WITHOUT_EFFECT |= {"lora_cache_max_adapter_size", "lora_cache_gpu_memory_fraction", "lora_cache_host_memory_bytes"}
_WITHOUT_EFFECT |= {"enable_context_fmha_fp32_acc", "multi_block_mode", "cuda_graph_mode", "cuda_graph_cache_size"}
_WITHOUT_EFFECT |= {"enable_trt_overlap"}
