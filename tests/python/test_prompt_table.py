"""Virtual tokens: ids beyond the vocabulary select rows of the request's table. transformers with inputs_embeds is
right."""

import numpy as np
import pytest
import torch

import oracle
from checkpoints import make_gpt2
from inflight.executor import Executor, ExecutorError, Request


@pytest.fixture(scope="module")
def model(python_7m):
    return oracle.load(python_7m)


@pytest.fixture(scope="module")
def table(model) -> np.ndarray:
    """Of the size that embeddings have, so that they count."""
    embeddings = model.get_input_embeddings().weight
    noise = torch.randn(12, embeddings.shape[1], generator=torch.Generator().manual_seed(3))
    return (noise * embeddings.std()).detach().numpy()


@pytest.fixture(scope="module")
def prompt(heldout_ids, model) -> list[int]:
    """Virtual tokens in front, in between and at the end; some twice."""
    size = model.config.vocab_size
    text = heldout_ids[500:530]
    return [size + 3, size, *text[:10], size + 11, size + 11, size + 5, *text[10:], size + 7]


def greedy(model, table: np.ndarray, prompt: list[int], count: int) -> list[int]:
    weights = torch.cat([model.get_input_embeddings().weight, torch.from_numpy(table)])
    tokens = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(inputs_embeds=weights[torch.tensor([prompt + tokens])]).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens


def tuned(prompt: list[int], table: np.ndarray, **fields) -> Request:
    return Request(prompt, **{"max_tokens": 12, "prompt_embedding_table": table, **fields})


def extra_ids(prompt: list[int], id_: int, vocabulary: int) -> list[int]:
    return [id_ if token >= vocabulary else 0 for token in prompt]


LAYOUTS = [
    {},
    {"max_num_tokens": 7, "max_batch_size": 4},
    {"tensor_parallel": 2, "num_threads": 2},
    {"pipeline_parallel": 2, "num_threads": 2},
    {"plan_ahead": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(layout) or "plain")
def test_tokens_equal_transformers(python_7m, model, table, prompt, layout):
    expected = greedy(model, table, prompt, 12)
    with Executor(python_7m, **layout) as executor:
        assert executor.generate(tuned(prompt, table)) == expected
        handles = [executor.submit(tuned(prompt, table)) for _ in range(3)]
        assert [handle.tokens() for handle in handles] == [expected] * 3


def test_learned_positions_are_added(tmp_path):
    checkpoint = make_gpt2(tmp_path / "gpt2")
    model = oracle.load(checkpoint)
    table = np.random.default_rng(5).normal(size=(4, 32)).astype(np.float32)
    prompt = [97, 5, 98, 11, 100, 7]
    with Executor(checkpoint) as executor:
        assert executor.generate(tuned(prompt, table)) == greedy(model, table, prompt, 12)


def test_blocks_are_shared_with_the_same_table_only(python_7m, model, table, prompt):
    size = model.config.vocab_size
    other = table[::-1].copy()
    expected, other_expected = greedy(model, table, prompt, 12), greedy(model, other, prompt, 12)
    assert expected != other_expected

    def reused(executor, table, id_, expected):
        before = executor.stats()["tokens_reused"]
        ids = extra_ids(prompt, id_, size) if id_ else []
        assert executor.generate(tuned(prompt, table, prompt_table_extra_ids=ids)) == expected
        return executor.stats()["tokens_reused"] - before

    with Executor(python_7m, kv_cache_block_size=8) as executor:
        assert reused(executor, table, 1, expected) == 0
        assert reused(executor, other, 2, other_expected) == 0
        assert reused(executor, table, 1, expected) == len(prompt) - 1
        assert reused(executor, other, 2, other_expected) == len(prompt) - 1
        assert reused(executor, table, None, expected) == 0
        assert reused(executor, table, None, expected) == 0


def test_without_extra_ids_what_precedes_the_virtual_tokens_is_reused(python_7m, model, table, heldout_ids):
    prompt = [*heldout_ids[700:720], model.config.vocab_size, *heldout_ids[720:730]]
    with Executor(python_7m, kv_cache_block_size=8) as executor:
        first = executor.generate(tuned(prompt, table))
        assert executor.generate(tuned(prompt, table)) == first
        assert executor.stats()["tokens_reused"] == 20


def test_penalties_and_bans_pass_over_virtual_tokens(python_7m, model, table, prompt):
    with Executor(python_7m) as executor:
        plain = executor.generate(tuned(prompt, table))
        fields = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5}
        assert len(executor.generate(tuned(prompt, table, no_repeat_ngram_size=1, **fields))) == 12
        assert executor.generate(tuned(prompt, table, bad_words=[[plain[0]]])) != plain
        assert executor.generate(tuned(prompt, table)) == plain


def refusal(executor: Executor, request: Request) -> str:
    with pytest.raises(ExecutorError) as caught:
        executor.submit(request)
    assert caught.value.code == "invalid_argument"
    return str(caught.value)


def test_what_does_not_fit_is_refused(python_7m, model, table, prompt):
    size, hidden = model.config.vocab_size, model.config.hidden_size
    broken = table.copy()
    broken[2, 3] = np.nan
    with Executor(python_7m) as executor:
        assert refusal(executor, Request(prompt)).endswith(f"is outside the vocabulary of {size} tokens")
        text = f"input token {size + 12} is outside the vocabulary of {size} tokens and the 12 rows"
        assert refusal(executor, tuned([size + 12], table)).startswith(text)
        text = f"rows of {hidden - 1} values, wanted the network's hidden size {hidden}"
        assert text in refusal(executor, tuned(prompt, table[:, 1:]))
        assert "has shape (3,), wanted [n, hidden]" in refusal(executor, tuned(prompt, np.ones(3)))
        assert "is not finite" in refusal(executor, tuned(prompt, broken))
        text = f"prompt_table_extra_ids has 2 values, wanted as many as the prompt has tokens, {len(prompt)}"
        assert refusal(executor, tuned(prompt, table, prompt_table_extra_ids=[1, 2])) == text
