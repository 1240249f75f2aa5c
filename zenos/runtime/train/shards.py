"""Tokenizes documents by shards, on the lanes of a pool; what is done stays done.

A shard is a run of documents of about SHARD_BYTES, kept in the cache under what its tokens are made
from: the documents, which of them are held out, and the tokenizer. So a run that was killed goes on
with the shards that it had not finished, and a changed file costs the shards that it lies in.

The lanes are OS threads: the tokenizers library releases Python's lock while it works, and
processes would have to be sent the text and a tokenizer each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from zenos.core import limits
from zenos.core.limits import KIB
from zenos.runtime.train import caching
from zenos.runtime.train.corpus import Document, Survey
from zenos.runtime.train.tokenizer import Vocabulary, encode_all
from zenos.threads.pool import Pool

FORMAT: Final = 1
# What the library says of a text takes many times the text's room: little of it at a time.
BATCH_CHARS: Final = 256 * KIB
FILES: Final = ("train.bin", "eval.bin")
_CUT_SPACE: Final = 2**32


class Shard(NamedTuple):
    """Documents that follow each other in the corpus, and which of them are held out."""

    texts: list[str]
    held_out: list[bool]


class Encoded(NamedTuple):
    """The tokens of a shard as bytes, each document followed by the end token."""

    train: bytes
    eval: bytes


def cut(documents: Iterable[Document], survey: Survey) -> Iterator[Shard]:
    """The documents in shards, without reading further ahead than one of them.

    1. A shard ends where the hash of its last document says so, which it does once in SHARD_BYTES
       of text: after a change in one place the shards soon end where they did before.
    2. But none is shorter than SHARD_BYTES_MIN (the last may be), nor goes on beyond
       SHARD_BYTES_MAX.
    """
    shard, size = Shard([], []), 0
    for document in documents:
        shard.texts.append(document.text)
        shard.held_out.append(survey.holds_out(document))
        size += document.bytes
        share = document.bytes * _CUT_SPACE // limits.SHARD_BYTES
        ends = document.hash % _CUT_SPACE < share and size >= limits.SHARD_BYTES_MIN  # 1
        if ends or size >= limits.SHARD_BYTES_MAX:  # 2
            yield shard
            shard, size = Shard([], []), 0
    if shard.texts:
        yield shard


def encode(
    shards: Iterable[Shard], vocabulary: Vocabulary, dtype: np.dtype[Any], cache: Path
) -> Generator[Encoded]:
    """The shards' tokens in order, from the cache where they are there.

    At most SHARDS_PER_LANE shards for each lane are in memory. What reading the shards raises is
    raised once those before are given out; StorageError when the cache cannot be written.
    """
    encoder = _Encoder(vocabulary, dtype, cache)
    with Pool(name="tokenizing") as pool:
        window = limits.SHARDS_PER_LANE * pool.lanes
        with pool.map(encoder, shards, chunk=1, window=window) as encoded:
            yield from encoded


class _Encoder:
    def __init__(self, vocabulary: Vocabulary, dtype: np.dtype[Any], cache: Path) -> None:
        self._vocabulary = vocabulary
        self._dtype = dtype
        self._end = [] if vocabulary.end_id is None else [vocabulary.end_id]
        self._made_from = ("shard", FORMAT, vocabulary.digest, vocabulary.end_id, dtype.str)
        self._cache = cache / "shards"

    def __call__(self, shard: Shard) -> Encoded:
        content = hashlib.sha256()
        for text, held_out in zip(*shard, strict=True):
            raw = text.encode("utf-8")
            content.update(len(raw).to_bytes(8, "big") + bytes([held_out]))
            content.update(raw)
        path = self._cache / caching.key(*self._made_from, content.hexdigest())
        found = caching.files(path, lambda: self._encode(shard))
        return Encoded(*(found[name] for name in FILES))

    def _encode(self, shard: Shard) -> dict[str, bytes]:
        tokens = (bytearray(), bytearray())
        ids = encode_all(self._vocabulary, shard.texts, BATCH_CHARS)
        for each, held_out in zip(ids, shard.held_out, strict=True):
            tokens[held_out].extend(np.asarray(each + self._end, dtype=self._dtype).tobytes())
        return {name: bytes(part) for name, part in zip(FILES, tokens, strict=True)}
