"""Encoding and decoding equal transformers' AutoTokenizer; special ids come from the files beside the tokenizer."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inflight.errors import CheckpointError
from inflight.tokenizer import Tokenizer, tokenizer_folder, vocabulary_size
from tokenizer_samples import TEXTS, sentencepiece_folder

DEMO_MODEL = Path(__file__).parent.parent / "demo_model/python-7m"


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def folder(request, tmp_path_factory):
    if request.param == "byte-level":
        return DEMO_MODEL
    return sentencepiece_folder(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="module")
def pair(folder):
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encode_equals_transformers(pair, text, add_special_tokens):
    ours, theirs = pair
    assert ours.encode(text, add_special_tokens) == theirs.encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_decode_equals_transformers(pair, text, skip_special_tokens):
    ours, theirs = pair
    special = [theirs.eos_token_id, theirs.pad_token_id]
    ids = [special[0], *theirs.encode(text), *special]
    expected = theirs.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    assert ours.decode(ids, skip_special_tokens) == expected


def test_special_ids_equal_transformers(pair):
    ours, theirs = pair
    assert (ours.end_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.size == len(theirs)


def test_decode_leaves_out_padding_and_unknown_ids(pair):
    ours, _ = pair
    ids = ours.encode("one two", add_special_tokens=False)
    assert ours.decode([*ids, -1, -1, 10**6]) == ours.decode(ids) == "one two"


def write_tokenizer(folder, config, generation=None):
    folder.mkdir()
    (folder / "tokenizer.json").write_text((DEMO_MODEL / "tokenizer.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token": "<|pad|>", "pad_token": "<|endoftext|>"}, {"eos_token_id": 5}, (1, 0)),
        ({"eos_token": {"content": "<|pad|>"}}, None, (1, 1)),
        ({}, {"eos_token_id": [7, 8], "pad_token_id": 9}, (7, 9)),
        ({"eos_token": "not in the vocabulary"}, {"eos_token_id": 3}, (3, 3)),
        ({}, None, (None, None)),
    ],
)
def test_special_ids_by_file(tmp_path, config, generation, expected):
    tokenizer = write_tokenizer(tmp_path / "model", config, generation)
    assert (tokenizer.end_id, tokenizer.pad_id) == expected


def test_stored_truncation_and_padding_are_off(tmp_path):
    stored = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert len(Tokenizer.from_folder(tmp_path).encode("def main():\n    return 1\n")) > 2


def test_engine_folder_without_tokenizer_uses_its_checkpoint(tmp_path):
    plan = {"checkpoint": {"directory": str(DEMO_MODEL)}, "network": {"vocabulary_size": 4096}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert tokenizer_folder(tmp_path) == DEMO_MODEL
    assert vocabulary_size(tmp_path) == 4096


def test_vocabulary_size_of_a_checkpoint(tmp_path):
    assert vocabulary_size(None, tmp_path, DEMO_MODEL) == 4096
    assert vocabulary_size(tmp_path) is None


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_missing_or_broken_tokenizer_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
