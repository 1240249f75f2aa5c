"""Which published versions stay, and which one is gone back to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.core.errors import NotFoundError
from zenos.models import publishing
from zenos.models.records import FileInfo, Lineage, ModelVersion


def version(
    number: int, task: str = "t1", *, step: int | None = 1, name: str = "m"
) -> ModelVersion:
    return ModelVersion(
        name=name,
        version=number,
        created=0.0,
        family="decoder",
        arch="llama",
        parameters=1,
        bytes=1,
        files={"model.safetensors": FileInfo(digest="0" * 64, size=1)},
        lineage=Lineage(task=task),
        metrics={} if step is None else {publishing.STEP: step},
        aliases=["good"] if number == 2 else [],
    )


@given(st.integers(0, 12), st.integers(2, 5), st.sets(st.integers(1, 12)))
def test_the_newest_and_what_is_used_or_has_a_name_stay(
    count: int, keep: int, used: set[int]
) -> None:
    own = [version(number) for number in range(1, count + 1)]
    others = [
        version(20, "t2"),  # another training's
        version(21, step=None),  # the result of a training
        version(1, name="n"),
    ]
    gone = publishing.surplus(
        [*others, *reversed(own)], "m", "t1", keep, {f"m:{number}" for number in used}
    )
    expected = [n for n in range(1, count - keep + 1) if n not in used and n != 2]
    assert gone == [f"m:{number}" for number in expected]


def test_the_newest_of_a_training() -> None:
    versions = [version(1), version(3, "t2"), version(2), version(4, step=None)]
    newest = publishing.newest_of(versions, "m", "t1")
    assert newest is not None
    assert newest.ref == "m:2"
    assert publishing.newest_of(versions, "n", "t1") is None


def test_back_is_the_version_before_or_the_one_that_is_named() -> None:
    versions = [version(number) for number in (2, 5, 7)]
    assert publishing.target(versions, "m", 7, None) == "m:5"
    assert publishing.target(versions, "m", 6, None) == "m:5"
    assert publishing.target(versions, "m", 5, 7) == "m:7"
    with pytest.raises(NotFoundError, match="there is no version before 2"):
        publishing.target(versions, "m", 2, None)
    with pytest.raises(NotFoundError, match="to version 3: there are 2, 5, 7"):
        publishing.target(versions, "m", 7, 3)


def test_versions_that_differ_in_their_weights_alone_have_one_build() -> None:
    def files(**more: str) -> dict[str, FileInfo]:
        return {name: FileInfo(digest=digit * 64, size=1) for name, digit in more.items()}

    def build(parameters: int = 1, **more: str) -> str:
        plain = version(1)
        fields = {name: getattr(plain, name) for name in plain.__struct_fields__}
        named = {name.replace("__", "."): digit for name, digit in more.items()}
        return ModelVersion(**{**fields, "parameters": parameters, "files": files(**named)}).build

    one = build(model__safetensors="1", config__json="2", tokenizer__json="3")
    assert one == build(model__safetensors="4", config__json="2", tokenizer__json="3")
    assert one != build(model__safetensors="1", config__json="4", tokenizer__json="3")
    assert one != build(model__safetensors="1", config__json="2", tokenizer__json="4")
    assert one != build(2, model__safetensors="1", config__json="2", tokenizer__json="3")
