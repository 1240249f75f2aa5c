"""Versions by name: published, found, aliased, copied, removed; equal contents stored once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from zenos.core import limits
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, StorageError, ZenosError
from zenos.core.names import ModelRef
from zenos.models import copying
from zenos.models import registry as registry_module
from zenos.models.registry import Asked, Lineage, Registry

from .files import blob, flip_bit, litter, state, write_model


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> Registry:
    """m:1, m:2 and m:3, with different weights; the second is `prod`."""
    for number in (1, 2, 3):
        registry.publish("m", write_model(tmp_path / f"m{number}", b"weights %d" % number))
    registry.alias("m", "prod", 2)
    return registry


# -- publish and resolve


def test_a_reference_means_a_number_an_alias_or_the_newest(three: Registry) -> None:
    meant = {ref: three.resolve(ref).version for ref in ("m", "m:latest", "m:1", "m:3", "m:prod")}
    assert meant == {"m": 3, "m:latest": 3, "m:1": 1, "m:3": 3, "m:prod": 2}
    assert three.resolve(ModelRef("m", "prod")).ref == "m:2"


def test_an_unknown_model_is_answered_with_the_nearest_name(three: Registry) -> None:
    three.copy("m", "shakespeare")
    with pytest.raises(NotFoundError, match=r"'shakespear'; did you mean 'shakespeare'\?"):
        three.resolve("shakespear:2")
    with pytest.raises(NotFoundError, match="'zenos list' shows all"):
        three.resolve("zzz")


@pytest.mark.parametrize("ref", ["m:4", "m:999999999", "m:0", "m:01", "m:nosuch"])
def test_an_unknown_version_is_answered_with_those_there_are(three: Registry, ref: str) -> None:
    with pytest.raises(NotFoundError, match=f"cannot find {ref}: the versions are 1, 2, 3"):
        three.resolve(ref)


def test_a_misspelled_alias_is_answered_with_the_nearest(three: Registry) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'prod'"):
        three.resolve("m:prd")


def test_an_empty_registry_has_nothing_and_makes_nothing(registry: Registry, root: Path) -> None:
    assert registry.list() == []
    with pytest.raises(NotFoundError, match="cannot find the model 'm'; 'zenos list' shows all"):
        registry.resolve("m")
    assert not root.exists()


def test_a_version_says_what_it_is_and_where_it_comes_from(
    registry: Registry, root: Path, tmp_path: Path
) -> None:
    files = write_model(tmp_path / "m", b"12345")
    lineage = Lineage(parent="base:7", data_hash="ab" * 32, task="t12", code_version="1.2.3")
    metrics = {"eval_loss": 1.5, "perplexity": float("inf"), "steps": 12}
    curve: list[list[float | None]] = [[0, 5.5, None], [10, 1.25, 1.5]]
    said = registry.publish("m", files, lineage=lineage, metrics=metrics, curve=curve)
    read = Registry(root).resolve("m")  # another process
    assert (read.ref, read.created, read.files) == (said.ref, said.created, said.files)
    assert read.lineage == lineage
    # JSON has no infinity.
    assert read.metrics == {"eval_loss": 1.5, "perplexity": None, "steps": 12}
    assert (read.curve, read.config) == (curve, {"model_type": "llama", "hidden_size": 4})
    assert (read.arch, read.family, read.parameters) == ("llama", "decoder", 5)
    assert read.bytes == sum(path.stat().st_size for path in files.values())
    manifest = json.loads((root / "manifests/m/1.json").read_bytes())
    assert manifest["lineage"]["data_hash"] == "ab" * 32
    assert manifest["files"]["config.json"]["size"] == files["config.json"].stat().st_size


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "gpt2"}, "decoder"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "bert", "is_decoder": True}, "decoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({}, "unknown"),
    ],
)
def test_families(registry: Registry, tmp_path: Path, config: dict[str, Any], family: str) -> None:
    version = registry.publish("m", write_model(tmp_path / "m", config=config))
    assert (version.family, version.arch) == (family, config.get("model_type", ""))


def test_what_is_published_no_longer_needs_its_source(registry: Registry, tmp_path: Path) -> None:
    files = write_model(tmp_path / "m")
    before = {name: path.read_bytes() for name, path in files.items()}
    version = registry.publish("m", files)
    for path in files.values():
        path.write_bytes(b"changed later")
        path.unlink()
    view = registry.path(version)
    assert {path.name: path.read_bytes() for path in view.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config.json": None}, "without a config.json"),
        ({"config.json": b"{"}, "cannot read config.json"),
        ({"config.json": b"[1]"}, "it is no object"),
        ({"config.json": b"\xff\xfe\x00"}, "cannot read config.json"),
        ({"config.json": b'{"model_type": ["bert"]}'}, "model_type is no text"),
        ({"config.json": b'{"a": %s}' % (b"9" * 9999)}, "cannot read config.json"),
        ({"config.json": b'{"a": "\\ud800"}'}, "cannot read config.json"),
        ({"config.json": b'{"a":' * 5000 + b"1" + b"}" * 5000}, "cannot read config.json"),
        ({"config.json": b"{%s}" % (b" " * 2**24)}, "larger than"),
        ({"model.safetensors": b"short"}, "model.safetensors: it is truncated"),
        ({"pytorch_model.bin": b"anything"}, "'pytorch_model.bin': it is a pickle"),
        ({"WEIGHTS.PT": b"anything"}, "'WEIGHTS.PT': it is a pickle"),
        ({"../escape.json": b"{}"}, "cannot register a file called '../escape.json'"),
        ({"a/b.json": b"{}"}, "cannot register a file called 'a/b.json'"),
        ({"..": b"{}"}, "cannot register a file called '..'"),
        ({".hidden": b"{}"}, "cannot register a file called '.hidden'"),
        ({"a\x00.json": b"{}"}, r"cannot register a file called 'a\\x00.json'"),
        ({"a\n.json": b"{}"}, r"cannot register a file called 'a\\n.json'"),
        ({"😀.json": b"{}"}, "cannot register a file called"),
        ({"x" * 10_000: b"{}"}, "cannot register a file called 'xxx"),
        ({"": b"{}"}, "cannot register a file called ''"),
    ],
)
def test_files_that_may_not_be_registered(
    registry: Registry, root: Path, tmp_path: Path, change: dict[str, bytes | None], reason: str
) -> None:
    files = write_model(tmp_path / "m")
    for number, (name, content) in enumerate(change.items()):
        files[name] = tmp_path / f"plain-{number}"
        if content is None:
            del files[name]
        else:
            files[name].write_bytes(content)
    with pytest.raises(InvalidError, match=reason) as raised:
        registry.publish("m", files)
    assert str(raised.value).startswith("cannot ")
    assert len(str(raised.value)) < 600
    assert registry.list() == []
    assert litter(root) == []


def test_files_that_are_none(registry: Registry, tmp_path: Path) -> None:
    files = write_model(tmp_path / "m")
    with pytest.raises(InvalidError, match=r"gone\.txt: .* is no file"):
        registry.publish("m", {**files, "gone.txt": tmp_path / "gone.txt"})
    with pytest.raises(InvalidError, match=r"directory\.txt: .* is no file"):
        registry.publish("m", {**files, "directory.txt": tmp_path})
    many = {f"{number}.txt": files["tokenizer.json"] for number in range(1001)}
    with pytest.raises(InvalidError, match="cannot register 1004 files: at most 1000"):
        registry.publish("m", {**files, **many})


# -- names

NAMES_REFUSED = [
    "", ".", "..", "../../etc/passwd", "a/b", "/abs", "a\\b", "-rf", ".hidden", "a b", "a\x00b",
    "a\nb", "a\n", "\x1b[31m", "a\u202eb", "😀", "m😀", "a:b", "x" * 65, "x" * 10_000, "é" * 5000,
    "\ud800", "𠀀" * 64, "a*", "?", "~root", "$HOME",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES_REFUSED, ids=lambda name: ascii(name[:20]))
def test_names_that_may_not_be_used(three: Registry, root: Path, tmp_path: Path, name: str) -> None:
    before = state(three), litter(root)
    files = write_model(tmp_path / "n")
    attempts: list[Callable[[], Any]] = [
        lambda: three.publish(name, files),
        lambda: three.import_directory(tmp_path / "n", name),
        lambda: three.copy("m", name),
        lambda: three.alias("m", name, 1),
        lambda: three.alias(name, "a", 1),
        lambda: three.resolve(ModelRef(name)),
        lambda: three.resolve(ModelRef(name, "1")),
        lambda: three.remove(ModelRef(name)),
        lambda: three.export(ModelRef(name), tmp_path / "out"),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(InvalidError, match=r"^cannot use") as raised:
            attempt()
        assert len(str(raised.value)) < 1000, number
        assert str(raised.value).isprintable(), number
    assert (state(three), litter(root)) == before


ANY_NAME = st.text(max_size=80) | st.from_regex(r"\w[\w.\-]{0,70}", fullmatch=True)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=ANY_NAME, tag=st.none() | ANY_NAME)
def test_any_name_is_refused_or_kept_inside(
    three: Registry, root: Path, tmp_path: Path, name: str, tag: str | None
) -> None:
    known = set(tmp_path.iterdir())
    try:
        version = three.copy("m:1", name)
    except InvalidError:
        assert name not in {version.name for version in three.list()}
    else:
        assert three.resolve(name) == version
        assert three.path(version).resolve().is_relative_to(root.resolve())
        if tag is not None:
            try:
                three.alias(name, tag, version.version)
            except InvalidError:
                pass
            else:
                assert three.resolve(f"{name}:{tag}").version == version.version
        three.remove(version.ref)
    assert set(tmp_path.iterdir()) == known


def test_one_name_in_two_spellings_is_one_model(registry: Registry, tmp_path: Path) -> None:
    """é as one character or as e with an accent: people can't tell, terminals differ."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    registry.publish(composed, write_model(tmp_path / "a"))
    registry.publish(apart, write_model(tmp_path / "b"))
    registry.alias(apart, apart, 1)
    assert registry.resolve(f"{composed}:{composed}").ref == f"{composed}:1"
    assert registry.resolve(ModelRef(apart)).ref == f"{composed}:2"
    registry.remove(f"{apart}:{apart}")
    assert [version.ref for version in registry.list()] == [f"{composed}:2"]


