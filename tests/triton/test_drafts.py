"""Draft tokens through the server: they change the number of steps, never the answer."""

import numpy as np
import pytest

from inflight.executor import Request


def answered(served, prompt, max_tokens=20, **inputs):
    """(tokens, drafted, accepted) of one answer."""
    responses = served.ask_tokens(prompt, max_tokens, return_perf_metrics=True, **inputs)
    last = responses[-1].outputs
    drafted, accepted = (last[f"total_{it}draft_tokens"].item() for it in ("", "accepted_"))
    assert last["acceptance_rate"].item() == pytest.approx(accepted / drafted if drafted else 0)
    return [token for response in responses for token in response.tokens], drafted, accepted


@pytest.mark.parametrize("streaming", [False, True])
def test_drafts_change_no_answer(served, greedy, prompts, streaming):
    for index, prompt in enumerate(prompts[:8]):
        tokens = greedy(prompt, 20)
        drafts = tokens[:10]
        if index % 2:
            drafts[4] = (drafts[4] + 1) % 4096
        found = answered(served, prompt, streaming=streaming, draft_input_ids=drafts)
        assert found == (tokens, 10, 4 if index % 2 else 10)


def test_drafts_save_steps(served, greedy, prompts):
    tokens = greedy(prompts[0], 20)
    served.settle()
    before = served.sample("iteration_counter")
    assert answered(served, prompts[0], draft_input_ids=tokens) == (tokens, 19, 19)
    served.settle()
    assert served.sample("iteration_counter") - before <= 2


def test_no_drafts_no_counts(served, greedy, prompts):
    assert answered(served, prompts[0]) == (greedy(prompts[0], 20), 0, 0)


def test_seeded_draws(served, executor, prompts):
    for seed in range(4):
        (expected,) = executor.submit(Request(prompts[1], 20, top_k=30, temperature=0.8, seed=seed))
        drafts = expected.tokens[:6] + [1, 2]
        found = answered(
            served, prompts[1], runtime_top_k=30, temperature=0.8, random_seed=seed, draft_input_ids=drafts
        )
        assert found[0] == expected.tokens
        assert found[1:] == (8, 6)


def test_rows_have_their_own_drafts(served, greedy, prompts):
    rows = [prompts[2][:9], prompts[3][:9]]
    answers = [greedy(row, 12) for row in rows]
    column = np.ones((2, 1), np.int32)
    with served.stream(
        "tensorrt_llm",
        input_ids=np.array(rows, np.int32),
        input_lengths=9 * column,
        request_output_len=12 * column,
        draft_input_ids=np.array([answers[0][:5], answers[0][:5]], np.int32),
        return_perf_metrics=column.astype(bool),
    ) as stream:
        found = {r.outputs["batch_index"].item(): r for r in stream}
    assert [found[row].tokens for row in range(2)] == answers
    assert found[0].outputs["total_accepted_draft_tokens"].item() == 5


def test_draft_logits_decide(served, greedy, prompts):
    """A draft that the draft model was sure of is taken where the target's probability reaches the threshold."""
    tokens = greedy(prompts[0], 20)
    other = [(token + 1) % 4096 for token in tokens[:3]]
    for drafts, accepted in ((tokens[:3], 3), (other, 0)):
        logits = np.full((1, 3, 4096), -1e4, np.float32)
        logits[0, range(3), drafts] = 0.0
        found = answered(
            served, prompts[0], draft_input_ids=drafts, draft_logits=logits, draft_acceptance_threshold=1.0
        )
        assert found == (tokens, 3, accepted)


def test_draft_logits_of_another_model(served, greedy, prompts):
    """Of which the draft model is sure and the target is not is refused; what it hardly expected is taken."""
    tokens = greedy(prompts[0], 20)
    drafts = [(token + 1) % 4096 for token in tokens[:3]]
    logits = np.zeros((1, 3, 4096), np.float32)
    logits[0, range(3), drafts] = 1e4
    options = {"runtime_top_k": 50, "draft_acceptance_threshold": 1.0, "draft_logits": logits}
    assert answered(served, prompts[0], draft_input_ids=drafts, **options)[1:] == (3, 0)
    assert answered(served, prompts[0], draft_input_ids=tokens[:3], **options)[1:] == (3, 3)
