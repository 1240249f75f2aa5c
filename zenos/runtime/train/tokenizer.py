"""Byte-level BPE: trained on a corpus, cached by its content; special tokens, files, byte lengths.

Byte-level: every text can be encoded, and the bytes of a token can be told from its name alone,
which is what bits per byte are counted with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import __version__ as tokenizers_version

from zenos.core import durable
from zenos.core.errors import InvalidError, StorageError
from zenos.core.limits import MIB
from zenos.runtime.train import caching
from zenos.runtime.train.corpus import Corpus, Survey

FORMAT: Final = 1
TRAINING_BYTES_MAX: Final = 256 * MIB
TOKEN_CHARS_MAX: Final = 64
END: Final = "<|endoftext|>"
PAD: Final = "<|pad|>"
CLS: Final = "<|cls|>"
SEP: Final = "<|sep|>"
MASK: Final = "<|mask|>"
SPECIAL: Final = (END, PAD, CLS, SEP, MASK)
FILES: Final = ("tokenizer.json", "tokenizer_config.json")


class Vocabulary:
    """A tokenizer with what training needs to know of it.

    size: one more than the highest id. end_id: put after each document. pad_id, cls_id, sep_id,
    mask_id: None where it has none.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:
            raise StorageError(f"cannot read the tokenizer in {directory}: {error}") from error
        # A corpus that holds the text of a special token must not become that token.
        self.tokenizer.encode_special_tokens = True
        # Ids may have gaps: what counts is the highest.
        self.size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        config = _read_config(directory)
        self.end_id = self._id(config, "eos_token", END, "</s>", "[SEP]")
        self.pad_id = self._id(config, "pad_token", PAD, "<pad>", "[PAD]")
        self.cls_id = self._id(config, "cls_token", CLS, "[CLS]", "<s>")
        self.sep_id = self._id(config, "sep_token", SEP, "[SEP]", "</s>")
        self.mask_id = self._id(config, "mask_token", MASK, "<mask>", "[MASK]")

    @property
    def files(self) -> dict[str, Path]:
        """The files that belong to a published model."""
        names = [*FILES, "special_tokens_map.json", "chat_template.jinja"]
        return {name: self.directory / name for name in names if (self.directory / name).exists()}

    @property
    def digest(self) -> str:
        """Of the tokenizer's file (hex)."""
        return hashlib.sha256((self.directory / "tokenizer.json").read_bytes()).hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens of its own."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def byte_lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Bytes that each token id stands for, shape (size,); special tokens stand for none."""
        lengths = np.zeros(self.size, dtype=np.int64)
        special = {
            id_ for id_, token in self.tokenizer.get_added_tokens_decoder().items() if token.special
        }
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        for token, id_ in self.tokenizer.get_vocab(with_added_tokens=True).items():
            if id_ in special:
                continue
            if all(character in alphabet for character in token):
                lengths[id_] = len(token)
            else:
                lengths[id_] = len(self.tokenizer.decode([id_]).encode())
        return lengths

    def special_ids(self) -> list[int]:
        """Ids of special tokens, in order."""
        added = self.tokenizer.get_added_tokens_decoder()
        return sorted(id_ for id_, token in added.items() if token.special)

    def _id(self, config: dict[str, Any], key: str, *names: str) -> int | None:
        named = config.get(key)
        if isinstance(named, dict):
            named = named.get("content")
        for name in (named, *names):
            if isinstance(name, str):
                found: int | None = self.tokenizer.token_to_id(name)
                if found is not None:
                    return found
        return None


def train(corpus: Corpus, survey: Survey, vocab_size: int, cache: Path) -> Vocabulary:
    """The byte-level BPE of a corpus's training documents, from the cache where it is there.

    Of a corpus above TRAINING_BYTES_MAX an even sample of documents is used, chosen by their hash.
    Raises InvalidError when vocab_size leaves no room for the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL)
    if vocab_size < smallest:
        raise InvalidError(f"cannot make a vocabulary of {vocab_size}: at least {smallest}")
    key = caching.key(
        "tokenizer", FORMAT, tokenizers_version, survey.digest, survey.threshold, vocab_size
    )

    def build(directory: Path) -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=TOKEN_CHARS_MAX,
        )
        tokenizer.train_from_iterator(_sample(corpus, survey), trainer)
        tokenizer.save(str(directory / "tokenizer.json"))
        durable.write_file(directory / "tokenizer_config.json", _config())

    return Vocabulary(caching.directory(cache / "tokenizers" / key, build))


def _sample(corpus: Corpus, survey: Survey) -> Iterator[str]:
    share = min(1.0, TRAINING_BYTES_MAX / survey.bytes)
    # The low bits: the high ones decide what is held out.
    limit = int(share * 2**32)
    for document in corpus.documents():
        if not survey.holds_out(document) and document.hash % 2**32 < limit:
            yield document.text


def _config() -> bytes:
    """tokenizer_config.json as transformers reads it."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    return msgspec.json.format(msgspec.json.encode(config), indent=2)


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = msgspec.json.decode((directory / "tokenizer_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"cannot read the tokenizer in {directory}: {error}") from error
    return config if isinstance(config, dict) else {}


def encode_all(
    vocabulary: Vocabulary, texts: Iterable[str], batch_chars: int
) -> Iterator[list[int]]:
    """Token ids text by text, encoded in batches of about `batch_chars` characters."""
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars >= batch_chars:
            yield from vocabulary.encode(batch)
            batch, chars = [], 0
    if batch:
        yield from vocabulary.encode(batch)