# -- list, alias, copy, remove


def test_the_list_is_by_name_and_number(registry: Registry, tmp_path: Path) -> None:
    files = write_model(tmp_path / "m")
    for name in ["b", *["a"] * 11, "B"]:
        registry.publish(name, files)
    assert [v.ref for v in registry.list()] == [
        "B:1", *(f"a:{number}" for number in range(1, 12)), "b:1",
    ]  # fmt: skip
    assert registry.resolve("a").version == 11


def test_an_alias_moves_and_a_version_knows_its_aliases(three: Registry) -> None:
    three.alias("m", "best", 2)
    assert three.resolve("m:2").aliases == ["best", "prod"]
    three.alias("m", "prod", 3)
    assert three.resolve("m:prod").version == 3
    assert {v.version: v.aliases for v in three.list()} == {1: [], 2: ["best"], 3: ["prod"]}


@pytest.mark.parametrize("alias", ["latest", "1", "9", "0", "007", "1234567890", "٣"])
def test_an_alias_may_not_look_like_a_version(three: Registry, alias: str) -> None:
    with pytest.raises(InvalidError, match="it means a version already"):
        three.alias("m", alias, 1)


def test_an_alias_needs_a_version_that_is_there(three: Registry) -> None:
    with pytest.raises(NotFoundError, match="the versions are 1, 2, 3"):
        three.alias("m", "x", 4)
    with pytest.raises(NotFoundError, match="cannot find the model 'n'"):
        three.alias("n", "x", 1)
    assert three.resolve("m:prod").version == 2


