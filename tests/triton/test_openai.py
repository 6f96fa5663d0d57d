"""The OpenAI interface through OpenAI's own client, against what the executor answers."""

import json

import openai
import pytest
import torch

from inflight.executor import Request
from openai_service import by_choice, running
from served import ENDLESS, PROMPT

MODEL = "python-7m"
CHAT = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def service(shared_server, tmp_path_factory):
    log = tmp_path_factory.mktemp("openai") / "service.log"
    with running(shared_server.server.grpc_url, log) as started:
        yield started
    assert started.process.returncode == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture
def client(served, service):
    """After every test the server must be alive, idle, and answer as before."""
    with service.client() as made:
        yield made


@pytest.fixture
def complete(client):
    def ask(**fields):
        return client.completions.create(**{"model": MODEL, "prompt": PROMPT, "temperature": 0, **fields})

    return ask


@pytest.fixture
def chat(client):
    def ask(**fields):
        return client.chat.completions.create(**{"model": MODEL, "messages": CHAT, "temperature": 0, **fields})

    return ask


def test_models(client):
    assert [it.id for it in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "inflight"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("other")


def test_completion(complete, greedy_text, tokenizer):
    answer = complete(max_tokens=12)
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.choices[0].text == greedy_text(PROMPT, 12)
    assert answer.choices[0].finish_reason == "length"
    prompt = len(tokenizer.encode(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        prompt,
        12,
        prompt + 12,
    )
    assert complete().usage.completion_tokens == 16  # the default


def test_streamed_completion(complete, greedy_text):
    chunks = list(complete(max_tokens=12, stream=True))
    assert by_choice(chunks) == {0: (greedy_text(PROMPT, 12), "length")}
    assert len(chunks) > 6
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_of_a_stream(complete, tokenizer):
    *chunks, last = complete(max_tokens=5, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(tokenizer.encode(PROMPT)), 5)
    assert all(chunk.usage is None for chunk in chunks)


def test_chat(chat, greedy_text):
    answer = chat(max_completion_tokens=12)
    message = answer.choices[0].message
    assert (answer.object, message.role, message.content) == ("chat.completion", "assistant", greedy_text(PROMPT, 12))
    assert answer.choices[0].finish_reason == "length"
    several = [{"role": "system", "content": "import os"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert chat(messages=several, max_tokens=4).choices[0].message.content == greedy_text("import os\nx", 4)


def test_streamed_chat(chat, greedy_text):
    first, *chunks, last = chat(max_tokens=12, stream=True)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == greedy_text(PROMPT, 12)
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == (None, "length")


def test_chat_without_a_limit_goes_on_to_the_end(chat, tokenizer):
    answer = chat(messages=[{"role": "user", "content": PROMPT * 80}], seed=1, temperature=1)
    assert answer.usage.total_tokens == 1024 or answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(tokenizer.encode(PROMPT * 80))


def test_prompts_of_all_forms(complete, greedy_text, tokenizer):
    texts = ["def add(a, b):", "import "]
    ids = [tokenizer.encode(text) for text in texts]
    for prompt, asked in (
        (texts[0], texts[:1]),
        (texts, texts),
        (ids[0], texts[:1]),
        (ids, texts),
    ):
        wanted = [greedy_text(text, 6) for text in asked]
        answer = complete(prompt=prompt, max_tokens=6)
        assert [it.text for it in answer.choices] == wanted
        assert answer.usage.prompt_tokens == sum(map(len, ids[: len(asked)]))
        streamed = by_choice(complete(prompt=prompt, max_tokens=6, stream=True))
        assert [streamed[index][0] for index in range(len(asked))] == wanted


def test_long_prompt_is_encoded_beside_the_loop(complete, greedy_text):
    assert complete(prompt=PROMPT * 60, max_tokens=3).choices[0].text == greedy_text(PROMPT * 60, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(complete, greedy_text, stream):
    text = greedy_text(PROMPT, 40)
    for stop in (text[20:24], [text[30:33], "never", text[11:19]], "never"):
        words = [stop] if isinstance(stop, str) else stop
        ends = [text.find(word) + len(word) for word in words if word in text]
        answer = complete(max_tokens=40 if ends else 8, stop=stop, stream=stream)
        (found,) = by_choice(answer if stream else [answer]).values()
        if not ends:
            assert found == (greedy_text(PROMPT, 8), "length")
            continue
        wanted = min((text.find(word) for word in words if text.find(word) + len(word) == min(ends)), default=None)
        assert found == (text[:wanted], "stop")


def test_a_natural_end_is_a_stop(complete, tokenizer):
    answer = complete(logit_bias={str(tokenizer.end_id): 100}, max_tokens=9)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 9
    longer = complete(logit_bias={str(tokenizer.end_id): 100}, max_tokens=9, extra_body={"ignore_eos": True})
    assert longer.choices[0].finish_reason == "length"


def test_sampling_parameters_reach_the_engine(complete, executor, tokenizer):
    ids = tokenizer.encode(PROMPT)
    cases = [
        (dict(temperature=0.8, seed=5), dict(temperature=0.8, top_p=1.0, seed=5)),
        (dict(temperature=1.3, top_p=0.7, seed=-1), dict(temperature=1.3, top_p=0.7, seed=2**64 - 1)),
        (dict(seed=3, temperature=None), dict(temperature=1.0, top_p=1.0, seed=3)),
        (
            dict(frequency_penalty=1.5, presence_penalty=-0.5),
            dict(frequency_penalty=1.5, presence_penalty=-0.5, prompt_ignore_length=len(ids)),
        ),
        (
            dict(temperature=1, seed=1, extra_body=dict(top_k=3, min_p=0.1, repetition_penalty=1.2, min_tokens=4)),
            dict(top_k=3, top_p=1.0, seed=1, min_p=0.1, repetition_penalty=1.2, min_tokens=4),
        ),
    ]
    texts = set()
    for fields, sampling in cases:
        wanted = executor.generate(Request(ids, 24, end_id=tokenizer.end_id, **sampling))
        answer = complete(max_tokens=24, **fields)
        assert answer.choices[0].text == tokenizer.decode(wanted), fields
        texts.add(answer.choices[0].text)
    assert len(texts) == len(cases)


def test_without_a_seed_answers_differ(complete):
    assert len({complete(temperature=1, max_tokens=24).choices[0].text for _ in range(4)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(complete, stream):
    fields = dict(n=3, temperature=1, seed=7, max_tokens=16, prompt=["def add(a, b):", PROMPT])
    whole = {it.index: (it.text, it.finish_reason) for it in complete(**fields).choices}
    assert sorted(whole) == list(range(6))
    assert len(set(whole.values())) == 6
    found = complete(**fields, stream=stream)
    assert by_choice(found if stream else [found]) == whole


def test_log_probs_of_a_completion(complete, served, tokenizer):
    answer = complete(max_tokens=6, logprobs=3).choices[0]
    (response,) = served.ask_tokens(
        tokenizer.encode(PROMPT), 6, return_log_probs=True, return_generation_logits=True, exclude_input_in_output=True
    )
    wanted = response.outputs["output_log_probs"].reshape(-1)
    expected = torch.tensor(response.outputs["generation_logits"].reshape(6, -1)).log_softmax(-1).topk(3)
    assert answer.logprobs.token_logprobs == pytest.approx(wanted.tolist(), abs=1e-5)
    assert "".join(answer.logprobs.tokens) == answer.text
    assert [answer.text[it:] for it in answer.logprobs.text_offset] == [
        "".join(answer.logprobs.tokens[it:]) for it in range(6)
    ]
    for row, found in enumerate(answer.logprobs.top_logprobs):
        texts = [tokenizer.decode([it]) for it in expected.indices[row].tolist()]
        assert list(found) == texts
        assert list(found.values()) == pytest.approx(expected.values[row].tolist(), abs=1e-4)
    assert complete(max_tokens=6, logprobs=0).choices[0].logprobs.top_logprobs is None


@pytest.mark.parametrize("top", [0, 2])
def test_log_probs_of_a_chat(chat, top):
    whole = chat(max_tokens=6, logprobs=True, top_logprobs=top).choices[0]
    entries = whole.logprobs.content
    assert b"".join(bytes(it.bytes) for it in entries).decode() == whole.message.content
    assert all(len(it.top_logprobs) == top for it in entries)
    if top:
        assert [it.top_logprobs[0].token for it in entries] == [it.token for it in entries]  # greedy
        assert all(it.top_logprobs[0].logprob > it.top_logprobs[1].logprob for it in entries)
    streamed = [
        it
        for chunk in chat(max_tokens=6, logprobs=True, top_logprobs=top, stream=True)
        if chunk.choices[0].logprobs
        for it in chunk.choices[0].logprobs.content
    ]
    assert [it.token for it in streamed] == [it.token for it in entries]
    assert [it.logprob for it in streamed] == pytest.approx([it.logprob for it in entries], abs=1e-5)


def test_echo(complete, greedy_text):
    assert complete(echo=True, max_tokens=5).choices[0].text == PROMPT + greedy_text(PROMPT, 5)
    assert by_choice(complete(echo=True, max_tokens=5, stream=True, n=2)) == {
        index: (PROMPT + greedy_text(PROMPT, 5), "length") for index in (0, 1)
    }
    alone = complete(echo=True, max_tokens=0)
    assert (alone.choices[0].text, alone.usage.completion_tokens) == (PROMPT, 0)


def test_log_probs_of_the_prompt(complete, served, tokenizer):
    ids = tokenizer.encode(PROMPT)
    found = complete(echo=True, max_tokens=0, logprobs=1).choices[0]
    with_answer = complete(echo=True, max_tokens=2, logprobs=1).choices[0].logprobs
    (response,) = served.ask_tokens(ids, 1, return_context_logits=True, exclude_input_in_output=True)
    logits = torch.tensor(response.outputs["context_logits"].reshape(len(ids), -1)).log_softmax(-1)
    wanted = [float(logits[row, token]) for row, token in enumerate(ids[1:])]
    assert found.text == PROMPT
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    assert [next(iter(it)) for it in found.logprobs.top_logprobs[1:]] == [
        tokenizer.decode([int(row.argmax())]) for row in logits[:-1]
    ]
    assert with_answer.token_logprobs[: len(ids)] == found.logprobs.token_logprobs
    assert len(with_answer.tokens) == len(ids) + 2
    assert [PROMPT[it:][:1] for it in found.logprobs.text_offset] == [it[:1] for it in found.logprobs.tokens]


REFUSED = {
    "model": (dict(model="gpt-4"), 404, "model", "does not exist"),
    "no prompt": (dict(prompt=""), 400, None, "no tokens"),
    "token": (dict(prompt=[5, 4096]), 400, "prompt", "4096 is outside the vocabulary of 4096"),
    "mixed": (dict(prompt=["a", 5]), 400, "prompt", "wanted a string"),
    "too long": (dict(prompt="a " * 2000), 400, None, "takes at most 1023"),
    "much too long": (dict(prompt="a" * 10**6), 400, None, "1000000 characters"),
    "temperature": (dict(temperature=2.5), 400, "temperature", "less than or equal to 2; found 2.5"),
    "n": (dict(n=0), 400, "n", "greater than or equal to 1"),
    "answers": (dict(n=100, prompt=["a"] * 100), 400, None, "at most 1024 answers"),
    "max_tokens": (dict(max_tokens=0), 400, None, "max_tokens is 0"),
    "logprobs": (dict(logprobs=6), 400, "logprobs", "less than or equal to 5"),
    "bias": (dict(logit_bias={"4096": 1}), 400, "logit_bias", "outside the vocabulary"),
    "bias value": (dict(logit_bias={"1": 101}), 400, "logit_bias", "-100 to 100"),
    "stop": (dict(stop=["a", ""]), 400, "stop", "none of them empty"),
    "suffix": (dict(suffix="end"), 400, "suffix", "not supported"),
    "unknown": (dict(extra_body={"top_q": 1}), 400, "top_q", "Unrecognized request argument"),
    "options": (dict(stream_options={"include": 1}), 400, "stream_options.include", "Unrecognized request argument"),
    "type": (dict(max_tokens="many"), 400, "max_tokens", "valid integer; found 'many'"),
    "logits": (dict(max_tokens=900, logprobs=5, n=100), 400, None, "max_logits_bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(complete, case, stream):
    fields, status, param, text = REFUSED[case]
    with pytest.raises(openai.APIStatusError, match=text) as refused:
        complete(**{"stream": stream, **fields})
    assert refused.value.status_code == status
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (dict(messages=[]), "at least 1 item"),
        (dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "image_url"),
        (dict(tools=[{"type": "function", "function": {"name": "f"}}]), "tools is not supported"),
        (dict(response_format={"type": "json_object"}), "response_format is not supported"),
        (dict(top_logprobs=3), "only allowed when logprobs"),
        (dict(logprobs=True, top_logprobs=21), "less than or equal to 20"),
    ],
)
def test_refused_chats(chat, fields, text):
    with pytest.raises(openai.BadRequestError, match=text):
        chat(**fields)


def test_options_of_a_stream_want_a_stream(complete):
    with pytest.raises(openai.BadRequestError, match="only allowed when stream"):
        complete(stream_options={"include_usage": True})


def test_fields_without_effect_are_taken(chat):
    neutral = dict(user="me", tools=[], tool_choice="none", response_format={"type": "text"}, service_tier="auto")
    assert chat(max_tokens=2, store=False, metadata={"a": "b"}, **neutral).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"", 400),
        ("/v1/completions", b"[1]", 400),
        ("/v1/completions", b'{"model": "python-7m", "prompt": "\\ud800"}', 400),
        ("/v1/completions", b'{"model": "python-7m", "prompt": "\xff"}', 400),
        ("/v1/completions", b'{"a":' * 50_000, 400),
        ("/v1/completions", b'{"model": "python-7m", "prompt": "a", "temperature": NaN}', 400),
        ("/v1/completions", b" " * (33 * 2**20), 413),
        ("/v1/completions", None, 405),
        ("/v2/nothing", b"{}", 404),
    ],
    ids=lambda it: str(it)[:20],
)
def test_bodies_that_are_none(client, service, path, body, status):
    answer = service.ask(path, body)
    assert answer.status == status
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def endless_service(endless_server, tmp_path_factory):
    with running(endless_server.server.grpc_url, tmp_path_factory.mktemp("openai") / "service.log") as started:
        yield started


def test_a_stop_string_ends_the_engine_too(endless, endless_service, greedy_text):
    fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": ENDLESS, "temperature": 0}
    with endless_service.client() as client:
        chunks = client.completions.create(**fields, stop=greedy_text(PROMPT, 40)[20:24], stream=True)
        assert by_choice(chunks)[0][1] == "stop"


def test_a_client_that_leaves_ends_its_answer(endless, endless_service):
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": ENDLESS, "ignore_eos": True, "temperature": 0}
    with endless_service.connect("/v1/completions", {**body, "stream": True}) as connection:
        received = b""
        while received.count(b"data:") < 3:
            received += connection.recv(4096)
    endless.wait_until_idle()
    with endless_service.connect("/v1/completions", body):  # not streamed: it has not had a byte
        endless.wait_until_active()
    endless.wait_until_idle()


def test_256_streams_at_once(client, service, greedy_text):
    prompts = [f"def f{index % 8}(" for index in range(256)]
    connections = [
        service.connect(
            "/v1/completions",
            {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True, "ignore_eos": True},
        )
        for prompt in prompts
    ]
    texts = []
    for connection in connections:
        received = b""
        while b"[DONE]" not in received:
            received += (found := connection.recv(65536))
            assert found
        connection.close()
        events = map(json.loads, received.split(b"data: ")[1:-1])
        texts.append("".join(choice["text"] for event in events for choice in event["choices"]))
    assert texts == [greedy_text(prompt, 8) for prompt in prompts]


def test_health(client, service):
    assert service.ask("/health").status == 200
