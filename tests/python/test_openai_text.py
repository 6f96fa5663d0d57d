"""What the OpenAI interface makes of text: stop strings, pieces, log probabilities, chat templates."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from inflight.errors import CheckpointError
from inflight.openai.chat_template import ChatTemplate, TemplateError
from inflight.openai.choice import Choice
from inflight.openai.engine import Piece
from inflight.openai.logprobs import completion_object, likeliest, spelt
from inflight.openai.stops import StopFinder
from inflight.tokenizer import Tokenizer
from tokenizer_samples import TEXTS, metaspace_folder, sentencepiece_folder


@pytest.fixture(scope="module")
def demo(python_7m):
    return Tokenizer.from_folder(python_7m)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "metaspace"])
def tokenizer(request, python_7m, tmp_path_factory):
    folders = {"byte-level": lambda _: python_7m, "sentencepiece": sentencepiece_folder, "metaspace": metaspace_folder}
    return Tokenizer.from_folder(folders[request.param](tmp_path_factory.mktemp(request.param)))


def first_stop(text, words):
    """The text before the stop word that ends first, of several the longest; by trying every end."""
    for end in range(len(text) + 1):
        found = [word for word in words if text[:end].endswith(word)]
        if found:
            return text[: end - len(max(found, key=len))], True
    return text, False


letters = st.text("ab", max_size=30)


@given(st.lists(letters, max_size=6), st.lists(st.text("ab", min_size=1, max_size=6), max_size=4))
def test_stop_strings_do_not_depend_on_the_pieces(pieces, words):
    finder, released = StopFinder(words), ""
    for piece in pieces:
        released += finder.push(piece)
        wanted, stopped = first_stop("".join(pieces), words)
        assert wanted.startswith(released)
        if finder.stopped:
            break
    else:
        released += finder.push("", end=True)
    assert (released, finder.stopped) == (wanted if pieces else "", stopped if pieces else False)


def test_only_what_may_begin_a_stop_string_is_held_back():
    finder = StopFinder(["END", "\n\n"])
    assert [finder.push(it) for it in ("a b", "c E", "N", "x\n", "y", "EN")] == ["a b", "c ", "", "ENx", "\ny", ""]
    assert finder.push("", end=True) == "EN"


def piece(tokens, finish_reason="", log_probs=(), logits=None):
    return Piece(0, tokens, finish_reason, list(log_probs), logits, None)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("top", [None, 0])
def test_pieces_give_the_text_of_the_whole(tokenizer, text, top):
    ids = tokenizer.encode(text)
    choice = Choice(0, tokenizer, top=top)
    deltas = [choice.push(piece([it], log_probs=[-1.0])) for it in ids] + [choice.push(piece([], "stop"))]
    deltas = [it for it in deltas if it]
    assert "".join(it.text for it in deltas) == tokenizer.decode(ids)
    assert [it.finish_reason for it in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert (choice.tokens, choice.finished) == (len(ids), True)
    assert [it.token for delta in deltas for it in delta.entries] == (ids if top == 0 else [])


def test_an_answer_goes_on_behind_its_prompt(tokenizer):
    ids = tokenizer.encode("one two and two")
    for cut in range(2, len(ids)):
        text = Choice(0, tokenizer, behind=ids[:cut]).push(piece(ids[cut:], "stop")).text
        assert tokenizer.decode(ids[:cut]) + text == tokenizer.decode(ids)


def test_entries_end_where_the_stop_string_begins(demo):
    ids = demo.encode("def add(a, b):\n    return a + b\n")
    choice = Choice(0, demo, stops=["):\n    ret"], top=0)
    deltas = [choice.push(piece([it], log_probs=[-float(it)])) for it in ids]
    shown = [it for delta in deltas if delta for it in delta.entries]
    assert "".join(it.text for it in deltas if it) == "def add(a, b"
    assert "".join(demo.decode([it.token]) for it in shown) == "def add(a, b"
    assert [it.log_prob for it in shown] == [-float(it.token) for it in shown]
    assert [it.offset for it in shown] == [0, 3, 7, 8, 9, 10][: len(shown)]
    assert choice.finished
    assert [it for it in deltas if it][-1].finish_reason == "stop"


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_are_those_of_the_text(tokenizer, text):
    found = b"".join(tokenizer.token_bytes(it) for it in tokenizer.encode(text, add_special_tokens=False))
    assert found.decode() in (text, " " + text)  # SentencePiece puts a space before the first word


def test_tokens_without_whole_characters_are_spelt_by_bytes(demo):
    assert [spelt(it) for it in (b" a", "é".encode(), b"\xf0\x9f", b"")] == [" a", "é", "bytes:\\xf0\\x9f", ""]
    assert demo.token_bytes(10**6) == b""


def test_the_likeliest_tokens():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 4
    logits[0, 7] = logits[0, 8] = 50.0  # the lowest id first
    logits[1, :290] = -float("inf")
    wanted = logits.log_softmax(-1)
    for count in (1, 5, 20):
        found = likeliest(logits.numpy(), count)
        for row, pairs in enumerate(found):
            order = sorted(range(300), key=lambda it: (-float(wanted[row, it]), it))[:count]
            assert [token for token, _ in pairs] == order
            np.testing.assert_allclose([value for _, value in pairs], wanted[row, order], rtol=1e-5, atol=1e-5)


def test_impossible_tokens_are_no_infinity(demo):
    choice = Choice(0, demo, top=2)
    logits = np.full((1, 4096), -np.inf, np.float32)
    logits[0, 5] = 0.0
    delta = choice.push(piece([6], "length", [-np.inf], logits))
    found = completion_object(delta.entries, demo, with_likeliest=True)
    assert found["token_logprobs"] == [-9999.0]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


TEMPLATES = {
    "headers": "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'system' %}\n<<{{ m.content | trim }}>>"
    "{% else %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endif %}\n{% endfor %}\n"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "json": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}\n{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.index > 1 %}"
    "{% break %}{% endif %}{% endfor %}",
    "variables": "{{ thinking }} {% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }} {{ tools is none }} {{ pad_token is defined }}",
}
MESSAGES = [
    {"role": "system", "content": " be brief <&> "},
    {"role": "user", "content": "grüße, 'quotes' \"and\" 日本"},
    {"role": "assistant", "content": "ok"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_templates_render_as_in_transformers(name, generation_prompt):
    (wanted,), _ = render_jinja_template(
        [MESSAGES],
        chat_template=TEMPLATES[name],
        add_generation_prompt=generation_prompt,
        thinking=True,
        **SPECIAL,
    )
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    assert template.render(MESSAGES, generation_prompt, {"thinking": True}) == wanted


def test_where_a_template_is_found(tmp_path):
    def text():
        return ChatTemplate.from_folder(tmp_path).render(MESSAGES[1:2])

    assert ChatTemplate.from_folder(tmp_path) is None
    config = {"bos_token": {"content": "<b>"}, "eos_token": None, "chat_template": "{{ bos_token }}config"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert text() == "<b>config"
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "named"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert text() == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert text() == "file"
    (tmp_path / "own").write_text("own")
    assert ChatTemplate.from_folder(tmp_path, tmp_path / "own").render([]) == "own"


def test_the_demo_models_template_equals_transformers(python_7m):
    theirs = PreTrainedTokenizerFast.from_pretrained(python_7m).apply_chat_template(MESSAGES, tokenize=False)
    assert ChatTemplate.from_folder(python_7m).render(MESSAGES) == theirs


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('wanted a user') }}",
        "{{ messages[7].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_refuse(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(MESSAGES)


def test_a_broken_template_is_told():
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        ChatTemplate("{% for %}")
