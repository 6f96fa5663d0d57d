"""Texts and a small SentencePiece-like tokenizer for the tests."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "  leading and   inner spaces , and punctuation . ",
    "naïve café – ‘quotes’ … ½",
    "中文，日本語の文章、한국어 텍스트",
    "emoji 🙂🙃 family 👨‍👩‍👧‍👦 flag 🇳🇱 skin 👍🏽",
    "e\u0301 combining o\u0308 and zalgo Z\u0351\u036b\u0343",
    "العربية עברית हिन्दी ไทย",
    "tabs\tand\r\nnewlines\n\n\n",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f9d1\U0001f3ff\u200d\U0001f4bb \ufffd \u2028",
    "x",
    " ",
]


def sentencepiece_folder(folder: Path) -> Path:
    """A tokenizer as converted from SentencePiece: a space is part of the word behind it, unknown characters fall back
    to byte tokens, the decoder strips the first space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(["def add(a, b): return a + b one two and punctuation words"] * 4, trainer)
    stored = json.loads(tokenizer.to_str())
    # Byte tokens are ordinary entries of the vocabulary, not special ones.
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def metaspace_folder(folder: Path) -> Path:
    """The same vocabulary behind the Metaspace decoder."""
    sentencepiece_folder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
