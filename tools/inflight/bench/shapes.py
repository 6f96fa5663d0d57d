"""Models by name, for measuring speed without a checkpoint: shapes as Hugging Face configs, weights drawn at random.

The shapes are the published ones; `llama-tiny` is no published model, but small enough for a CPU and for tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inflight import plan
from inflight.errors import UnsupportedError

_LLAMA = dict(
    model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2
)

SHAPES: dict[str, dict] = {
    "llama-tiny": _LLAMA
    | dict(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    | dict(vocab_size=256, rope_theta=10000.0, max_position_embeddings=4096),
    "llama3-1b": _LLAMA
    | dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32)
    | dict(num_key_value_heads=8, head_dim=64, vocab_size=128256, rope_theta=500000.0, max_position_embeddings=8192)
    | dict(tie_word_embeddings=True),
    "llama3-8b": _LLAMA
    | dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
    | dict(num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0, max_position_embeddings=8192),
    "llama2-70b": _LLAMA
    | dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    | dict(num_key_value_heads=8, vocab_size=32000, rope_theta=10000.0, max_position_embeddings=4096),
    "mixtral-8x7b": _LLAMA
    | dict(model_type="mixtral", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)
    | dict(num_attention_heads=32, num_key_value_heads=8, vocab_size=32000, rope_theta=1000000.0)
    | dict(max_position_embeddings=32768, num_local_experts=8, num_experts_per_tok=2),
}


def is_name(model: str) -> bool:
    """Whether `model` names a random-weight model; a folder of that name goes first."""
    return model in SHAPES and not Path(model).exists()


def build(name: str, out_dir: Path | str, force: bool = False) -> Path:
    """Writes the plan of a named model in bfloat16. Raises UnsupportedError for a family that the engine lacks."""
    try:
        return plan.build_without_weights(SHAPES[name], out_dir, force=force)
    except UnsupportedError as error:
        raise UnsupportedError(f"{name}: {error}") from error


@contextmanager
def engine_folder(model: str) -> Iterator[Path]:
    """The engine folder of a named model (a temporary one), of an engine folder or of a checkpoint."""
    if not is_name(model):
        path = Path(model)
        if not path.exists():
            raise plan.PlanError(f"{model}: neither a folder nor a model by name; names: {', '.join(SHAPES)}")
        yield plan.ensure(path)
        return
    with tempfile.TemporaryDirectory(prefix="inflight-bench-") as folder:
        yield build(model, folder)
