"""What is wrong with a field is told in words, with what would be right."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zenos.api.errors import decode
from zenos.api.openai_bodies import ChatBody, CompletionBody
from zenos.core.errors import InvalidError
from zenos.core.task import TaskSpec
from zenos.core.wording import FieldError, field_error

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


def test_half_a_character_is_not_called_cut_off_json() -> None:
    with pytest.raises(InvalidError, match="half of a surrogate pair"):
        decode(b'{"prompt":"\\ud800"}', CompletionBody)
    with pytest.raises(InvalidError, match="truncated"):
        decode(b'{"prompt":"', CompletionBody)
