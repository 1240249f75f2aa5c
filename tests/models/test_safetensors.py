"""Weight files are checked before they are believed: lying headers, pickles, damage."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from zenos.core.errors import InvalidError
from zenos.models.safetensors import BITS, check, refuse_pickle

from .files import pack, tensor

DATA = bytes(range(24))
GOOD = {"a": tensor(0, 16, [2, 2], "F32"), "b": tensor(16, 24, [8], "U8")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InvalidError) as raised:
        check(path)
    message = str(raised.value)
    assert message.startswith("cannot ")
    assert "model.safetensors" in message
    assert message.isprintable()
    assert len(message) < 500
    return message


# -- what is true


def test_a_header_gives_shapes_and_the_number_of_values(path: Path) -> None:
    path.write_bytes(pack({"__metadata__": {"format": "pt"}, **GOOD}, DATA))
    header = check(path)
    assert header.shapes == {"a": (2, 2), "b": (8,)}
    assert header.parameters == 12


def test_what_the_format_s_own_library_writes(path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((3, 0, 2), np.float16),
        "b": np.arange(6, dtype=np.int64).reshape(2, 3),
        "bool": np.array([True, False, True]),
        "ñ/\n\u4e2d": np.zeros(1, np.uint8),
    }
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np", "é": "\n"})
    assert check(path).shapes == {name: array.shape for name, array in arrays.items()}
    path.write_bytes(pack({}))
    assert check(path).parameters == 0


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_dtype_has_its_size(path: Path, dtype: str) -> None:
    size = 8 * BITS[dtype] // 8
    path.write_bytes(pack({"a": tensor(0, size, [2, 4], dtype)}, bytes(size)))
    assert check(path).shapes == {"a": (2, 4)}
    with safetensors.safe_open(path, "np") as file:  # the format's library agrees
        assert file.get_slice("a").get_shape() == [2, 4]
    wrong = pack({"a": tensor(0, size + 1, [2, 4], dtype)}, bytes(size + 1))
    assert f"wants {size} bytes, its offsets give {size + 1}" in refused(path, wrong)


# -- what lies


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "no object"),
        (b"{", "malformed"),
        (b"[]", "no object"),
        (b"null", "no object"),
        (b" {}", "no object"),
        (b"\xef\xbb\xbf{}", "no object"),
        (b"\xff\xfe{\x00}\x00", "malformed"),
        (b'{"a": NaN}', "malformed"),
        (b'{"a":' * 20_000, "malformed"),
        (b'{"a":%s}' % (b"9" * 9_999), "malformed"),
        (b'{"a":1,"a":2}', "twice"),
        (
            json.dumps(GOOD).encode()[:-1] + b',"a":' + json.dumps(GOOD["a"]).encode() + b"}",
            "twice",
        ),
        (b'{"a":{"dtype":"U8","dtype":"I8","shape":[24],"data_offsets":[0,24]}}', "twice"),
        ({"a": None}, "malformed"),
        ({"a": []}, "malformed"),
        ({"a": "x"}, "malformed"),
        ({"a": {}}, "malformed"),
        ({"a": {"dtype": "U8", "shape": [24]}}, "malformed"),
        ({"a": {"dtype": "U8", "shape": 24, "data_offsets": [0, 24]}}, "malformed"),
        ({"a": {"dtype": "U8", "shape": "24", "data_offsets": [0, 24]}}, "a number that isn't one"),
        ({"a": {"dtype": "U8", "shape": {}, "data_offsets": [0, 24]}}, "a number that isn't one"),
        ({"a": {"dtype": "U8", "shape": [24], "data_offsets": [0]}}, "malformed"),
        ({"a": {"dtype": "U8", "shape": [24], "data_offsets": [0, 12, 24]}}, "malformed"),
        ({"a": {"dtype": [], "shape": [24], "data_offsets": [0, 24]}}, "malformed"),
        ({"__metadata__": [], **GOOD}, "metadata"),
        ({"__metadata__": {"a": 1}, **GOOD}, "metadata"),
        ({"__metadata__": "x", **GOOD}, "metadata"),
        ({"a": tensor(0, 24, [6], "F33")}, "unknown dtype 'F33'"),
        ({"a": tensor(0, 24, [6], "f32")}, "unknown dtype 'f32'"),
        ({"a": tensor(0, 24, [6], "F" * 9_999)}, "unknown dtype"),
        ({"a": tensor(0, 24, [5], "F32")}, "wants 20 bytes, its offsets give 24"),
        ({"a": tensor(0, 24, [3], "F4")}, "wants 1 bytes, its offsets give 24"),
        ({"a": tensor(0, 24, [6.0], "F32")}, "a number that isn't one"),
        ({"a": tensor(0, 24, [True, 24])}, "a number that isn't one"),
        ({"a": tensor(0, 24, [-24])}, "a number that isn't one"),
        ({"a": tensor(0, 24, [-4, -6])}, "a number that isn't one"),
        ({"a": tensor(0, 24, [1] * 32 + [24])}, "absurd shape"),
        ({"a": tensor(0, 24, [2**62, 4])}, "absurd shape"),
        ({"a": tensor(0, 2**63)}, "absurd shape"),
        ({"a": tensor(-24, 0, [24])}, "a number that isn't one"),
        ({"a": tensor(24, 0, [24])}, "wants 24 bytes, its offsets give -24"),
        ({"a": tensor(24, 48)}, "overlaps or leaves a gap"),
        ({"a": tensor(0, 25)}, "take 25 bytes, the file has 24"),
        ({"a": tensor(0, 2**40)}, "bytes, the file has 24"),
        ({"a": tensor(0, 23)}, "take 23 bytes, the file has 24"),
        ({}, "take 0 bytes, the file has 24"),
        ({"a": tensor(0, 16), "b": tensor(15, 24)}, "'b' overlaps or leaves a gap"),
        ({"a": tensor(0, 24), "b": tensor(0, 24)}, "'b' overlaps or leaves a gap"),
        ({"a": tensor(0, 12), "b": tensor(13, 24)}, "'b' overlaps or leaves a gap"),
        ({"a": tensor(0, 24), "b": tensor(7, 7)}, "overlaps or leaves a gap"),
        ({"x" * 99_999: tensor(3, 4)}, "overlaps or leaves a gap"),
        ({"\x1b[2J\u202e\n": tensor(3, 4)}, "overlaps or leaves a gap"),
        (b'{"\\ud800":{"dtype":"U8","shape":[24],"data_offsets":[1,25]}}', "overlaps or"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_lying_headers(path: Path, header: object, reason: str) -> None:
    assert reason in refused(path, pack(header, DATA))


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_without_a_whole_length_is_truncated(path: Path, length: int) -> None:
    assert "truncated" in refused(path, bytes(length))


def test_every_truncation_is_found(path: Path) -> None:
    content = pack(GOOD, DATA)
    for length in range(len(content)):
        refused(path, content[:length])
    assert "damaged" in refused(path, content + b"\0")
    path.write_bytes(content)
    check(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 100_000_001, 25])
def test_a_header_longer_than_the_file_is_not_read(path: Path, length: int) -> None:
    assert "longer than the file" in refused(path, struct.pack("<Q", length) + DATA)


def test_a_header_longer_than_any_real_one_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse: it takes no room
    with pytest.raises(InvalidError, match="longer than the file or than any real one"):
        check(path)


def test_a_directory_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="cannot read here: Is a directory"):
        check(tmp_path, "here")
    with pytest.raises(InvalidError, match=r"cannot read x\.safetensors: No such file"):
        check(tmp_path / "x.safetensors")


# -- random lies: whatever we believe, the format's own library believes too

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["F32", "U8", "F4", "dtype", "shape", "data_offsets"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good file's header with one to three values replaced, removed or added, or raw damage."""
    header = json.loads(json.dumps({"__metadata__": {"format": "pt"}, **GOOD}))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = header
        while True:
            key = draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            break
        if draw(st.integers(0, 3)):
            place[key] = draw(JSON)
        elif isinstance(place, dict):
            place[draw(st.text(max_size=3))] = place.pop(key)
        else:
            place.append(place.pop(key))
        if not header:
            break
    content = pack(header, DATA)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + 1 :]
    return content


