"""Streamed chunks concatenate to exactly the decode of the whole, with a short window and no state between chunks."""

import random
from pathlib import Path

import pytest

from inflight.detokenizer import PREFIX_TOKENS, TextStream, chunk_text
from inflight.tokenizer import Tokenizer
from tokenizer_samples import TEXTS, metaspace_folder, sentencepiece_folder

DEMO_MODEL = Path(__file__).parent.parent / "demo_model/python-7m"
FOLDERS = {
    "byte-level": lambda folder: DEMO_MODEL,
    "sentencepiece": sentencepiece_folder,
    "metaspace": metaspace_folder,
}


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request, tmp_path_factory):
    return Tokenizer.from_folder(FOLDERS[request.param](tmp_path_factory.mktemp(request.param)))


def streamed(tokenizer, ids, cuts, **options):
    """The texts of the chunks between `cuts`, each from the window before it alone."""
    edges = [0, *cuts, len(ids)]
    return [
        chunk_text(tokenizer, ids[max(0, a - PREFIX_TOKENS) : a], ids[a:b], number == len(edges) - 1, **options)
        for number, (a, b) in enumerate(zip(edges, edges[1:], strict=False), 1)
    ]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_one_token_a_chunk(tokenizer, text, skip_special_tokens):
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids, range(1, len(ids)), skip_special_tokens=skip_special_tokens)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_two_chunks_cut_at_every_token(tokenizer, text):
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        assert "".join(streamed(tokenizer, ids, [cut])) == tokenizer.decode(ids), cut


def test_random_chunks_of_random_tokens(tokenizer):
    """Random tokens make malformed text too: lone bytes, characters without an end, special tokens in the middle."""
    generator = random.Random(7)
    for _ in range(300):
        ids = [generator.randrange(tokenizer.size) for _ in range(generator.randrange(1, 60))]
        cuts = sorted(generator.sample(range(len(ids) + 1), generator.randrange(0, min(8, len(ids)))))
        assert "".join(streamed(tokenizer, ids, cuts)) == tokenizer.decode(ids), (ids, cuts)


def test_random_chunks_of_text(tokenizer):
    generator = random.Random(11)
    for _ in range(200):
        ids = tokenizer.encode("".join(generator.choices(TEXTS, k=3)))
        cuts = sorted(generator.sample(range(len(ids) + 1), min(len(ids), generator.randrange(1, 12))))
        assert "".join(streamed(tokenizer, ids, cuts)) == tokenizer.decode(ids), (ids, cuts)


def test_no_broken_character_before_the_end(tokenizer):
    ids = tokenizer.encode("ab🙂中")
    pieces = streamed(tokenizer, ids, range(1, len(ids)))
    assert not any("\ufffd" in piece for piece in pieces)
    assert "🙂" in pieces and "中" in pieces


def test_cut_off_character_comes_with_the_end(tokenizer):
    ids = tokenizer.encode("ok 🙂")[:-1]
    assert chunk_text(tokenizer, ids[:-1], ids[-1:], end=False) == ""
    assert "\ufffd" in chunk_text(tokenizer, ids, [], end=True)


def test_text_stream_equals_whole_decode(tokenizer):
    ids = tokenizer.encode("".join(TEXTS))
    stream = TextStream(tokenizer)
    text = "".join(stream.push([id_]) for id_ in ids) + stream.push([], end=True)
    assert text == tokenizer.decode(ids)


def test_only_the_first_space_is_stripped(tmp_path):
    tokenizer = Tokenizer.from_folder(sentencepiece_folder(tmp_path))
    words = [tokenizer.encode(word, add_special_tokens=False) for word in ("add", "a", "def", "b")]
    pieces = streamed(tokenizer, sum(words, []), [sum(map(len, words[:n])) for n in range(1, 4)])
    assert pieces == ["add", " a", " def", " b"]
