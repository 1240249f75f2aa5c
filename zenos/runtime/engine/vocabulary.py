"""A model's tokenizer as the engine uses it: text to tokens, tokens to bytes and to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from zenos.core.errors import InvalidError, StorageError
from zenos.runtime.engine.text import BytePieces, Pieces, WindowPieces

_SPACE: Final = "\u2581"  # what SentencePiece writes for a space
# Decoders that write each token's bytes one after another, whatever stands beside it.
_BYTE_LEVEL: Final = frozenset({"ByteLevel", "Fuse"})
_SENTENCE_PIECE: Final = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write for bytes (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    table = {chr(byte): byte for byte in shown}
    table.update({chr(256 + number): byte for number, byte in enumerate(hidden)})
    return table


_ALPHABET: Final = byte_alphabet()


class Vocabulary:
    """The tokenizer in a model's directory.

    end_ids: tokens that end an answer. config: of tokenizer_config.json.
    """

    def __init__(self, directory: Path) -> None:
        self.config = read_json(directory / "tokenizer_config.json")
        self._tokenizer: Any = _load(directory)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(id_ for id_, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        self._kind = _decoder_kind(self._tokenizer.decoder)
        self.end_ids = self._end_ids(directory)
        # Only where each byte of a text becomes part of a token.
        self._exact = self._kind == "bytes" and self._tokenizer.normalizer is None
        self._longest = 0

    def least_tokens(self, text: str) -> int:
        """So many tokens a text has at least, told without tokenizing it; 0 if that can't be."""
        if not self._exact:
            return 0
        if not self._longest:
            ids = self._tokenizer.get_vocab().values()  # which may have gaps
            self._longest = max((len(self.bytes_of(token)) for token in ids), default=1)
        return -(-len(text.encode("utf-8", "replace")) // max(self._longest, 1))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids. special: with what the tokenizer puts around a text (such as its beginning).

        An empty text is the beginning alone. InvalidError when the tokenizer can't take the text.
        """
        try:
            # A batch of one: `encode` itself keeps Python's lock, and with it every other thread.
            (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
            ids: list[int] = found.ids
        except Exception as error:
            # The library raises bare exceptions, such as for a character it has no token for.
            raise InvalidError(f"cannot tokenize the prompt: {str(error)[:200]}") from error
        if not ids:
            first = self._named("bos_token", "eos_token")
            ids = [] if first is None else [first]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of all these tokens, without the special ones."""
        if self._kind == "other":
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
            return text
        pieces = self.pieces(start=True)
        return "".join(map(pieces.add, tokens)) + pieces.finish()

    def pieces(self, *, start: bool) -> Pieces:
        """A decoder for one sequence. start: its first token is the first of a text."""
        if self._kind == "other":
            return WindowPieces(lambda ids: str(self._tokenizer.decode(list(ids))))
        return BytePieces(self._spoken, strip=start and self._kind == "strip")

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; a special token's name."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._find_bytes(token)
        return found

    def is_special(self, token: int) -> bool:
        """Whether a token is no part of a text."""
        return token in self._special

    def token_id(self, name: str) -> int | None:
        """The id of a token by its name."""
        found: int | None = self._tokenizer.token_to_id(name)
        return found

    def _spoken(self, token: int) -> bytes:
        return b"" if token in self._special else self.bytes_of(token)

    def _find_bytes(self, token: int) -> bytes:
        name: str | None = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if token in self._special:
            return name.encode()
        if self._kind == "other":
            return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()
        if self._kind == "bytes":
            if all(character in _ALPHABET for character in name):
                return bytes(_ALPHABET[character] for character in name)
            return name.encode()
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            try:
                return bytes([int(name[3:5], 16)])
            except ValueError:
                pass
        return name.replace(_SPACE, " ").encode()

    def _named(self, *keys: str) -> int | None:
        """The id of the first of these special tokens that tokenizer_config.json names."""
        for key in keys:
            name = token_text(self.config.get(key))
            found = self.token_id(name) if name else None
            if found is not None:
                return found
        return None

    def _end_ids(self, directory: Path) -> frozenset[int]:
        """The tokenizer's end, and what the model's own settings call so."""
        generation = read_json(directory / "generation_config.json")
        said = generation.get(
            "eos_token_id", read_json(directory / "config.json").get("eos_token_id")
        )
        ids = said if isinstance(said, list) else [said]
        ids.append(self._named("eos_token"))
        return frozenset(id_ for id_ in ids if isinstance(id_, int))


def _load(directory: Path) -> Any:
    path = directory / "tokenizer.json"
    if not path.exists():
        raise InvalidError(
            "cannot serve a model without a tokenizer.json: create or import it with a tokenizer"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare exceptions.
        raise StorageError(f"cannot read tokenizer.json: {str(error)[:200]}") from error


def _decoder_kind(decoder: Any) -> str:
    """`bytes`, `spaces` (SentencePiece), `strip` (that, without the first space), or `other`."""
    if decoder is None:
        return "other"
    try:
        said = json.loads(decoder.__getstate__())
    except (TypeError, ValueError):
        return "other"
    parts = said.get("decoders", [said])
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds and kinds <= _BYTE_LEVEL:
        return "bytes"
    if not kinds <= _SENTENCE_PIECE or not kinds & {"ByteFallback", "Metaspace"}:
        return "other"
    for part in parts:
        if part["type"] == "Replace" and (part["pattern"], part["content"]) != (
            {"String": _SPACE},
            " ",
        ):
            return "other"
        if part["type"] == "Strip" and (part["content"], part["start"], part["stop"]) != (
            " ",
            1,
            0,
        ):
            return "other"
        if part["type"] == "Metaspace" and part.get("replacement") != _SPACE:
            return "other"
    strips = any(
        part["type"] == "Strip"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )
    return "strip" if strips else "spaces"


def token_text(token: Any) -> str:
    """A special token's text, as tokenizer_config.json writes it: plain or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file. StorageError when it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"cannot read {path.name} of the model: {error}") from error
    return found if isinstance(found, dict) else {}
