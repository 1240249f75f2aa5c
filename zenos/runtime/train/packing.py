"""Packs a corpus into flat files of token ids, and gives fixed-length samples of them.

Documents stand one after the other, each followed by the end token. A sample is a window of
consecutive tokens: no padding, nothing left out. The files don't depend on the length of a
sequence or on the size of a batch, so that runs which differ in these share them.

The order of samples is a pure function of the seed and the position: `samples` needs no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from zenos.core import durable
from zenos.core.errors import InvalidError, StorageError
from zenos.runtime.train import caching, shards
from zenos.runtime.train.corpus import Corpus, Document, Survey
from zenos.runtime.train.tokenizer import Vocabulary

Tokens = np.ndarray[Any, np.dtype[np.int64]]

FORMAT: Final = 1
_FEISTEL_ROUNDS: Final = 6


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What is packed in a directory. Counts of tokens, bytes of text, and documents."""

    dtype: str
    train_tokens: int
    eval_tokens: int
    train_bytes: int
    eval_bytes: int
    documents: int
    digest: str


class Packed:
    """An opened pack: token ids mapped from disk, `train` and `eval`, shape (tokens,)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.meta = msgspec.json.decode((directory / "meta.json").read_bytes(), type=Meta)
            self.train = self._open("train.bin", self.meta.train_tokens)
            self.eval = self._open("eval.bin", self.meta.eval_tokens)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise StorageError(f"cannot read the packed corpus in {directory}: {error}") from error

    def _open(self, name: str, count: int) -> np.ndarray[Any, Any]:
        if count == 0:
            return np.zeros(0, dtype=self.meta.dtype)  # an empty file cannot be mapped
        return np.memmap(self.directory / name, dtype=self.meta.dtype, mode="r", shape=(count,))


def pack(corpus: Corpus, survey: Survey, vocabulary: Vocabulary, cache: Path) -> Path:
    """The directory of this corpus's pack under this tokenizer, from the cache where it is there.

    Raises InvalidError when the corpus is no longer what was surveyed.
    """
    key = pack_key(survey, vocabulary)

    def build(directory: Path) -> None:
        dtype = np.dtype(np.uint16 if vocabulary.size <= 2**16 else np.uint32)
        writer = _Writer(directory, dtype)
        try:

            def counted() -> Iterator[Document]:
                for document in corpus.documents():
                    writer.count(document.bytes, survey.holds_out(document))
                    yield document

            parts = shards.cut(counted(), survey)
            with closing(shards.encode(parts, vocabulary, dtype, cache)) as encoded:
                for part in encoded:
                    writer.write(part)
        finally:
            writer.close()
        if sum(writer.bytes) != survey.bytes or writer.documents != survey.documents:
            raise InvalidError("cannot go on: the corpus changed while it was read; train again")
        meta = Meta(
            dtype=dtype.name,
            train_tokens=writer.tokens[0],
            eval_tokens=writer.tokens[1],
            train_bytes=writer.bytes[0],
            eval_bytes=writer.bytes[1],
            documents=writer.documents,
            digest=survey.digest,
        )
        durable.write_file(directory / "meta.json", msgspec.json.encode(meta))

    return caching.directory(cache / "packs" / key, build)


def pack_key(survey: Survey, vocabulary: Vocabulary) -> str:
    """The name of a pack: content, split, tokenizer and what ends a document."""
    return caching.key(
        "pack", FORMAT, survey.digest, survey.threshold, vocabulary.digest, vocabulary.end_id
    )


class _Writer:
    """Two files of token ids: training in `train.bin`, held out in `eval.bin`."""

    def __init__(self, directory: Path, dtype: np.dtype[Any]) -> None:
        self._files = [(directory / name).open("wb") for name in shards.FILES]
        self._dtype = dtype
        self.tokens = [0, 0]
        self.bytes = [0, 0]
        self.documents = 0

    def count(self, size: int, held_out: bool) -> None:
        self.bytes[held_out] += size
        self.documents += 1

    def write(self, part: shards.Encoded) -> None:
        for held_out, tokens in enumerate(part):
            self._files[held_out].write(tokens)
            self.tokens[held_out] += len(tokens) // self._dtype.itemsize

    def close(self) -> None:
        for file in self._files:
            file.close()


class Samples:
    """Fixed-length windows of a token stream in a shuffled order that needs no state.

    tokens: shape (count,); length: tokens per sample (for a causal model the sequence length + 1,
    of which neighbours share the last one); stride: tokens from one window's begin to the next's.
    Each epoch shows every window once, in an order of its own; from the second epoch on the windows
    begin at another offset, so that their edges fall elsewhere.
    """

    def __init__(
        self, tokens: np.ndarray[Any, Any], *, length: int, stride: int, seed: int
    ) -> None:
        if len(tokens) < length:
            raise InvalidError(
                f"cannot fill one sequence: the corpus has {len(tokens)} tokens and a sequence "
                f"takes {length}; give more text, or a shorter sequence_length"
            )
        self._tokens = tokens
        self._length = length
        self._stride = stride
        self._seed = seed
        whole = (len(tokens) - length) // stride + 1
        # One window less than would fit, where there are several: room for the offset.
        self._shifts = whole > 1
        self.per_epoch: int = whole - 1 if self._shifts else 1

    def starts(self, first: int, count: int) -> Tokens:
        """Where samples number first … first + count - 1 begin, shape (count,)."""
        numbers = np.arange(first, first + count, dtype=np.int64)
        result = np.empty(count, dtype=np.int64)
        for epoch in np.unique(numbers // self.per_epoch):
            here = numbers // self.per_epoch == epoch
            order = permute(
                numbers[here] % self.per_epoch, self.per_epoch, _mix(self._seed, int(epoch))
            )
            result[here] = order * self._stride + self._offset(int(epoch))
        return result

    def take(self, first: int, count: int) -> Tokens:
        """Samples number first … first + count - 1 as int64, shape (count, length)."""
        windows = self.starts(first, count)[:, None] + np.arange(self._length)
        taken: Tokens = self._tokens[windows].astype(np.int64)
        return taken

    def _offset(self, epoch: int) -> int:
        if epoch == 0 or not self._shifts:
            return 0
        return _mix(self._seed ^ 0x5EED, epoch) % self._stride


def held_out_windows(
    tokens: np.ndarray[Any, Any], *, length: int, stride: int, count_max: int
) -> Tokens:
    """At most `count_max` windows spread evenly over held-out tokens, shape (count, length)."""
    whole = max(0, (len(tokens) - length) // stride + 1)
    if whole == 0:
        return np.zeros((0, length), dtype=np.int64)
    count = min(whole, count_max)
    chosen = np.arange(count, dtype=np.int64) * whole // count
    windows = chosen[:, None] * stride + np.arange(length)
    return np.asarray(tokens[windows], dtype=np.int64)


def permute(positions: Tokens, size: int, key: int) -> Tokens:
    """Where a keyed permutation of range(size) puts these positions.

    A Feistel network over the next even power of two, walked until it falls inside (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): constant memory whatever the size.
    """
    if size == 1:
        return np.zeros_like(positions)
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    keys = [np.uint64(_mix(key, number)) for number in range(_FEISTEL_ROUNDS)]
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_scramble(right + round_key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _scramble(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of splitmix64, element by element (wraps modulo 2⁶⁴ as it must)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix(seed: int, number: int) -> int:
    """A 64-bit number that depends on both as if at random (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)
