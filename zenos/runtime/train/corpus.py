"""Reads a corpus: files, directories and globs of text, jsonl, csv and parquet, as documents.

Nothing is ever held whole in memory: text is decoded block by block, csv row by row, and other
tables are streamed by Hugging Face `datasets`. Every error names the file. The order of documents
depends on the files' paths and contents alone, so that what follows (split, tokenizer, packing) can
be cached by content.
"""

from __future__ import annotations

import codecs
import fnmatch
import glob
import hashlib
import itertools
import json
import os
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from zenos.core import globs
from zenos.core.errors import InvalidError
from zenos.core.limits import KIB, MIB
from zenos.core.names import check_encoding
from zenos.core.specs import DataSpec
from zenos.runtime.train import separated
from zenos.threads import Pool

BLOCK_BYTES: Final = MIB
DOCUMENT_BYTES_MIN: Final = 4 * KIB
DOCUMENT_BYTES_MAX: Final = MIB
DOCUMENTS_WANTED: Final = 256
_SNIFF_BYTES: Final = 8 * KIB
_HASH_SPACE: Final = 2**64
_FORMATS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
# Encodings whose text may have NUL bytes without being binary.
_WIDE: Final = ("utf-16", "utf-32", "utf_16", "utf_32", "utf16", "utf32")


Digest = bytes


class SourceFile(NamedTuple):
    """One file to read."""

    path: Path
    format: str
    bytes: int