def agree(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.safetensors")
        path.write_bytes(content)
        try:
            header = check(path)
        except InvalidError as error:
            assert str(error).startswith("cannot ")  # noqa: PT017
            assert "model.safetensors" in str(error)  # noqa: PT017
            assert len(str(error)) < 500  # noqa: PT017
            return
        with safetensors.safe_open(path, "np") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert found == header.shapes


@settings(max_examples=400, deadline=None)
@given(content=mutated())
def test_mutated_headers_are_refused_or_true(content: bytes) -> None:
    agree(content)


@settings(max_examples=200, deadline=None)
@given(header=JSON, data=st.binary(max_size=16))
def test_any_json_is_refused_or_true(header: Any, data: bytes) -> None:
    agree(pack(header, data))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=64))
def test_any_bytes_are_refused_or_true(content: bytes) -> None:
    agree(content)


# -- pickles


class Evil:
    """What a pickle can do: call anything when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def pickles() -> dict[str, bytes]:
    found = {f"protocol {n}": pickle.dumps({"w": Evil()}, n) for n in range(6)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # what torch.save writes
        archive.writestr("archive/data.pkl", found["protocol 2"])
    return {**found, "torch.save": stream.getvalue()}


@pytest.mark.parametrize("kind", sorted(pickles()))
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.PTH", "a.ckpt", "a.pkl", "a.npy", "a.pickle"]
)
def test_a_pickle_is_told_by_its_name(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickles()[kind])
    with pytest.raises(InvalidError, match=f"cannot take '{name}': it is a pickle.*safetensors"):
        refuse_pickle(path)


@pytest.mark.parametrize("kind", sorted(pickles()))
def test_a_renamed_pickle_is_no_safetensors(path: Path, kind: str) -> None:
    path.write_bytes(pickles()[kind])
    with pytest.raises(InvalidError, match=r"model\.safetensors") as raised:
        check(path)
    if kind not in {"protocol 0", "protocol 1"}:  # those have no mark of their own
        assert "it is a pickle" in str(raised.value)


def test_a_file_that_only_starts_like_a_pickle_is_none(path: Path) -> None:
    """A header of 640 bytes begins with 80 02, as a pickle of protocol 2 does."""
    text = json.dumps(GOOD).encode().ljust(0x0280)
    path.write_bytes(pack(text, DATA))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert check(path).parameters == 12
