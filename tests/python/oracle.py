"""Greedy decoding by transformers in float32: what every engine must reproduce."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

# Threads that wait for each other spin: on a busy machine two take four times as long as one.
torch.set_num_threads(1)


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary]"""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0]


def assert_greedy(model: PreTrainedModel, prompt: list[int], tokens: list[int], count: int, end_id: int | None = None):
    """Asserts that `tokens` is what greedy decoding continues the prompt with: every token the likeliest one behind all
    before it, and the end at `count` tokens or where the end id is the likeliest. One forward pass, not `count`."""
    predictions = logits(model, prompt + tokens)[len(prompt) - 1 :].argmax(-1).tolist()
    assert tokens == predictions[: len(tokens)]
    assert end_id not in tokens
    assert len(tokens) == count or predictions[len(tokens)] == end_id


def generate(model: PreTrainedModel, prompt: list[int], count: int, end_id: int | None = None) -> list[int]:
    """The same by transformers' own generate(), token by token; without the end id, at which it stops."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=0,
        )
    tokens = output[0, len(prompt) :].tolist()
    return tokens[:-1] if end_id is not None and tokens and tokens[-1] == end_id else tokens
