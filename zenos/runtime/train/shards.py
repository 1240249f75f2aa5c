"""Tokenizes documents by shards, on the lanes of a pool; what is done stays done.

A shard is a run of documents of about SHARD_BYTES, kept in the cache under what its tokens are made
from: the documents, which of them are held out, and the tokenizer. So a run that was killed goes on
with the shards that it had not finished, and a changed file costs the shards that it lies in.

The lanes are OS threads: the tokenizers library releases Python's lock while it works, and
processes would have to be sent the text and a tokenizer each.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from zenos.core import limits
from zenos.core.limits import KIB
from zenos.runtime.train import caching
from zenos.runtime.train.corpus import Document, Survey
from zenos.runtime.train.tokenizer import Vocabulary, encode_all
from zenos.runtime.train.words import words_of
from zenos.threads.pool import Pool

FORMAT: Final = 2
# What the library says of a text takes many times the text's room: little of it at a time.
BATCH_CHARS: Final = 256 * KIB
FILES: Final = ("train.bin", "eval.bin")
_CUT_SPACE: Final = 2**32


class Shard(NamedTuple):
    """Documents that follow each other in the corpus, which of them are held out, their digests."""

    texts: list[str]
    held_out: list[bool]
    digests: list[bytes]


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
    shard, size = Shard([], [], []), 0
    for document in documents:
        shard.texts.append(document.text)
        shard.held_out.append(survey.holds_out(document))
        shard.digests.append(document.digest)
        size += document.bytes
        share = document.bytes * _CUT_SPACE // limits.SHARD_BYTES
        ends = document.hash % _CUT_SPACE < share and size >= limits.SHARD_BYTES_MIN  # 1
        if ends or size >= limits.SHARD_BYTES_MAX:  # 2
            yield shard
            shard, size = Shard([], [], []), 0
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
        self._words = words_of(vocabulary.tokenizer)
        self._made_from = ("shard", FORMAT, vocabulary.digest, vocabulary.end_id, dtype.str)
        self._cache = cache / "shards"

    def __call__(self, shard: Shard) -> Encoded:
        content = hashlib.sha256()
        for digest, held_out in zip(shard.digests, shard.held_out, strict=True):
            content.update(digest + bytes([held_out]))
        path = self._cache / caching.key(*self._made_from, content.hexdigest())
        found = caching.files(path, lambda: self._encode(shard))
        return Encoded(*(found[name] for name in FILES))

    def _encode(self, shard: Shard) -> dict[str, bytes]:
        tokens = (array("I"), array("I"))
        end = self._vocabulary.end_id
        for ids, held_out in zip(self._ids(shard.texts), shard.held_out, strict=True):
            if isinstance(ids, bytes):
                tokens[held_out].frombytes(ids)
            else:
                tokens[held_out].fromlist(ids)
            if end is not None:
                tokens[held_out].append(end)
        return {
            name: np.frombuffer(part, np.uint32).astype(self._dtype).tobytes()
            for name, part in zip(FILES, tokens, strict=True)
        }

    def _ids(self, texts: list[str]) -> Iterator[bytes | list[int]]:
        """Of each text its token ids: 32 bits each, or as the library gives them."""
        others = texts if self._words is None else [t for t in texts if not t.isascii()]
        encoded = encode_all(self._vocabulary, others, BATCH_CHARS)
        for text in texts:
            if self._words is not None and text.isascii():
                yield self._words.encode(text)
            else:
                yield next(encoded)
