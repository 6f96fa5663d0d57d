"""The backend's own decoding (C++, by a table of tokens) equals the tokenizer's, whatever the chunks."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from inflight.token_table import token_table
from inflight.tokenizer import Tokenizer
from tokenizer_samples import TEXTS, metaspace_folder, sentencepiece_folder

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ROOT / "build/tests/decode_samples"


def byte_level_folder(folder: Path) -> Path:
    """Byte-level, with added tokens that are not special, spelt with letters that stand for other bytes."""
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken("<｜end｜>", special=True)])
    tokenizer.add_tokens(["two words", "中文", "Straße"])
    return saved(tokenizer, folder)


def unigram_folder(folder: Path) -> Path:
    tokenizer = Library(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return saved(tokenizer, folder)


def wordpiece_folder(folder: Path) -> Path:
    tokenizer = Library(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return saved(tokenizer, folder)


def saved(tokenizer: Library, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


FOLDERS = {
    "demo": lambda folder: ROOT / "tests/demo_model/python-7m",
    "byte-level": byte_level_folder,
    "sentencepiece": sentencepiece_folder,
    "metaspace": metaspace_folder,
    "unigram": unigram_folder,
    "wordpiece": wordpiece_folder,
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    return FOLDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def table(tokenizer):
    return token_table(tokenizer)


def check(table, samples, folder):
    """Runs the backend's decoder over pairs (ids, text), of which special tokens are no part."""
    rows = [{"ids": ids, "skip_special": skip, "text": text} for ids, skip, text in samples]
    path = folder / "table.json"
    path.write_text(json.dumps({**table, "samples": rows}))
    run = subprocess.run([PROGRAM, path], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    assert f"{len(rows)} samples, 0 wrong" in run.stdout


def test_samples_of_the_table(table, tmp_path):
    samples = [(it["ids"], it["skip_special"], it["text"]) for it in table["samples"]]
    assert len(samples) > 200
    check(table, samples, tmp_path)


def test_text_as_transformers_decodes_it(folder, table, tmp_path):
    theirs = AutoTokenizer.from_pretrained(folder)
    generator = random.Random(3)
    texts = [*TEXTS, *("".join(generator.choices(TEXTS, k=3)) for _ in range(100))]
    rows = [theirs.encode(text) for text in texts]
    decode = theirs.decode
    samples = [
        (ids, skip, decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))
        for ids in rows
        for skip in (True, False)
    ]
    check(table, samples, tmp_path)


def test_random_tokens(tokenizer, table, tmp_path):
    """These make malformed text: lone bytes, characters without an end, special tokens and unknown ids in between."""
    generator = random.Random(5)
    rows = [[generator.randrange(-1, tokenizer.size + 3) for _ in range(generator.randrange(40))] for _ in range(500)]
    samples = [(ids, skip, tokenizer.decode(ids, skip)) for ids in rows for skip in (True, False)]
    check(table, samples, tmp_path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=20))
def test_any_text(tokenizer, table, tmp_path, texts):
    rows = [tokenizer.encode(text) for text in texts]
    check(table, [(ids, True, tokenizer.decode(ids, True)) for ids in rows], tmp_path)


@pytest.mark.parametrize("decoder", [decoders.BPEDecoder(), decoders.CTC()])
def test_decoders_that_do_not_fit(decoder, tmp_path):
    """Their tokens' texts depend on more than the token: the samples tell, or there is no table at all."""
    backend = Library.from_file(str(sentencepiece_folder(tmp_path) / "tokenizer.json"))
    backend.decoder = decoder
    backend.add_tokens(["end</w>", "<pad>", "|"])
    path = tmp_path / "table.json"
    path.write_text(json.dumps(token_table(Tokenizer(backend))))
    run = subprocess.run([PROGRAM, path], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
