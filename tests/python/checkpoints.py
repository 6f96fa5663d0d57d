"""Small random checkpoints made through transformers, and the logits that transformers computes from them."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

# Threads that wait for each other spin: on a busy machine two take four times as long as one.
torch.set_num_threads(1)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def make_llama(
    directory: Path, dtype: torch.dtype = torch.float32, shards: str = "5GB", scale: float = 0.2, **changes
) -> Path:
    config = dict(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=2,
    )
    return _save(LlamaForCausalLM(LlamaConfig(**(config | changes))), directory, dtype, shards, scale)


def make_gpt2(
    directory: Path, dtype: torch.dtype = torch.float32, shards: str = "5GB", scale: float = 0.2, **changes
) -> Path:
    config = dict(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64, eos_token_id=5, bos_token_id=5)
    return _save(GPT2LMHeadModel(GPT2Config(**(config | changes))), directory, dtype, shards, scale)


def _save(model: torch.nn.Module, directory: Path, dtype: torch.dtype, shards: str, scale: float) -> Path:
    """Every parameter gets random values, matrices with deviation `scale`: the default norms of ones and biases of
    zeros would hide mix-ups."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * scale if parameter.dim() > 1 else parameter + noise * 0.3)
    model.to(dtype).save_pretrained(directory, max_shard_size=shards)
    return directory


def transformers_logits(directory: Path, token_ids: list[int]) -> np.ndarray:
    """[tokens, vocabulary] in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def random_tokens(vocabulary: int, count: int = 40) -> list[int]:
    return np.random.default_rng(3).integers(0, vocabulary, count).tolist()
