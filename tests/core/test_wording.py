"""What is wrong with a field is told in words, with what would be right."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zenos.api.errors import decode
from zenos.api.openai_bodies import ChatBody, CompletionBody
from zenos.client import build
from zenos.core.errors import InvalidError
from zenos.core.specs import ProgramSpec, TrainSpec
from zenos.core.task import TaskSpec
from zenos.core.wording import FieldError, counted, field_error, followed, plain_reason, shown

CHAT = b'{"model":"m","messages":[],%b}'


@pytest.mark.parametrize(
    ("raw", "type_", "says", "param"),
    [
        (
            b'{"model":"m","messages":[{"role":"usr"}]}',
            ChatBody,
            "cannot use messages[0].role 'usr': give one of 'system', 'developer', 'user'",
            "messages[0].role",
        ),
        (
            b'{"work":{"type":"prog"}}',
            TaskSpec,
            "cannot use work.type 'prog': give one of 'program', ",
            "work.type",
        ),
        (
            b'{"work":{"type":"train","model":"m","data":{"pathz":[]}}}',
            TaskSpec,
            "cannot use the field 'work.data.pathz': it is unknown; did you mean 'paths'?",
            "work.data.pathz",
        ),
        (
            b'{"work":{"type":"program","argv":["x"]},"cpu":1000}',
            TaskSpec,
            "cannot use the field 'cpu': it is unknown; did you mean 'resources.cpu'?",
            "cpu",
        ),
        (
            b'{"type":"train","model":"m","arch":"a","data":{"paths":["/x"]},"text_colum":"t"}',
            TrainSpec,
            "cannot use the field 'text_colum': it is unknown; did you mean 'data.text_column'?",
            "text_colum",
        ),
        (
            b'{"work":{"type":"program"}}',
            TaskSpec,
            "cannot do without the field 'work.argv': give it",
            "work.argv",
        ),
        (
            CHAT % b'"n":"2"',
            ChatBody,
            "cannot use n: give a whole number or nothing, not text",
            "n",
        ),
        (
            b'{"work":{"type":"program","argv":["x"]},"resources":{"cpu":1.5}}',
            TaskSpec,
            "cannot use resources.cpu: give a whole number (thousandths of a core, 1500 for 1.5), "
            "not one with a fraction",
            "resources.cpu",
        ),
        (CHAT % b'"tempratur":1', ChatBody, "did you mean 'temperature'?", "tempratur"),
        (
            CHAT % b'"logit_bias":{"a":"x"}',
            ChatBody,
            "cannot use logit_bias[...]: give a number, not text",
            "logit_bias[...]",
        ),
        (b"[]", ChatBody, "cannot use this: give a mapping, not a list", None),
    ],
)
def test_what_is_wrong_and_what_is_right(
    raw: bytes, type_: Any, says: str, param: str | None
) -> None:
    with pytest.raises(FieldError) as caught:
        decode(raw, type_)
    assert says in caught.value.message
    assert caught.value.param == param


def test_a_value_by_itself_has_a_name() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert("", int)
    assert field_error(caught.value, int, "port ''").message == (
        "cannot use port '': give a whole number, not text"
    )


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Input should be a valid integer, unable to parse string as an integer", "a whole number"),
        ("Input should be a finite number", "a number"),
        ("Input should be greater than or equal to 1", "at least 1"),
        ("Input should be less than or equal to 1.5", "at most 1.5"),
        ("Input should be less than 3", "less than 3"),
    ],
)
def test_a_parameter_s_fault_is_told_in_our_words(reason: str, says: str) -> None:
    assert plain_reason(reason) == f"give {says}"


def test_what_comes_after_a_question_is_a_sentence() -> None:
    assert followed("cannot find 'x'; did you mean 'y'?", "see all") == (
        "cannot find 'x'; did you mean 'y'? See all"
    )
    assert followed("cannot find 'x'", "see all") == "cannot find 'x'; see all"


def test_half_a_character_is_not_called_cut_off_json() -> None:
    with pytest.raises(InvalidError, match="half of a surrogate pair"):
        decode(b'{"prompt":"\\ud800"}', CompletionBody)
    with pytest.raises(InvalidError, match="truncated"):
        decode(b'{"prompt":"', CompletionBody)


def test_one_of_a_thing_is_no_plural() -> None:
    assert [counted(n, "job") for n in (0, 1, 2, 1249)] == [
        "0 jobs",
        "1 job",
        "2 jobs",
        "1,249 jobs",
    ]


@pytest.mark.parametrize(
    ("values", "says", "param"),
    [
        ({3: 4}, "cannot use a name of a field: give text in quotes", None),
        ({"env": {5: "a"}}, "below env: give text in quotes, not a whole number", "env"),
        ({"env": {True: "a"}}, "below env: give text in quotes, not true or false", "env"),
    ],
)
def test_of_a_name_that_is_no_text_it_is_said_where_it_stands(
    values: dict[Any, Any], says: str, param: str | None
) -> None:
    """YAML reads `5: x` and `yes: x` as other names than texts."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"type": "program", "argv": ["x"], **values}, ProgramSpec)
    error = field_error(caught.value, ProgramSpec)
    assert error.message.endswith(says)
    assert error.param == param


@pytest.mark.parametrize("value", [10**5000, [10**5000]], ids=["alone", "within"])
def test_what_python_cannot_write_is_told_of_all_the_same(value: object) -> None:
    # It refuses to write whole numbers of more than 4,300 digits.
    assert shown(value) == "so long a number"
    with pytest.raises(InvalidError, match="cannot use steps so long a number: it must be from 1"):
        build.train({"model": "m", "arch": "a", "data": "/a", "steps": 10**5000}).check()


def test_a_long_value_is_shown_as_far_as_it_goes() -> None:
    assert shown("a" * 100, 5) == "'aaaa"