def test_a_copy_shares_its_files_and_names_its_parent(three: Registry, root: Path) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in (root / "blobs").rglob("*") if path.is_file())

    before = size()
    old, new = three.resolve("m:prod"), three.copy("m:prod", "n")
    assert size() == before
    assert (new.ref, new.lineage.parent, new.files, new.aliases) == ("n:1", "m:2", old.files, [])
    assert three.copy("m", "n").ref == "n:2"
    assert three.remove("m:2") == 0  # the copy needs all of it
    three.verify(three.resolve("n:1"))
    assert (three.path(three.resolve("n:1")) / "model.safetensors").read_bytes().endswith(b"ghts 2")


ASKED = Asked(user="you", key="k", digest="d1")


def test_a_request_sent_again_makes_nothing_twice(
    three: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = three.copy("m:1", "n", ASKED)
    three.remove("m:1")
    assert three.copy("m:1", "n", ASKED) == first  # though its source is gone
    assert three.copy("m:2", "n", replace(ASKED, user="her")).ref == "n:2"
    assert three.copy("m:2", "n").ref == "n:3"
    with pytest.raises(ConflictError, match="send a new key"):
        three.copy("m:2", "o", replace(ASKED, digest="d2"))

    write_model(tmp_path / "theirs", b"theirs")
    other = replace(ASKED, key="k2")
    mine = three.import_directory(tmp_path / "theirs", "mine", other)
    (tmp_path / "theirs").rename(tmp_path / "away")
    restarted = Registry(tmp_path / "models")
    assert restarted.import_directory(tmp_path / "theirs", "mine", other) == mine

    three.remove("mine")
    assert three.import_directory(tmp_path / "away", "mine", other).ref == "mine:2"
    later = first.created + limits.IDEMPOTENCY_KEPT_S + 1
    monkeypatch.setattr("time.time", lambda: later)
    assert three.copy("m:2", "n", ASKED).ref == "n:4"


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({}, False),
        ({"chat_template.jinja": "{{ messages }}"}, True),
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, True),
        ({"tokenizer_config.json": '{"chat_template": null}'}, False),
        (
            {"tokenizer_config.json": '{"chat_template": "{% if"}', "chat_template.jinja": "x"},
            True,
        ),
    ],
)
def test_a_model_that_was_taught_to_chat_says_so(
    registry: Registry, tmp_path: Path, files: dict[str, str], has: bool
) -> None:
    write_model(tmp_path / "m", b"weights")
    for name, text in files.items():
        (tmp_path / "m" / name).write_text(text)
    registry.import_directory(tmp_path / "m", "m")
    assert registry.resolve("m").has_chat_template is has


