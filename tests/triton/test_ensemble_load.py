"""The ensemble under the load that once damaged the server's memory: thousands of chunks waiting at postprocessing."""

from concurrent.futures import ThreadPoolExecutor

STREAMS = 32
REQUESTS = 128
TOKENS = 128


def test_many_long_streams_at_once(served, greedy_text, heldout_ids, tokenizer):
    """Each stream on a connection of its own; every text is whole and equals the answer to a lone request."""
    prompts = [tokenizer.decode(heldout_ids[start : start + 40], True) for start in range(100, 900, 100)]
    expected = [greedy_text(prompt, TOKENS) for prompt in prompts]

    def ask(index):
        with served.stream("ensemble", text_input=prompts[index % len(prompts)], max_tokens=TOKENS) as stream:
            responses = list(stream)
        assert responses[-1].final, responses[-1].error
        return "".join(response.text for response in responses)

    with ThreadPoolExecutor(STREAMS) as pool:
        texts = list(pool.map(ask, range(REQUESTS)))
    assert texts == [expected[index % len(prompts)] for index in range(REQUESTS)]