class Document(NamedTuple):
    """A piece of text that is trained on or held out as a whole.

    bytes: in UTF-8. digest: SHA-256 of its content; hash: the first 64 bits of that.
    """

    text: str
    bytes: int
    digest: Digest

    @property
    def hash(self) -> int:
        return int.from_bytes(self.digest[:8], "big")


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass over the corpus found.

    digest: of all contents in order (hex). threshold: documents with a hash below are held out.
    """

    digest: str
    documents: int
    bytes: int
    threshold: int
    skipped: int = 0

    def holds_out(self, document: Document) -> bool:
        """Whether this document is for evaluation."""
        return document.hash < self.threshold


class Corpus:
    """The documents that a DataSpec names.

    on_bytes: called after each document with the bytes given out so far in this pass; what it
    raises ends the pass. Raises InvalidError, naming the path, for what is missing, unreadable,
    empty or no text.
    """

    def __init__(self, spec: DataSpec, on_bytes: Callable[[int], None] | None = None) -> None:
        self.spec = spec
        self.on_bytes = on_bytes
        check_encoding(spec.encoding)
        self.skipped: list[Path] = []
        self.files = self._find()
        total = sum(file.bytes for file in self.files)
        # Large files are cut, so that even a corpus of one file has documents to hold out.
        self.bytes = total
        self.document_bytes = min(
            max(total // DOCUMENTS_WANTED, DOCUMENT_BYTES_MIN), DOCUMENT_BYTES_MAX
        )

    def documents(self, pool: Pool | None = None) -> Generator[Document]:
        """All documents in order; empty ones are left out.

        pool: lanes that read files ahead, where they are small; the others are read here, block by
        block.
        """
        done = 0
        with closing(self._read(pool)) as found:
            for document in found:
                yield document
                done += document.bytes
                if self.on_bytes is not None:
                    self.on_bytes(done)

    def _read(self, pool: Pool | None) -> Generator[Document]:
        if pool is None:
            for file in self.files:
                yield from self._documents_of(file)
            return
        with pool.map(self._ahead, self.files) as found:
            for file, documents in zip(self.files, found, strict=True):
                yield from self._documents_of(file) if documents is None else documents

    def _ahead(self, file: SourceFile) -> list[Document] | None:
        """On a lane: the documents of a small file of text; None for others."""
        if file.format != "text" or file.bytes > BLOCK_BYTES:
            return None
        return list(self._documents_of(file))

    def _documents_of(self, file: SourceFile) -> Iterator[Document]:
        for text in self._texts(file):
            if not text.strip():
                continue
            try:
                content = text.encode("utf-8")
            except UnicodeEncodeError:
                raise InvalidError(
                    f"cannot read {file.path}: it has a half of a surrogate pair, which is no "
                    "character; repair that file or leave it out with --exclude (data.exclude)"
                ) from None
            yield Document(text, len(content), hashlib.sha256(content).digest())

    def survey(self) -> Survey:
        """Read everything once: the digest, and the split into training and held-out documents.

        1. A document is held out when its hash, as a fraction of all hashes, is below
           eval_fraction: so equal documents are on one side, and adding files moves no other one.
        2. Where that holds out nothing, the document with the lowest hash is; where everything, the
           one with the highest is trained on. A corpus of a single document has none to hold out.
        """
        whole = hashlib.sha256()
        count = size = high = 0
        low = _HASH_SPACE
        with Pool(name="reading") as pool, closing(self.documents(pool)) as documents:
            for document in documents:
                whole.update(document.bytes.to_bytes(8, "big"))
                whole.update(document.text.encode("utf-8"))
                count += 1
                size += document.bytes
                low, high = min(low, document.hash), max(high, document.hash)
        if count == 0:
            paths = ", ".join(self.spec.paths[:3])
            raise InvalidError(f"cannot train on {paths}: there is no text in it")
        threshold = int(self.spec.eval_fraction * _HASH_SPACE)  # 1
        if threshold and low < high:  # 2
            threshold = min(max(threshold, low + 1), high)
        elif low == high:
            threshold = 0
        return Survey(
            digest=whole.hexdigest(),
            documents=count,
            bytes=size,
            threshold=threshold,
            skipped=len(self.skipped),
        )

    # -- finding files

    def _find(self) -> list[SourceFile]:
        found: dict[Path, SourceFile] = {}
        for name in self.spec.paths:
            path = Path(name)
            if path.is_dir():
                inside = list(self._walk(path))
                if not inside:
                    raise InvalidError(f"cannot train on {path}: no text files in that directory")
                for each in inside:
                    found.setdefault(each.path, each)
                continue
            matches = self._matches(name, path)
            files = [self._file(match, named=match == path) for match in matches]
            found.update((file.path, file) for file in files if file is not None)
            if matches and not any(files):
                raise InvalidError(f"cannot train on {name}: no file that it matches has text")
        if not found:
            raise InvalidError(
                "cannot train on nothing: --exclude (data.exclude) leaves out every file"
            )
        return _each_once(found[path] for path in sorted(found))

    def _matches(self, name: str, path: Path) -> list[Path]:
        try:
            exists = path.exists()
        except OSError as error:
            raise _unreadable(path, error) from None
        if exists:
            return [] if self._excluded(path) else [path]
        if not globs.has_magic(name):
            raise InvalidError(f"cannot read {path}: there is no such file or directory")
        matches = [Path(match) for match in globs.expand(name)]
        # A link that leads nowhere is meant as text by nobody.
        files = [m for m in matches if not m.is_dir() and m.exists()]
        if not files:
            why = "no file matches"
            if matches:
                below = f"{name.rstrip('/')}/**"
                why = f"it matches directories alone; {below} matches the files in them and below"
            raise InvalidError(f"cannot train on {name}: {why}")
        return [m for m in files if not self._excluded(m)]

    def _walk(self, root: Path) -> Iterator[SourceFile]:
        def fail(error: OSError) -> None:
            raise _unreadable(Path(error.filename or root), error)

        for folder, folders, names in os.walk(root, onerror=fail):
            folders[:] = sorted(
                f
                for f in folders
                if not f.startswith(".")
                and f != "__pycache__"
                and not self._excluded(Path(folder, f))
            )
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or self._excluded(path):
                    continue
                if path.is_symlink() and not path.exists():
                    continue  # it leads nowhere: nobody means it as text
                file = self._file(path, named=False)
                if file is not None:
                    yield file

    def _file(self, path: Path, *, named: bool) -> SourceFile | None:
        """The file, if it is for reading; None for what else a directory or glob holds.

        named: by its own name, so that being empty or binary is an error.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                if named:
                    raise InvalidError(f"cannot read {path}: it is not a regular file")
                return None
            with path.open("rb") as stream:
                head = stream.read(_SNIFF_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from None
        if not head:
            if named:
                raise InvalidError(f"cannot train on {path}: it is empty")
            return None
        kind = self.spec.format
        if kind == "auto":
            kind = _FORMATS.get(path.suffix.lower(), "text")  # type: ignore[assignment]
        if kind == "parquet":
            if head[:4] != b"PAR1":
                raise InvalidError(f"cannot read {path}: it is not a parquet file")
        elif b"\0" in head and not self.spec.encoding.lower().startswith(_WIDE):
            if named:
                raise InvalidError(
                    f"cannot train on {path}: it is binary, not text (it has NUL bytes); if it is "
                    "text, give its --encoding"
                )
            self.skipped.append(path)
            return None
        return SourceFile(path, kind, status.st_size)

    def _excluded(self, path: Path) -> bool:
        text = str(path)
        return any(
            fnmatch.fnmatchcase(text, pattern)
            or text == pattern.rstrip("/")
            or text.startswith(pattern.rstrip("/") + "/")
            for pattern in self.spec.exclude
        )

    # -- reading them

    def _texts(self, file: SourceFile) -> Iterator[str]:
        try:
            if file.format == "text":
                yield from self._read_text(file.path)
            elif file.format == "csv":
                yield from separated.texts(file.path, self.spec.encoding, self.spec.text_column)
            else:
                yield from self._read_table(file)
        except OSError as error:
            raise _unreadable(file.path, error) from None

    def _read_text(self, path: Path) -> Iterator[str]:
        """Pieces of at most document_bytes characters, cut after blank lines or line ends."""
        decoder = codecs.getincrementaldecoder(self.spec.encoding)("strict")
        text, at = "", 0
        with path.open("rb") as stream:
            while True:
                block = stream.read(BLOCK_BYTES)
                try:
                    more = decoder.decode(block, final=not block)
                except UnicodeError as error:
                    raise self._not_text(path, at, error) from None
                if at == 0:
                    more = more.removeprefix("\ufeff")
                at += len(block)
                if "\0" in more:
                    raise InvalidError(
                        f"cannot train on {path}: it is binary, not text (it has NUL characters)"
                    )
                text += more
                begin = 0
                while len(text) - begin > self.document_bytes:
                    end = _cut(text, begin, begin + self.document_bytes)
                    yield text[begin:end]
                    begin = end
                text = text[begin:]
                if not block:
                    yield text
                    return

    def _not_text(self, path: Path, at: int, error: UnicodeError) -> InvalidError:
        where, why = at, str(error)
        if isinstance(error, UnicodeDecodeError):
            # `start` counts from the bytes that the decoder had kept of the block before.
            where = max(0, at + error.start - max(0, len(error.object) - BLOCK_BYTES))
            why = error.reason
        return InvalidError(
            f"cannot read {path}: it is not valid {self.spec.encoding} near byte {where} "
            f"({why}); give its --encoding, or leave it out with --exclude (data.exclude)"
        )

    def _read_table(self, file: SourceFile) -> Iterator[str]:
        with closing(_rows(file, self.spec.encoding)) as rows:
            for number in itertools.count(1):
                try:
                    row = next(rows, None)
                except OSError:
                    raise
                except Exception as error:
                    told = (
                        _first_bad_line(file.path, self.spec.encoding)
                        if file.format == "jsonl"
                        else None
                    )
                    raise InvalidError(
                        f"cannot read {file.path} as {file.format}"
                        + (f": {told}" if told else f" after row {number - 1}: {_reason(error)}")
                    ) from error
                if row is None:
                    return
                text = self._text_of(row, number, file.path)
                if text is not None:
                    yield text

    def _text_of(self, row: dict[str, Any], number: int, path: Path) -> str | None:
        column = self.spec.text_column
        if column not in row:
            raise separated.missing_column(path, column, list(map(str, row)))
        text = row[column]
        if text is None or isinstance(text, str):
            return text
        raise InvalidError(
            f"cannot use the column {column!r} of {path}: row {number} holds "
            f"{type(text).__name__}, not text"
        )


def _rows(file: SourceFile, encoding: str) -> Generator[dict[str, Any]]:
    """The rows of jsonl or parquet, streamed by `datasets`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    datasets.disable_progress_bars()
    options: dict[str, Any] = {}
    builder = {"jsonl": "json"}.get(file.format, file.format)
    if file.format == "jsonl":
        options = {"encoding": encoding}
    # Glob characters in a file's own name must not be read as a pattern.
    name = glob.escape(str(file.path))
    # It locks files in its cache even where it caches nothing: not in the user's own directory.
    with tempfile.TemporaryDirectory(prefix="zenos-rows-") as scratch:
        yield from datasets.load_dataset(
            builder,
            data_files=[name],
            split="train",
            streaming=True,
            cache_dir=scratch,
            **options,
        )


def _each_once(files: Iterable[SourceFile]) -> list[SourceFile]:
    """The same without those that are another one by another name: by a link, or a way over one.

    Of the names the first that is no link itself stays, else the first.
    """
    found: dict[str, list[SourceFile]] = {}
    for file in files:
        found.setdefault(os.path.realpath(file.path), []).append(file)
    stays = [min(same, key=lambda file: file.path.is_symlink()) for same in found.values()]
    return sorted(stays)


def _cut(text: str, begin: int, end: int) -> int:
    """Where to cut text[begin:end]: after its last blank line, line end or space, else at `end`."""
    half = begin + (end - begin) // 2
    for separator in ("\n\n", "\n", " "):
        at = text.rfind(separator, half, end)
        if at >= 0:
            return at + len(separator)
    return end


def _unreadable(path: Path, error: OSError) -> InvalidError:
    return InvalidError(f"cannot read {path}: {error.strerror or error}")


def _first_bad_line(path: Path, encoding: str) -> str | None:
    """Which line is no JSON object, as people count them; None where each is one by itself.

    Libraries count rows from where they began to read, which is no line of the file.
    """
    try:
        with path.open(encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    if not isinstance(json.loads(line), dict):
                        return f"line {number} is no JSON object"
                except json.JSONDecodeError as error:
                    return f"line {number} is no JSON: {error.msg.lower()} (column {error.colno})"
    except (OSError, ValueError, RecursionError):
        return None
    return None


def _reason(error: BaseException) -> str:
    """The first line of the deepest cause: that is where libraries say what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