def test_a_failed_copy_makes_no_name(three: Registry, root: Path) -> None:
    with pytest.raises(NotFoundError):
        three.copy("m:9", "n")
    assert {version.name for version in three.list()} == {"m"}
    assert litter(root) == []


def test_equal_contents_are_stored_once(registry: Registry, root: Path, tmp_path: Path) -> None:
    first = registry.publish("a", write_model(tmp_path / "a", b"same"))
    second = registry.publish("b", write_model(tmp_path / "b", b"same", {"model_type": "gpt2"}))
    assert first.files["model.safetensors"] == second.files["model.safetensors"]
    stored = [path for path in (root / "blobs").rglob("*") if path.is_file()]
    assert len(stored) == 4  # two configs, one of each other
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o400}


def test_removing_frees_what_no_other_version_has(three: Registry, root: Path) -> None:
    version = three.resolve("m:2")
    three.path(version)
    assert three.remove("m:prod") == version.files["model.safetensors"].size
    assert [v.version for v in three.list()] == [1, 3]
    for gone in ("m:2", "m:prod"):
        with pytest.raises(NotFoundError, match="the versions are 1, 3"):
            three.resolve(gone)
    with pytest.raises(NotFoundError, match="the versions are 1, 3, and it has no aliases"):
        three.resolve("m:prod")
    with pytest.raises(NotFoundError, match="it was removed"):
        three.path(version)
    assert litter(root) == []
    assert three.collect_garbage() == 0


def test_a_number_is_never_given_twice(three: Registry, tmp_path: Path) -> None:
    for _ in range(3):
        three.remove("m")
    with pytest.raises(NotFoundError, match="cannot find the model 'm'"):
        three.resolve("m")
    assert three.publish("m", write_model(tmp_path / "again")).ref == "m:4"


