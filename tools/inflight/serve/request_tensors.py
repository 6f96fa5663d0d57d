"""Numpy tensors of a tokenized request, as the engine model's inputs want them. B is the batch dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """int32 [B, longest], shorter rows padded on the right."""
    tensor = np.full((len(rows), max(map(len, rows), default=0)), pad_id, np.int32)
    for row, ids in zip(tensor, rows, strict=True):
        row[: len(ids)] = ids
    return tensor


def extra_ids(rows: Sequence[Sequence[int]], ids: np.ndarray | None, vocabulary_size: int) -> np.ndarray:
    """uint64 [B, longest]: each row's id of `ids` [B, 1] at its tokens beyond the vocabulary (rows of a prompt
    embedding table), 0 at the others and as padding; [B, 0] without ids."""
    if ids is None:
        return np.zeros((len(rows), 0), np.uint64)
    tensor = np.zeros((len(rows), max(map(len, rows), default=0)), np.uint64)
    for row, tokens, id_ in zip(tensor, rows, ids.flat, strict=True):
        row[: len(tokens)] = np.where(np.asarray(tokens) >= vocabulary_size, id_, np.uint64(0))
    return tensor


def word_lists(rows: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """int32 [B, 2, longest]: token ids of all words end to end, padded with 0; under them the cumulative end offsets,
    padded with -1. Words without tokens are left out; [B, 2, 0] when none is left."""
    rows = [[word for word in words if word] for words in rows]
    length = max((sum(map(len, words)) for words in rows), default=0)
    tensor = np.zeros((len(rows), 2, length), np.int32)
    tensor[:, 1] = -1
    for (ids, ends), words in zip(tensor, rows, strict=True):
        flat = [id_ for word in words for id_ in word]
        ids[: len(flat)] = flat
        ends[: len(words)] = np.cumsum([len(word) for word in words], dtype=np.int32)
    return tensor


def embedding_bias(rows: Sequence[Sequence[tuple[Sequence[int], float]]], vocabulary_size: int) -> np.ndarray:
    """float32 [B, vocabulary]: each word's weight added at each of its token ids; [B, 0] when no row has a word."""
    if not any(rows):
        return np.zeros((len(rows), 0), np.float32)
    tensor = np.zeros((len(rows), vocabulary_size), np.float32)
    for row, words in zip(tensor, rows, strict=True):
        for ids, weight in words:
            np.add.at(row, np.asarray(ids, np.int64), weight)
    return tensor
