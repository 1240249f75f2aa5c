"""OpenAI's paths, through the official client over a real socket, and the bare shapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.api.conftest import TOKEN, until
from tests.api.double import Double
from zenos.api.openai_answers import Gathering
from zenos.core.errors import (
    BusyError,
    DeadlineError,
    NotFoundError,
    UnavailableError,
    WorkerError,
    ZenosError,
)
from zenos.core.wire import Chunk, TokenLogprob

SAID = "Hello, wörld"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as made:
        yield made


async def test_models(client: openai.AsyncOpenAI, system: Double) -> None:
    config = system.root / "config.json"
    config.write_bytes(b'{"model_type":"bert"}')  # an encoder can't be asked, and isn't listed
    weights = system.source / "model.safetensors"
    system.registry.publish("encoder", {"config.json": config, "model.safetensors": weights})
    models = [model.id async for model in client.models.list()]
    assert models == ["other", "tiny"]
    one = await client.models.retrieve("tiny")
    assert (one.id, one.object) == ("tiny", "model")
    assert abs(one.created - time.time()) < 100
    assert (await client.models.retrieve("tiny:1")).id == "tiny:1"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("missing")


async def test_completion(client: openai.AsyncOpenAI, system: Double) -> None:
    answer = await client.completions.create(
        model="tiny",
        prompt="def ",
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop=["\n"],
        seed=1,
        user="me",
        echo=True,
        frequency_penalty=0,
        extra_body={"priority": 80},
    )
    assert answer.choices[0].text == SAID
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert answer.usage.total_tokens == 6
    model, request = system.asked[0]
    assert model == "tiny"
    assert (request.prompt, request.priority, request.echo) == ("def ", 80, True)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)
    assert (sampling.stop, sampling.seed, sampling.n) == (["\n"], 1, 1)
    assert system.open == 0


async def test_completion_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny", prompt="def ", stream=True, logprobs=1, stream_options={"include_usage": True}
    )
    events = [event async for event in stream]
    assert "".join(e.choices[0].text for e in events if e.choices) == SAID
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == 6
    assert all(event.usage is None for event in events[:-1])
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "length"
    offsets = [e.choices[0].logprobs.text_offset for e in events[:3] if e.choices[0].logprobs]
    assert offsets == [[0], [5], [6]]
    assert len({event.id for event in events}) == 1


async def test_several_prompts_and_choices(client: openai.AsyncOpenAI, system: Double) -> None:
    answer = await client.completions.create(model="tiny", prompt=["a", "b"], n=2, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {SAID}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 12)
    assert {request.prompt for _, request in system.asked} == {"a", "b"}
    logprobs = answer.choices[3].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hello", ",", " wörld"]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"Hello": -0.5, "x": -2.0}
    stream = await client.completions.create(model="tiny", prompt=[[1, 2], [3]], n=2, stream=True)
    texts: dict[int, str] = {}
    async for event in stream:
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == dict.fromkeys(range(4), SAID)
    assert [request.tokens for _, request in system.asked[2:]] == [[1, 2], [3]]


async def test_chat(client: openai.AsyncOpenAI, system: Double) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "be short"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "yes"},
            {"role": "user", "name": "ann", "content": "hi"},
        ],
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=2,
        n=2,
        tools=[],
        response_format={"type": "text"},
        metadata={"a": "b"},
        store=False,
    )
    assert [choice.message.content for choice in answer.choices] == [SAID, SAID]
    assert answer.choices[1].index == 1
    assert answer.choices[0].message.role == "assistant"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [t.token for t in logprobs.content] == ["Hello", ",", " wörld"]
    assert [t.logprob for t in logprobs.content[0].top_logprobs] == [-0.5, -2.0]
    assert bytes(logprobs.content[2].bytes or []).decode() == " wörld"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    _, request = system.asked[0]
    assert request.messages == [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "hi", "name": "ann"},
    ]
    assert request.sampling.max_tokens == 5


async def test_what_a_chat_asks_for_reaches_the_engine(
    client: openai.AsyncOpenAI, system: Double
) -> None:
    await client.chat.completions.create(
        model="tiny",
        messages=USER,  # type: ignore[arg-type]
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop="\n",
        seed=-3,
        user="me",
        extra_body={"priority": 80},
    )
    [(_, request)] = system.asked
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)
    assert (sampling.stop, sampling.seed, sampling.n) == (["\n"], -3, 1)
    assert (sampling.logprobs, request.priority) == (None, 80)


async def test_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )
    events = [event async for event in stream]
    texts, finishes, roles = {0: "", 1: ""}, {}, []
    for event in events[:-1]:
        [choice] = event.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.delta.role:
            roles.append(choice.index)
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert texts == {0: SAID, 1: SAID}
    assert finishes == {0: "length", 1: "length"}
    assert roles == [0, 1]
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 6


async def test_who_does_not_ask_for_usage_gets_no_event_without_a_choice(
    client: openai.AsyncOpenAI,
) -> None:
    """Which many programs would stumble over: they look at the first choice of each."""
    for options in (openai.omit, {"include_usage": False}):
        asked: Any = {"model": "tiny", "stream": True, "stream_options": options}
        for stream in (
            await client.completions.create(prompt="x", **asked),
            await client.chat.completions.create(messages=USER, **asked),
        ):
            events = [event async for event in stream]
            assert [len(event.choices) for event in events] == [1] * len(events)
            assert not any(event.usage for event in events)


async def test_defaults(http: httpx.AsyncClient, system: Double) -> None:
    await http.post("/v1/chat/completions", json={"model": "tiny", "messages": USER})
    await http.post("/v1/completions", json={"model": "tiny", "prompt": "", "max_tokens": None})
    (_, chat), (_, completion) = system.asked
    assert chat.sampling.max_tokens is None
    assert completion.sampling.max_tokens == 256
    assert chat.sampling.temperature == 1.0
    assert chat.priority == 50


@pytest.mark.parametrize(
    ("path", "asked", "stream"),
    [
        ("completions", {"prompt": ["a", "b"]}, False),
        ("completions", {"prompt": ["a", "b"]}, True),
        ("chat/completions", {"messages": USER}, False),
        ("chat/completions", {"messages": USER}, True),
    ],
)
async def test_an_answer_says_in_headers_where_its_time_went(
    http: httpx.AsyncClient, path: str, asked: dict[str, Any], stream: bool
) -> None:
    body = {"model": "tiny", "stream": stream, **asked}
    answer = await http.post(f"/v1/{path}", json=body)
    names = ("queue", "load", "compute")
    times = [float(answer.headers[f"X-Zenos-{name}-Seconds"]) for name in names]
    # The headers of a stream go with the first piece, when the rest isn't computed yet.
    assert times == [0.25, 1.5, 0.125 if stream else 2.5]
    text = (await http.get("/metrics")).text
    for name, seconds in zip(names, (0.25, 1.5, 2.5), strict=True):
        series = f'zenos_request_{name}_seconds_sum{{model="tiny"}} {seconds}'
        assert series in text, name


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_its_version_and_that_it_was_begun_again(
    http: httpx.AsyncClient, system: Double, path: str, stream: bool
) -> None:
    """Nothing of what the old version had begun is in it."""
    system.version = "tiny:7"
    asked = {"prompt": ["a", "b"], "n": 2} if path == "completions" else {"messages": USER}
    body = {"model": "tiny", "stream": stream, **asked}
    for again in (False, True):
        system.begin_again = again
        answer = await http.post(f"/v1/{path}", json=body)
        assert answer.headers["X-Zenos-Model-Version"] == "tiny:7"
        told = answer.headers.get("X-Zenos-Begun-Again")
        assert told == ("true" if again and not stream else None)
        assert "old" not in answer.text
        assert "tiny:0" not in answer.text
        if not stream:
            assert answer.json()["system_fingerprint"] == "tiny:7"
            texts = [
                choice["text"] if path == "completions" else choice["message"]["content"]
                for choice in answer.json()["choices"]
            ]
            assert texts == ["Hello, wörld"] * (4 if path == "completions" else 1)


async def test_a_request_says_how_long_it_waits(http: httpx.AsyncClient, system: Double) -> None:
    body = {"model": "tiny", "prompt": "x"}
    for asked in ({}, {"timeout_s": 2.5}):
        assert (await http.post("/v1/completions", json={**body, **asked})).status_code == 200
    assert system.deadlines == [600.0, 2.5]
    for wrong in (0, -1, 601, "soon"):
        refused = await http.post("/v1/completions", json={**body, "timeout_s": wrong})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "timeout_s"
    system.failure = DeadlineError("cannot answer in time: not loaded", retry_after_s=5)
    late = await http.post("/v1/completions", json=body)
    assert (late.status_code, late.headers["Retry-After"]) == (504, "5")


@pytest.mark.parametrize(
    ("failure", "status", "code", "expected"),
    [
        (NotFoundError("cannot find the model"), 404, "not_found", openai.NotFoundError),
        (BusyError(retry_after_s=2.2), 503, "busy", openai.InternalServerError),
        (UnavailableError(), 503, "unavailable", openai.InternalServerError),
        (DeadlineError(), 504, "deadline", openai.InternalServerError),
        (WorkerError(), 500, "worker", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_have_their_status(
    client: openai.AsyncOpenAI,
    http: httpx.AsyncClient,
    system: Double,
    failure: ZenosError,
    status: int,
    code: str,
    expected: type[openai.APIStatusError],
    stream: bool,
) -> None:
    system.failure = failure
    body = {"model": "tiny", "messages": USER, "stream": stream}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    if status == 503:
        assert answer.headers["Retry-After"] == ("3" if code == "busy" else "5")
    with pytest.raises(expected) as caught:
        await client.chat.completions.create(**body)  # type: ignore[call-overload]
    assert caught.value.status_code == status
    assert system.open == 0


async def test_an_error_in_the_stream_reaches_the_client(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, system: Double
) -> None:
    system.failure, system.fail_after = WorkerError("cannot go on: it broke"), 1
    stream = await client.completions.create(model="tiny", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="cannot go on"):
        _ = [event async for event in stream]
    body = {"model": "tiny", "prompt": "x", "stream": True}
    lines = (await http.post("/v1/completions", json=body)).text.strip().split("\n\n")
    assert '"code":"worker"' in lines[-1]
    assert "[DONE]" not in lines[-1]
    assert system.open == 0
    plain = await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert plain.status_code == 500


async def test_a_client_that_leaves_a_stream_frees_its_slot(
    client: openai.AsyncOpenAI, system: Double
) -> None:
    system.gate = asyncio.Event()
    stream = await client.completions.create(model="tiny", prompt=["x", "y"], stream=True)
    await anext(aiter(stream))
    assert system.open == 2
    await stream.close()
    await until(lambda: system.open == 0)
    assert system.closed == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_frees_its_slot(
    url: str, system: Double, stream: bool
) -> None:
    system.gate, system.hold_at = asyncio.Event(), 0
    body = {"model": "tiny", "prompt": "x", "stream": stream}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        request = asyncio.ensure_future(client.post("/v1/completions", json=body))
        await until(lambda: system.open == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await until(lambda: system.open == 0)
    assert system.closed == 1


def test_logprobs_of_an_echo_and_of_parts_of_characters() -> None:
    euro = "€".encode()

    def token(raw: bytes, logprob: float | None, *, special: bool = False) -> TokenLogprob:
        return TokenLogprob(token="?", bytes=list(raw), logprob=logprob, special=special)

    gathering = Gathering("id", "m", choices_each=1, logprobs=True)
    first = [token(b"<s>", None, special=True), token(b"ab", -1.0), token(euro[:1], -2.0)]
    rest = [token(euro[1:], -3.0), token(b"c", -4.0)]
    for part in (first, rest):
        gathering.add(0, Chunk(request="id", text="x", logprobs=part))
    logs = gathering.completion().choices[0].logprobs
    assert logs is not None
    assert logs.token_logprobs == [None, -1.0, -2.0, -3.0, -4.0]
    assert logs.top_logprobs[0] is None
    assert logs.text_offset == [0, 0, 2, 2, 3]  # of "ab€c"