def test_garbage_is_what_no_version_names(three: Registry, root: Path) -> None:
    before = state(three)
    orphan = root / "blobs/sha256/ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"orphan")
    for place in ("blobs/sha256", "manifests/m", "names", "views/m"):
        (root / place).mkdir(exist_ok=True)
        (root / place / ".tmp-1-abc-1.json").write_bytes(b"half")
    (root / "views/m/9").mkdir()
    (root / "views/m/.tmp-1-abc-9").mkdir()
    assert state(three) == before
    (root / "views/m/.tmp-1-abc-1.json").unlink()
    assert three.collect_garbage() == len(b"orphan") + len(b"half")
    assert litter(root) == []
    assert state(three) == before


# -- views


def test_a_view_is_made_once_however_many_ask(three: Registry, root: Path) -> None:
    version = three.resolve("m:1")
    ready = threading.Barrier(8)
    found: list[object] = []

    def ask() -> None:
        ready.wait()
        try:
            found.append(three.path(version))
        except ZenosError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(7)]
    for thread in threads:
        thread.start()
    ready.wait()
    three.collect_garbage()  # must not take views in the making for litter
    for thread in threads:
        thread.join()
    assert found == [root / "views/m/1"] * 7
    assert litter(root) == []


# -- damage


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_said(
    three: Registry, root: Path, tmp_path: Path, file: str
) -> None:
    version = three.resolve("m:1")
    three.verify(version)
    flip_bit(blob(root, version, file))
    with pytest.raises(StorageError, match=f"cannot trust {file} of m:1: it has changed"):
        three.verify(version)
    with pytest.raises(StorageError, match=f"cannot trust {file} of m:1"):
        three.export("m:1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # As the message says: publishing it again mends it, for all that share the file.
    three.publish("m", write_model(tmp_path / "again", b"weights 1"))
    three.verify(version)


def test_a_file_that_was_written_to_is_not_opened(
    three: Registry, root: Path, tmp_path: Path
) -> None:
    version = three.resolve("m:1")
    three.path(version)
    flip_bit(blob(root, version, "model.safetensors"))
    with pytest.raises(
        StorageError, match=r"open m:1: model\.safetensors has changed on the disk; remove"
    ):
        three.path(version)
    blob(root, version, "model.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="has changed on the disk"):
        three.path(version)
    three.publish("m", write_model(tmp_path / "again", b"weights 1"))
    three.path(version)


def test_files_are_hashed_when_they_are_opened_only_if_something_touched_them(
    three: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home of before, or out of a backup that keeps no times: hashed once."""
    version, hashed = three.resolve("m:1"), list[str]()
    digest = copying.digest

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(copying, "digest", counted)
    three.path(version)
    assert hashed == []
    weights = blob(root, version, "model.safetensors")
    os.utime(weights)
    for _ in range(2):
        three.path(version)
    assert hashed == [weights.name]


def test_a_file_that_is_gone_is_said(three: Registry, root: Path, tmp_path: Path) -> None:
    version = three.resolve("m:1")
    three.path(version)
    blob(root, version, "model.safetensors").unlink()
    with pytest.raises(StorageError, match=r"cannot open m:1: model\.safetensors is gone"):
        three.path(version)
    says = r"cannot read m:1: model\.safetensors is gone from the disk; remove this version and"
    with pytest.raises(StorageError, match=says):
        three.verify(version)
    with pytest.raises(StorageError, match=says):
        three.export("m:1", tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, InvalidError),
        (errno.EROFS, InvalidError),
        (errno.ENOSPC, StorageError),
        (errno.EIO, StorageError),
    ],
)
def test_an_export_says_whether_the_path_or_the_disk_is_wrong(
    three: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[ZenosError],
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(kind, match="cannot export to") as caught:
        three.export("m:1", tmp_path / "out")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot read the manifest"),
        (b"{", "cannot read the manifest"),
        (b"[" * 100_000, "cannot read the manifest"),
        (b"\xff\xfe", "cannot read the manifest"),
        (b'{"name": "m"}', "cannot read the manifest"),
        ({"name": "../../etc"}, "it is of '../../etc:2'"),
        ({"version": 3}, "it is of 'm:3'"),
        ({"format": 2}, "it was written by a newer zenos"),
        ({"files": {"../x": {"digest": "a" * 64, "size": 1}}}, r"it names '\.\./x'"),
        ({"files": {"x": {"digest": "../../x", "size": 1}}}, "it names 'x'"),
        ({"files": {"x": {"digest": "a" * 64 + "\n", "size": 1}}}, "it names 'x'"),
    ],
)
def test_a_damaged_manifest_is_said_and_nothing_of_it_deleted(
    three: Registry, root: Path, content: Any, reason: str
) -> None:
    path = root / "manifests/m/2.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_bytes()), **content}).encode()
    path.write_bytes(content)
    with pytest.raises(StorageError, match=reason):
        three.resolve("m:2")
    survey = three.survey()
    assert [version.version for version in survey.models] == [1, 3]
    assert list(survey.damaged) == ["m:2"]
    assert reason.replace("\\", "") in survey.damaged["m:2"]
    # What may be its own stays, whatever else goes; the damaged one can be removed too.
    first = blob(root, three.resolve("m:1"), "model.safetensors")
    blobs = {path for path in (root / "blobs").rglob("*") if path.is_file()}
    half = root / "blobs/sha256/.tmp-1-abc-1"
    half.write_bytes(b"half")
    assert three.collect_garbage() == len(b"half")
    assert three.remove("m:1") > 0
    assert {path for path in (root / "blobs").rglob("*") if path.is_file()} == blobs - {first}
    assert three.remove("m:2") > 0
    assert [version.version for version in three.list()] == [3]
    assert litter(root) == []


def test_what_a_damaged_manifest_still_names_is_not_removed_with_others(
    three: Registry, root: Path
) -> None:
    three.copy("m:1", "other")
    path = root / "manifests/m/1.json"
    path.write_bytes(path.read_bytes()[:-1])
    shared = blob(root, three.resolve("other"), "model.safetensors")
    assert three.remove("other") == 0
    assert shared.exists()
    with pytest.raises(StorageError, match=r"'zenos rm m:1' removes this version; import or train"):
        three.resolve("m:1")


def test_what_a_manifest_that_cannot_be_read_may_name_is_not_removed_with_others(
    three: Registry, root: Path
) -> None:
    three.copy("m:1", "other")
    path = root / "manifests/m/1.json"
    content = path.read_bytes()
    path.unlink()
    path.mkdir()  # which no one can read, not even root
    shared = blob(root, three.resolve("other"), "model.safetensors")
    assert three.remove("other") == 0
    assert shared.exists()
    path.rmdir()
    path.write_bytes(content)
    assert three.resolve("m:1").version == 1


def test_a_name_that_cannot_be_listed_is_not_taken_for_none(
    three: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = {path for path in (root / "blobs").rglob("*") if path.is_file()}
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == root / "manifests/m":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(StorageError, match="Permission denied"):
        three.collect_garbage()
    assert {path for path in (root / "blobs").rglob("*") if path.is_file()} == blobs


def test_damaged_aliases_are_said(three: Registry, root: Path) -> None:
    (root / "names/m.json").write_bytes(b"\x00")
    with pytest.raises(StorageError, match=r"cannot read .*names/m\.json.* remove it"):
        three.resolve("m:prod")
    assert list(three.survey().damaged) == ["m:1", "m:2", "m:3"]
    three.remove("m:1")  # though nobody knows of its aliases
    (root / "names/m.json").unlink()  # as the message says
    assert [version.ref for version in three.list()] == ["m:2", "m:3"]


def test_while_a_model_is_added_others_work_and_nothing_is_collected(
    three: Registry, tmp_path: Path, root: Path
) -> None:
    """A large import takes minutes; here somebody who adds is a lock, taken as publishing does."""
    half = root / "blobs" / "sha256" / "half-written"
    half.write_bytes(b"not named yet")
    with (root / registry_module.ADDING).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        three.copy("m:1", "other")
        three.alias("m", "best", 3)
        assert three.publish("m", write_model(tmp_path / "m4", b"weights 4")).version == 4
        assert three.remove("m:2") == 0
        assert half.exists()
    assert three.collect_garbage() > 0
    assert not half.exists()
    assert [version.ref for version in three.list()] == ["m:1", "m:3", "m:4", "other:1"]
