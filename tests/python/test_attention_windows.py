"""Sliding windows and attention sinks set at load time: transformers with a mask of our own is right."""

import numpy as np
import pytest
import torch

import oracle
from checkpoints import make_llama
from inflight.executor import Executor, ExecutorError, Request

LAYERS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("windows") / "llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def model(checkpoint):
    return oracle.load(checkpoint)


def mask(length: int, window: int, sinks: int) -> torch.Tensor:
    """[1, 1, queries, keys], added to the scores."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    visible = (key <= query) & ((query - key < window) | (key < sinks))
    return torch.where(visible, 0.0, float("-inf"))[None, None]


def masked_logits(model, token_ids: list[int], windows: list[int], sinks: int) -> np.ndarray:
    """[tokens, vocabulary]; each layer gets its own mask."""

    def masking(window: int):
        def set_mask(_, arguments, keywords):
            return arguments, {**keywords, "attention_mask": mask(len(token_ids), window, sinks)}

        return set_mask

    hooks = [
        layer.register_forward_pre_hook(masking(windows[i % len(windows)]), with_kwargs=True)
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        return oracle.logits(model, token_ids).numpy()
    finally:
        for hook in hooks:
            hook.remove()


CASES = {
    "one window": ([9], 0),
    "sinks": ([9], 4),
    "sinks wider than the window": ([3], 17),
    "cycled": ([5, 40], 2),
    "a window each": ([1, 30, 12], 3),
    "never reached": ([1000], 2),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [{}, {"max_num_tokens": 11, "max_batch_size": 4}], ids=["whole", "chunked"])
def test_logits_equal_transformers_with_the_mask(checkpoint, model, case, layout):
    windows, sinks = CASES[case]
    token_ids = np.random.default_rng(8).integers(0, 101, 60).tolist()
    expected = masked_logits(model, token_ids, windows, sinks)
    settings = {"kv_cache_attention_windows": windows, "kv_cache_sink_tokens": sinks, "kv_cache_block_size": 8}
    with Executor(checkpoint, **settings, **layout) as executor:
        (result,) = executor.submit(Request(token_ids, max_tokens=1, context_logits=True))
    assert np.abs(result.context_logits - expected).max() < 1e-4


def test_generation_reuse_and_parallel_ranks(checkpoint, model):
    windows, sinks = [7, 20], 3
    prompt = np.random.default_rng(9).integers(0, 101, 40).tolist()
    settings = {"kv_cache_attention_windows": windows, "kv_cache_sink_tokens": sinks, "kv_cache_block_size": 8}
    with Executor(checkpoint, **settings) as executor:
        answer = executor.generate(Request(prompt, max_tokens=30))
        assert executor.generate(Request(prompt, max_tokens=30)) == answer
        assert executor.stats()["tokens_reused"] == len(prompt) - 1
        longer = executor.generate(Request(prompt + answer[:10], max_tokens=20))
        assert longer == answer[10:]
    predictions = masked_logits(model, prompt + answer, windows, sinks)[len(prompt) - 1 :].argmax(-1).tolist()
    assert answer == predictions[: len(answer)]
    for layout in ({"tensor_parallel": 2, "num_threads": 2}, {"pipeline_parallel": 3, "num_threads": 3}):
        with Executor(checkpoint, **settings, **layout) as executor:
            assert executor.generate(Request(prompt, max_tokens=30)) == answer


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kv_cache_attention_windows": [8, 0]}, "attention_windows holds 0, wanted at least 1"),
        ({"kv_cache_sink_tokens": -1}, "sink_tokens is -1, wanted at least 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(checkpoint, settings, text):
    with pytest.raises(ExecutorError, match=text):
        Executor(checkpoint, **settings)
