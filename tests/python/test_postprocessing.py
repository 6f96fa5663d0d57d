"""The postprocessing model inside a real server."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inflight.tokenizer import Tokenizer
from tokenizer_samples import TEXTS
from triton_models import DEMO_MODEL, int32, python_models


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    with python_models(
        tmp_path_factory.mktemp("postprocessing"), "postprocessing", postprocessing_instance_count=2
    ) as infer:
        yield lambda **arrays: infer("postprocessing", **arrays)["OUTPUT"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(DEMO_MODEL)


def chunk(infer, tokens, prefix=None, end=None):
    """Text of one sequence's chunk."""
    arrays = {"TOKENS_BATCH": int32([[tokens]]).reshape(1, 1, len(tokens)), "SEQUENCE_LENGTH": int32([[len(tokens)]])}
    if prefix is not None:
        arrays["PREFIX_IDS"] = int32([[prefix]]).reshape(1, 1, len(prefix))
    if end is not None:
        arrays["SEQUENCE_FINAL"] = np.array([[end]])
    (text,) = infer(**arrays)
    return text.decode()


def test_streams_concatenate_to_the_whole_text(infer, tokenizer):
    def stream(text):
        ids = tokenizer.encode(text)
        pieces = [chunk(infer, ids[n : n + 1], ids[max(0, n - 16) : n], n == len(ids) - 1) for n in range(len(ids))]
        return "".join(pieces)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stream, TEXTS)) == TEXTS


def test_without_a_prefix_each_chunk_stands_alone(infer, tokenizer):
    first, *_ = tokenizer.encode("🙂")
    assert chunk(infer, [first]) == "\ufffd"
    assert chunk(infer, [first], prefix=[], end=False) == ""


def test_last_empty_chunk_gives_what_was_held_back(infer, tokenizer):
    first, *_ = tokenizer.encode("🙂")
    assert chunk(infer, [], prefix=[first], end=True) == "\ufffd"


def test_batch_of_beams(infer, tokenizer):
    texts = [["one two", "return x"], ["def", "x = [1, 2, 3]"]]
    rows = [[tokenizer.encode(text) for text in row] for row in texts]
    longest = max(len(ids) for row in rows for ids in row)
    tokens = int32([[ids + [-1] * (longest - len(ids)) for ids in row] for row in rows])
    output = infer(TOKENS_BATCH=tokens, SEQUENCE_LENGTH=int32([[len(ids) for ids in row] for row in rows]))
    assert [text.decode() for text in output] == sum(texts, [])


def test_special_tokens_are_left_out(infer, tokenizer):
    ids = tokenizer.encode("x")
    assert chunk(infer, [*ids, tokenizer.end_id, tokenizer.pad_id]) == "x"


def test_special_tokens_can_be_kept(tmp_path, tokenizer):
    with python_models(tmp_path, "postprocessing", skip_special_tokens=False) as infer:
        text = chunk(lambda **arrays: infer("postprocessing", **arrays)["OUTPUT"], [0])
    assert text == "<|endoftext|>"
