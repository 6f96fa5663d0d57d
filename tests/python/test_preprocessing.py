"""The preprocessing model inside a real server."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from inflight.serve.request_tensors import embedding_bias, extra_ids, padded, word_lists
from inflight.tokenizer import Tokenizer
from triton_models import DEMO_MODEL, int32, python_models, strings


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    with python_models(tmp_path_factory.mktemp("preprocessing"), "preprocessing") as infer:
        yield lambda **arrays: infer("preprocessing", **arrays)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(DEMO_MODEL)


def test_one_prompt(infer, tokenizer):
    text = "def é中🙂(x):\n"
    out = infer(QUERY=strings([[text]]), REQUEST_OUTPUT_LEN=int32([[7]]))
    ids = tokenizer.encode(text)
    assert out["INPUT_ID"].tolist() == [ids]
    assert out["REQUEST_INPUT_LEN"].tolist() == [[len(ids)]]
    assert out["REQUEST_OUTPUT_LEN"].tolist() == [[7]]
    assert (out["OUT_END_ID"].tolist(), out["OUT_PAD_ID"].tolist()) == ([[0]], [[1]])
    assert (out["DECODER_INPUT_ID"].tolist(), out["REQUEST_DECODER_INPUT_LEN"].tolist()) == ([[1]], [[1]])


def test_nothing_given_means_zero_size(infer):
    out = infer(QUERY=strings([["a"], ["b"]]), REQUEST_OUTPUT_LEN=int32([[1], [1]]))
    shapes = {name: out[name].shape for name in ("STOP_WORDS_IDS", "BAD_WORDS_IDS", "EMBEDDING_BIAS")}
    assert shapes == {"STOP_WORDS_IDS": (2, 2, 0), "BAD_WORDS_IDS": (2, 2, 0), "EMBEDDING_BIAS": (2, 0)}
    assert out["OUT_PROMPT_TABLE_EXTRA_IDS"].shape == (2, 0)


def test_extra_ids_stand_at_the_tokens_beyond_the_vocabulary():
    ids = np.array([[7], [2**63]], np.uint64)
    found = extra_ids([[5, 100, 101], [99]], ids, vocabulary_size=100)
    assert found.tolist() == [[0, 7, 7], [0, 0, 0]]
    assert found.dtype == np.uint64
    assert extra_ids([[100]], ids[1:], vocabulary_size=100).tolist() == [[2**63]]
    assert extra_ids([[5], [6]], None, vocabulary_size=100).shape == (2, 0)


def test_extra_id_of_a_prompt_without_virtual_tokens(infer, tokenizer):
    out = infer(
        QUERY=strings([["def add"]]), REQUEST_OUTPUT_LEN=int32([[1]]), PROMPT_TABLE_EXTRA_ID=np.ones((1, 1), np.uint64)
    )
    assert out["OUT_PROMPT_TABLE_EXTRA_IDS"].tolist() == [[0] * len(tokenizer.encode("def add"))]


def test_batch_is_padded_on_the_right(infer, tokenizer):
    out = infer(
        QUERY=strings([["x"], ["def add(a, b):"]]), REQUEST_OUTPUT_LEN=int32([[1], [2]]), PAD_ID=int32([[9], [9]])
    )
    short, long = tokenizer.encode("x"), tokenizer.encode("def add(a, b):")
    assert out["INPUT_ID"].tolist() == [short + [9] * (len(long) - len(short)), long]
    assert out["REQUEST_INPUT_LEN"].tolist() == [[len(short)], [len(long)]]


def test_words(infer, tokenizer):
    out = infer(
        QUERY=strings([["x"], ["y"]]),
        REQUEST_OUTPUT_LEN=int32([[1], [1]]),
        STOP_WORDS_DICT=strings([["return", "", "a long stop word"], ["", "", ""]]),
    )
    first, second = tokenizer.encode("return", False), tokenizer.encode("a long stop word", False)
    length = len(first) + len(second)
    ends = [len(first), length] + [-1] * (length - 2)
    assert out["STOP_WORDS_IDS"].tolist() == [[first + second, ends], [[0] * length, [-1] * length]]
    assert out["BAD_WORDS_IDS"].shape == (2, 2, 0)


def test_embedding_bias(infer, tokenizer):
    weights = np.array([[2.5, -1.0]], np.float32)
    out = infer(
        QUERY=strings([["x"]]),
        REQUEST_OUTPUT_LEN=int32([[1]]),
        EMBEDDING_BIAS_WORDS=strings([["return", "yield"]]),
        EMBEDDING_BIAS_WEIGHTS=weights,
    )
    expected = np.zeros((1, 4096), np.float32)
    for word, weight in (("return", 2.5), ("yield", -1.0)):
        for id_ in tokenizer.encode(word, False):
            expected[0, id_] += weight
    np.testing.assert_array_equal(out["EMBEDDING_BIAS"], expected)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"QUERY": strings([[""]])}, "row 0 of 1 gives 0 tokens, wanted at least 1"),
        ({"QUERY": strings([[b"\xff"]])}, "QUERY is not UTF-8"),
        ({"DECODER_QUERY": strings([["x"]])}, "DECODER_QUERY is for encoder-decoder networks"),
        ({"IMAGE_URL": strings([["file"]])}, "IMAGE_URL is for multimodal networks"),
        ({"IMAGE_BYTES": np.zeros((1, 1, 1, 1, 1), np.uint8)}, "IMAGE_BYTES is for multimodal networks"),
        ({"EMBEDDING_BIAS_WORDS": strings([["x"]])}, "holds 1 words, EMBEDDING_BIAS_WEIGHTS 0 weights"),
    ],
)
def test_bad_input_is_named(infer, inputs, text):
    with pytest.raises(InferenceServerException, match=text) as error:
        infer(**{"QUERY": strings([["x"]]), "REQUEST_OUTPUT_LEN": int32([[1]]), **inputs})
    code = "UNIMPLEMENTED" if "which are not supported" in str(error.value) else "INVALID_ARGUMENT"
    assert error.value.status() == f"StatusCode.{code}"


def test_empty_decoder_prompt_counts_as_absent(infer):
    assert "INPUT_ID" in infer(QUERY=strings([["x"]]), REQUEST_OUTPUT_LEN=int32([[1]]), DECODER_QUERY=strings([[""]]))


def test_bad_requests_leave_the_others_of_their_batch_alone(infer, tokenizer):
    def one(number):
        if number % 3 == 0:
            with pytest.raises(InferenceServerException, match="0 tokens"):
                infer(QUERY=strings([[""]]), REQUEST_OUTPUT_LEN=int32([[1]]))
            return True
        out = infer(QUERY=strings([[f"line {number}"]]), REQUEST_OUTPUT_LEN=int32([[1]]))
        return out["INPUT_ID"].tolist() == [tokenizer.encode(f"line {number}")]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(48)))


def test_missing_tokenizer_fails_the_load_with_its_path(tmp_path):
    from inflight.serve.locate import ServerError

    missing = tmp_path / "nowhere"
    with (
        pytest.raises(ServerError, match=f"tokenizer_dir '{missing}': no tokenizer.json"),
        python_models(tmp_path, "preprocessing", tokenizer_dir=missing),
    ):
        pass


def test_padded_and_word_lists_and_bias_without_rows():
    assert padded([[1], [2, 3]], 0).tolist() == [[1, 0], [2, 3]]
    assert word_lists([[], []]).shape == (2, 2, 0)
    assert embedding_bias([[([1, 1], 0.5)], []], 3).tolist() == [[0, 1.0, 0], [0, 0, 0]]
