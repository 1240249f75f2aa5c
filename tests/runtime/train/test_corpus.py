"""Reading corpora: every kind of file, every kind of damage, and the split."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zenos.core.errors import InvalidError
from zenos.core.specs import DataSpec
from zenos.runtime.train import corpus as corpus_module
from zenos.runtime.train.corpus import Corpus
from zenos.threads import Pool

from .helpers import sentences, write_corpus


def read(*paths: object, **changes: Any) -> list[str]:
    corpus = Corpus(DataSpec(paths=[str(p) for p in paths], **changes))
    return [document.text for document in corpus.documents()]


def refused(*paths: object, **changes: Any) -> str:
    with pytest.raises(InvalidError) as caught:
        read(*paths, **changes)
    assert caught.value.message.startswith("cannot ")
    return caught.value.message


def test_directories_files_and_globs_give_the_same_documents(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "c", files=3, words=300)
    (root / "sub").mkdir()
    (root / "sub" / "x.txt").write_text("deep\n")
    (root / ".hidden").write_text("no")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "y.txt").write_text("no")
    whole = read(root)
    assert whole == read(root / "*.txt", root / "sub" / "**" / "*")
    assert "".join(whole) == "".join(
        p.read_text() for p in [*sorted(root.glob("*.txt")), root / "sub" / "x.txt"]
    )
    assert read(root / "00.txt", root / "00.txt") == read(root / "00.txt")
    assert "no" not in whole


def test_exclude_leaves_out_files_and_directories(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "c", files=2, words=50)
    (root / "test").mkdir()
    (root / "test" / "t.txt").write_text("left out")
    assert "left out" in read(root)
    assert "left out" not in read(root, exclude=["*/test/*"])
    assert "left out" not in read(root, exclude=[str(root / "test")])
    assert "every file" in refused(root / "00.txt", exclude=["*.txt"])


def test_a_large_file_is_cut_at_line_ends_without_loss(tmp_path: Path) -> None:
    text = sentences(1, 30_000)
    path = tmp_path / "one.txt"
    path.write_text(text)
    documents = read(path)
    assert len(documents) > 20
    assert "".join(documents) == text
    assert all(d.endswith("\n") for d in documents[:-1])


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "latin-1", "utf-8"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "caf\u00e9\n" if encoding == "latin-1" else "你好,世界。𠀀\n"
    # Long enough for characters to lie across block boundaries.
    text *= 300_000 if encoding == "gb18030" else 10
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert "".join(read(tmp_path / "a.txt", encoding=encoding)) == text


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read(tmp_path / "a.txt") == ["hello"]


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "'klingon'" in refused(tmp_path / "a.txt", encoding="klingon")
    assert "encoding" in refused(tmp_path / "a.txt", encoding="base64")


def test_invalid_utf8_names_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good " * 300_000 + b"\xff\xfe rest")
    message = refused(path)
    assert str(path) in message
    assert "byte 1500000" in message
    assert "--encoding" in message
    assert str(path) in refused(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_utf16_without_its_mark_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("text\nsome\n".encode("utf-16-le"))
    assert f"cannot read {path}: it is not valid utf-16" in refused(path, encoding="utf-16")
    assert "".join(read(path, encoding="utf-16-le")).removeprefix("text\n").strip() == "some"


def test_empty_binary_missing_and_odd_files_are_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "data.bin"
    empty.touch()
    binary.write_bytes(bytes(range(256)) * 10)
    assert f"{empty}: it is empty" in refused(empty)
    assert f"{binary}: it is binary" in refused(binary)
    late = tmp_path / "late.txt"
    late.write_bytes(b"a" * 20_000 + b"\0")
    assert f"{late}: it is binary" in refused(late)
    late.unlink()
    assert "no such file" in refused(tmp_path / "missing.txt")
    assert "no file matches" in refused(tmp_path / "*.nothing")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    assert "no text files" in refused(tmp_path)
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n\n ")
    with pytest.raises(InvalidError, match="no text in it"):
        Corpus(DataSpec(paths=[str(blank)])).survey()


def test_what_to_do_is_said_in_flags_and_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    assert "name one with --text-column (data.text_column)" in refused(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"text\n\xff\n")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    for path in (tmp_path / "b.csv", tmp_path / "c.txt"):
        assert "give its --encoding, or leave it out with --exclude (data.excl" in refused(path)
    assert "--exclude (data.exclude) leaves out" in refused(tmp_path / "c.txt", exclude=["*.txt"])


def test_a_glob_of_directories_says_what_to_write_instead(tmp_path: Path) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    for path in (tmp_path / "one" / "a.txt", tmp_path / "one" / "two" / "b.txt"):
        path.write_text(path.stem)
    for pattern in (f"{tmp_path}/*", f"{tmp_path}/*/"):
        assert f": it matches directories alone; {tmp_path}/*/** matches the" in refused(pattern)
    assert read(f"{tmp_path}/*/**") == ["a", "b"]


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.md", "/**/**/*.md", "/*/**/*", "/*/*.md"])
def test_each_file_is_read_once_whatever_links_lead_to_it(tmp_path: Path, pattern: str) -> None:
    sub = tmp_path / "docs" / "sub"
    sub.mkdir(parents=True)
    (sub / "a.md").write_text("once")
    (sub / "same.md").symlink_to("a.md")
    (sub / "nowhere.md").symlink_to("nowhere.md")
    (sub / "up").symlink_to("..")
    (sub / "around").symlink_to("../..")
    (tmp_path / "link").symlink_to("docs")
    for root in ("docs", "link"):
        corpus = Corpus(DataSpec(paths=[f"{tmp_path / root}{pattern}"]))
        assert [file.path for file in corpus.files] == [tmp_path / root / "sub" / "a.md"]


def test_a_link_to_a_directory_is_followed_where_a_glob_names_it(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.md").write_text("far away")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far")
    for pattern in ("here/link/*.md", "here/**/link/*.md", "here/*/*.md", "h*/link/**"):
        assert read(tmp_path / pattern) == ["far away"]
    assert "no file matches" in refused(tmp_path / "here" / "**" / "*.md")


def test_unreadable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")
    real = Path.open

    def refuse(self: Path, *args: Any, **more: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(self, *args, **more)

    # The tests may run as root, for whom nothing is unreadable.
    monkeypatch.setattr(Path, "open", refuse)
    assert refused(path) == f"cannot read {path}: Permission denied"
    assert refused(tmp_path) == f"cannot read {path}: Permission denied"


def test_directories_skip_binaries_and_say_how_many(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.bin").write_bytes(b"\0\1")
    corpus = Corpus(DataSpec(paths=[str(tmp_path)]))
    assert corpus.skipped == [tmp_path / "b.bin"]
    assert corpus.survey().skipped == 1


def test_tables(tmp_path: Path) -> None:
    texts = ["one", "two, with comma", "NA", "vier\nLinien", "五"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))
    )
    csv = "id,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts))
    (tmp_path / "a.csv").write_text(csv)
    (tmp_path / "g.csv").write_bytes(csv.encode("gb18030"))
    pq.write_table(pa.table({"text": texts, "id": range(5)}), tmp_path / "a.parquet")
    tabs = "id\ttext\n" + "".join(f'{i}\t"{t}"\n' for i, t in enumerate(texts))
    (tmp_path / "a.tsv").write_text(tabs)
    (tmp_path / "a.ndjson").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "other").write_bytes((tmp_path / "a.csv").read_bytes())
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.ndjson"):
        assert read(tmp_path / name) == texts, name
    assert read(tmp_path / "other", format="csv") == texts
    assert read(tmp_path / "*.jsonl", tmp_path / "a.csv") == texts + texts
    assert read(tmp_path / "a.parquet") == texts
    assert read(tmp_path / "g.csv", encoding="gb18030") == texts
    assert read(tmp_path / "a.parquet", text_column="text", format="parquet") == texts
    pq.write_table(pa.table({"text": ["no"] * 5, "body": texts}), tmp_path / "b.parquet")
    (tmp_path / "b.csv").write_text(csv.replace("text", "body", 1))
    for name in ("b.parquet", "b.csv"):
        assert read(tmp_path / name, text_column="body") == texts, name


def test_broken_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "bro')
    assert f"cannot read {path} as jsonl: line 2 is no JSON: " in refused(path)
    path.write_text('{"text": "fine"}\n\n["text"]\n')
    assert "line 3 is no JSON object" in refused(path)
    path.write_text('{"body": "fine"}\n')
    message = refused(path)
    assert "'text'" in message
    assert "body" in message
    path.write_text('{"text": 5}\n')
    assert "not text" in refused(path)
    parquet = tmp_path / "a.parquet"
    parquet.write_text("no parquet at all")
    assert str(parquet) in refused(parquet)
    parquet.write_bytes(b"PAR1" + b"x" * 100)
    assert str(parquet) in refused(parquet)
    csv = tmp_path / "a.csv"
    csv.write_bytes(b"text\n\xff\xfe\n")
    assert str(csv) in refused(csv)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("7,AAA,BBB\n8,CCC,DDD\n", "row 1 has 3 fields, the header has 2"),
        ("1,one\n\n2,two\n3,Hello, world\n", "row 3 has 3 fields, the header has 2"),
        ("1,AAA,\n2,BBB,\n", "row 1 has 3 fields, the header has 2"),
        ('1,"a\nb"\n2,broken\nin two\n', "row 3 has 1 field, the header has 2"),
        ('1,one\n2,"never closed\n3,three\n', "row 2 has a quote that isn't closed"),
    ],
)
def test_rows_of_csv_are_never_read_into_another_column(
    tmp_path: Path, rows: str, told: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + rows)
    assert told in refused(path)
    tabs = tmp_path / "a.tsv"
    tabs.write_text(("id,text\n" + rows).replace(",", "\t"))
    assert told in refused(tabs)


def test_a_csv_with_a_mark_nuls_or_an_open_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,id\none,1\n", encoding="utf-8-sig")
    assert read(path) == ["one"]
    path.write_text('id,"text\n1,one\n')
    assert "its header has a quote that isn't closed" in refused(path)
    path.write_text("id,text\n" + "1,one\n" * 20_000 + "2,t\0wo\n")
    assert "row 20001 is no row of fields (it has NUL characters)" in refused(path)


def test_a_csv_of_blank_lines_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n  \n")
    assert refused(path) == f"cannot train on {path}: it has only blank lines, and no header"


def test_a_column_that_a_header_names_twice_is_not_chosen_from(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text\nAAA,BBB\n")
    assert "its header names the column 'text' 2 times" in refused(path)
    path.write_text("text,,\nAAA,,\n")  # as spreadsheets leave empty columns
    assert read(path) == ["AAA"]


def test_cells_of_csv_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,00001\n2,\n3,4.50\n4,NA\n5,true\n", encoding="utf-8-sig")
    assert read(path) == ["00001", "4.50", "NA", "true"]  # an empty text is no document
    long = "many words " * 20_000
    path.write_text(f'text\r\n"{long}"\r\n"a ""quoted"", text"\r\n', newline="")
    assert read(path) == [long, 'a "quoted", text']


def test_the_split_hangs_on_content_alone(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a", files=60, words=60)
    survey = Corpus(spec := DataSpec(paths=[str(first)], eval_fraction=0.2)).survey()
    held = {d.text for d in Corpus(spec).documents() if survey.holds_out(d)}
    assert 3 <= len(held) <= 24
    second = tmp_path / "b"
    second.mkdir()
    for number, path in enumerate(sorted(first.iterdir(), reverse=True)):
        (second / f"{number:03d}.txt").write_bytes(path.read_bytes())
    (second / "more.txt").write_text("something else entirely")
    other = Corpus(spec2 := DataSpec(paths=[str(second)], eval_fraction=0.2))
    again = other.survey()
    assert again.digest != survey.digest
    held_again = {d.text for d in Corpus(spec2).documents() if again.holds_out(d)}
    assert held_again - {"something else entirely"} == held


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 0.5])
def test_something_is_held_out_and_something_is_left(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    corpus = Corpus(DataSpec(paths=[str(tmp_path)], eval_fraction=fraction))
    survey = corpus.survey()
    held = [survey.holds_out(d) for d in corpus.documents()]
    assert sum(held) == (1 if fraction else 0)


def test_one_document_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    corpus = Corpus(DataSpec(paths=[str(tmp_path)], eval_fraction=0.5))
    survey = corpus.survey()
    assert not any(survey.holds_out(d) for d in corpus.documents())


def test_a_survey_reads_files_on_a_lane_for_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENOS_CPU", "2")
    together, by = threading.Barrier(2), set()
    read = Corpus._read_text

    def met(self: Corpus, path: Path) -> Iterator[str]:
        by.add(threading.current_thread().name.partition("-")[0])
        if path.name in ("00.txt", "01.txt"):
            together.wait(60)  # passed by two at once, or by none
        yield from read(self, path)

    monkeypatch.setattr(Corpus, "_read_text", met)
    for number in range(8):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number} ")
    survey = Corpus(DataSpec(paths=[str(tmp_path)])).survey()
    assert (survey.documents, by) == (8, {"reading"})


def test_files_are_read_ahead_on_lanes_to_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 64)
    by: set[str] = set()
    read = Corpus._read_text

    def watched(self: Corpus, path: Path) -> Iterator[str]:
        by.add(f"{path.name} {threading.current_thread().name.partition('-')[0]}")
        yield from read(self, path)

    monkeypatch.setattr(Corpus, "_read_text", watched)
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number} " * (20 if number == 5 else 2))
    found = Corpus(DataSpec(paths=[str(tmp_path)]))
    plain = list(found.documents())
    by.clear()
    with Pool(2, name="ahead") as pool:
        assert list(found.documents(pool)) == plain
        assert by == {  # the large one by whoever takes the documents, block by block
            f"{n:02}.txt {'MainThread' if n == 5 else 'ahead'}" for n in range(12)
        }
        (tmp_path / "07.txt").write_bytes(b"\xff\xfe bad")
        ahead = found.documents(pool)
        assert list(itertools.islice(ahead, 7)) == plain[:7]
        with pytest.raises(InvalidError, match=r"07.txt: it is not valid utf-8"):
            next(ahead)
