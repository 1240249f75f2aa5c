"""What OpenAI's paths refuse: each in OpenAI's form, with the field that is at fault."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.api.double import Double
from tests.api.test_openai import USER
from tests.api.test_openai import client as client
from zenos.api import errors
from zenos.api.openai_bodies import _NEUTRAL
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    ContextLengthError,
    InvalidError,
    UnfittableError,
    ZenosError,
    from_code,
)
from zenos.core.wording import FieldError

MESSAGE = "messages[0].content"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "logprobs": 1}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"user": 5}, "user"),
        ({"logprobs": True}, "logprobs"),
        ({"priority": 101}, "priority"),
        ({"priority": -1}, "priority"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"stop": ["x" * 1025]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"model": ""}, "model"),
        ({"model": "tiny:"}, "model"),
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": "x" * 10_000}, "model"),
        ({"model": "a\u0000b"}, "model"),
        ({"model": "😀"}, "model"),
    ],
)
async def test_bad_completions(
    http: httpx.AsyncClient, system: Double, body: dict[str, Any], param: str | None
) -> None:
    answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": "x", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith("cannot ")
    assert len(error["message"]) < 1000
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert system.asked == []


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"model":"tiny","prompt":"x","temperature":NaN}', "temperature"),
        (b'{"model":"tiny","prompt":"x","top_p":-Infinity}', "top_p"),
        (b'{"model":"tiny","prompt":"x","temperature":1e999}', "temperature"),
        (b'{"model":"tiny","prompt":"x","max_tokens":1e999}', "max_tokens"),
        (b'{"model":"tiny","prompt":"x","logit_bias":{"1":NaN}}', "logit_bias.1"),
        (b'{"model":"tiny","prompt":"half \\ud800"}', "prompt"),
        (b'{"model":"\\udfff","prompt":"x"}', "model"),
        (b'{"model":"tiny","prompt":"x","stop":["a","\\ud83d"]}', "stop[1]"),
        (b'{"model":"tiny","messages":[{"role":"user","content":"\\ud83d"}]}', MESSAGE),
        (b'{"model":"tiny","prompt":"x","\\ud83d":1}', None),
        (b'{"model":"tiny","prompt":"x"', None),
        (b'{"model":"tiny","prompt":"\xff"}', None),
        (b'{"model":"tiny","prompt":' + b"[" * 5000 + b"]" * 5000 + b"}", "prompt[0][0]"),
        (b'{"a":' * 5000, "a"),
        (b"[]", None),
        (b"", None),
    ],
)
async def test_what_is_no_json_names_its_field(
    http: httpx.AsyncClient, system: Double, raw: bytes, param: str | None
) -> None:
    path = "/v1/chat/completions" if b"messages" in raw else "/v1/completions"
    answer = await http.post(path, content=raw)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith("cannot ")
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert system.asked == []


async def test_a_name_as_long_as_a_body_is_not_said_again_whole(
    http: httpx.AsyncClient,
) -> None:
    name = b"k" * 4 * limits.MIB
    answer = await http.post("/v1/completions", content=b'{"logit_bias":{"%b":NaN}}' % name)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"logit_bias.{'k' * 300}"[:300]


def test_values_below_a_long_name_are_not_each_given_its_path() -> None:
    name, values = b"k" * 4 * limits.MIB, b",".join([b"0"] * 1_500_000)  # that would be terabytes
    with pytest.raises(FieldError) as caught:
        errors.decode(b'{"%b":[%b],"x":NaN}' % (name, values), dict[str, Any])
    assert caught.value.param == "x"


@pytest.mark.parametrize("model", ["missing", "tiny:9", "tiny:prod"])
async def test_a_model_that_is_not_there_is_the_fields_fault(
    client: openai.AsyncOpenAI, model: str
) -> None:
    for asked in (
        client.completions.create(model=model, prompt="x"),
        client.completions.create(model=model, prompt="x", stream=True),
        client.chat.completions.create(model=model, messages=USER),  # type: ignore[arg-type]
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await asked
        assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("failure", "completion", "chat"),
    [
        (UnfittableError(), "model", "model"),
        (InvalidError("cannot use these tokens"), "prompt", "messages"),
        (ContextLengthError(), "prompt", "messages"),
        (BusyError(), None, None),
    ],
)
async def test_what_the_engine_refuses_names_the_field_that_was_sent(
    client: openai.AsyncOpenAI,
    system: Double,
    failure: ZenosError,
    completion: str | None,
    chat: str | None,
) -> None:
    system.failure = from_code(failure.code, failure.message)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.completions.create(model="tiny", prompt="x")
    assert caught.value.param == completion  # type: ignore[attr-defined]
    system.failure = from_code(failure.code, failure.message)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model="tiny", messages=USER)  # type: ignore[arg-type]
    assert caught.value.param == chat  # type: ignore[attr-defined]


async def test_a_typo_is_told_the_nearest_field(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "x", "temprature": 1}
    message = (await http.post("/v1/completions", json=body)).json()["error"]["message"]
    assert "did you mean 'temperature'?" in message


# What says nothing that zenos doesn't do anyway, in completions and chats alike.
CHANGES_NOTHING: list[dict[str, Any]] = [
    *({name: value} for name, values in _NEUTRAL.items() for value in (*values, None)),
    {"best_of": 1},
    {"best_of": 2, "n": 2},
    {"best_of": None},
    {"user": "ann"},
    {"metadata": {"a": "b"}},
    {"store": True},
    {"service_tier": "flex"},
    {"safety_identifier": "x"},
    {"prompt_cache_key": "x"},
    {"prompt_cache_options": {}},
    {"prompt_cache_retention": "24h"},
    {"parallel_tool_calls": False},
    {"reasoning_effort": "low"},
    {"verbosity": "low"},
]
# And what zenos doesn't do.
UNSUPPORTED: list[dict[str, Any]] = [
    {"frequency_penalty": 1},
    {"presence_penalty": -1},
    {"logit_bias": {"1": 5}},
    {"best_of": 2},
    {"suffix": "end"},
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function"}]},
    {"tool_choice": "required"},
    {"functions": [{"name": "f"}]},
    {"function_call": {"name": "f"}},
    {"modalities": ["audio"]},
    {"audio": {"voice": "x"}},
    {"prediction": {}},
    {"web_search_options": {}},
    {"moderation": {}},
]
BOTH: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "x"},
    "/v1/chat/completions": {"model": "tiny", "messages": USER},
}


@pytest.mark.parametrize("path", BOTH)
async def test_both_take_what_changes_nothing_and_refuse_what_zenos_does_not_do(
    http: httpx.AsyncClient, system: Double, path: str
) -> None:
    for more in CHANGES_NOTHING:
        answer = await http.post(path, json={**BOTH[path], **more})
        assert answer.status_code == 200, (more, answer.text)
    assert {name for more in UNSUPPORTED for name in more} == {*_NEUTRAL, "best_of"}
    for more in UNSUPPORTED:
        answer = await http.post(path, json={**BOTH[path], **more})
        assert answer.status_code == 400, (more, answer.text)
        assert answer.json()["error"]["param"] in more
        assert "unknown" not in answer.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
        ),
        ({"messages": USER * 5000}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop"),
        ({"priority": 101}, "priority"),
        ({"user": 5}, "user"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": "a\u0001b"}, "model"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
        ({"prompt": "x"}, "prompt"),
    ],
)
async def test_bad_chats(
    http: httpx.AsyncClient, system: Double, body: dict[str, Any], param: str | None
) -> None:
    answer = await http.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": USER, **body}
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith("cannot ")
    if param is not None:
        assert error["param"] == param
        assert param in error["message"] or "messages" in param
    assert system.asked == []
