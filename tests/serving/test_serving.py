"""Serving end to end: the official openai client, the API, the router, the bus, the engine."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers

from tests.processes import until
from tests.serving.conftest import SLOTS, WORDS
from zenos.client import Client
from zenos.core.thread_views import PoolView

PROMPTS = [" ".join(WORDS[n : n + 1 + n % 5]) for n in range(12)]


def complete(ai: openai.OpenAI, prompt: str, **more: Any) -> openai.types.Completion:
    settings = {"max_tokens": 24, "temperature": 0, **more}
    answer: openai.types.Completion = ai.completions.create(model="m", prompt=prompt, **settings)
    return answer


def times(headers: Any) -> tuple[float, float, float]:
    """Queue, load and compute time in seconds."""
    queue, load, compute = (
        float(headers[f"X-Zenos-{name}-Seconds"]) for name in ("Queue", "Load", "Compute")
    )
    return queue, load, compute


def in_flight(client: Client) -> float:
    """Requests that are being answered, as /metrics says it."""
    text = client.http.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("zenos_generating ")]
    assert lines, text
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_the_model_is_listed(ai: openai.OpenAI) -> None:
    assert "m" in {model.id for model in ai.models.list()}


def test_an_answer_is_what_transformers_generates(
    ai: openai.OpenAI, client: Client, tmp_path: Path
) -> None:
    path = client.export_model("m", tmp_path / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for prompt in PROMPTS[:4]:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=24, do_sample=False)
        wanted = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert complete(ai, prompt).choices[0].text == wanted


def test_an_answer_is_the_same_alone_and_among_others(ai: openai.OpenAI) -> None:
    alone = [complete(ai, prompt).choices[0].text for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda p: complete(ai, p).choices[0].text, PROMPTS))
    assert together == alone


def test_a_stream_is_the_answer_in_pieces(ai: openai.OpenAI) -> None:
    whole = complete(ai, PROMPTS[0])
    chunks = list(
        ai.completions.create(
            model="m",
            prompt=PROMPTS[0],
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 5


def test_usage_counts_tokens(ai: openai.OpenAI, client: Client, tmp_path: Path) -> None:
    path = client.export_model("m", tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    prompts = PROMPTS[3:5]
    answer = ai.completions.create(
        model="m", prompt=prompts, max_tokens=7, n=2, temperature=1, seed=4, logprobs=0
    )
    assert answer.usage is not None
    # What was computed: the prompts, each once, and every token of every choice; an end of text,
    # which ends a choice before its length, is one of them and has no text.
    asked = sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    assert answer.usage.prompt_tokens == asked
    made = 0
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        made += len(choice.logprobs.tokens) if choice.finish_reason == "length" else 0
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == made == 7 * len(answer.choices)
    assert answer.usage.total_tokens == asked + made


def test_usage_of_a_chat_counts_what_its_template_adds(ai: openai.OpenAI) -> None:
    chat = {"model": "m", "max_tokens": 5, "temperature": 0}
    one, two = (
        ai.chat.completions.create(messages=[{"role": "user", "content": "the river"}] * n, **chat)  # type: ignore[call-overload]
        for n in (1, 2)
    )
    words = complete(ai, "the river", max_tokens=1).usage.prompt_tokens  # type: ignore[union-attr]
    assert one.usage.completion_tokens == 5
    assert one.usage.prompt_tokens > words
    assert two.usage.prompt_tokens - one.usage.prompt_tokens >= words
    pieces = list(
        ai.chat.completions.create(
            messages=[{"role": "user", "content": "the river"}],
            stream=True,
            stream_options={"include_usage": True},
            **chat,  # type: ignore[call-overload]
        )
    )
    assert [piece.usage for piece in pieces if piece.usage] == [one.usage]


def test_seeds_choices_stops_and_probabilities(ai: openai.OpenAI) -> None:
    drawn = [
        [c.text for c in complete(ai, "the", n=3, temperature=1, seed=seed).choices]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1
    text = complete(ai, "the", temperature=0).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = complete(ai, "the", stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    logs = complete(ai, "the", logprobs=2, max_tokens=3).choices[0].logprobs
    assert logs is not None
    assert logs.token_logprobs is not None
    assert all(value is not None and value <= 0 for value in logs.token_logprobs)


def test_a_chat_is_answered(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "the river"}], max_completion_tokens=8
    )
    assert answer.choices[0].message.role == "assistant"
    assert isinstance(answer.choices[0].message.content, str)


def test_a_client_that_goes_away_frees_its_slots(ai: openai.OpenAI, client: Client) -> None:
    streams = [
        ai.completions.create(model="m", prompt="the", max_tokens=1900, temperature=0, stream=True)
        for _ in range(SLOTS)
    ]
    for stream in streams:
        next(iter(stream))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(complete, ai, "the")
        for stream in streams:
            for _ in range(10):
                next(iter(stream))
        # Every slot is taken, and those who have them are far from their end.
        assert not waiting.done()
        for stream in streams:
            stream.close()
        assert waiting.result(30).choices[0].text
    until(lambda: in_flight(client) == 0)


async def test_a_full_queue_says_when_to_come_again(ai: openai.OpenAI, client: Client) -> None:
    client.serve("m:1", dtype="float32", slots=1)
    async with openai.AsyncOpenAI(
        base_url=ai.base_url, api_key=ai.api_key, max_retries=0, timeout=60
    ) as many:

        async def ask() -> None:
            await many.completions.create(model="m:1", prompt="the", max_tokens=1900)

        asked = [asyncio.create_task(ask()) for _ in range(300)]
        refused: list[openai.APIStatusError] = []
        async with asyncio.timeout(60):
            for done in asyncio.as_completed(asked):
                try:
                    await done
                except openai.APIStatusError as error:
                    refused.append(error)
                if len(refused) == 40:
                    break
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    client.stop("m:1")
    for error in refused:
        assert error.status_code == 503
        assert int(error.response.headers["retry-after"]) >= 1
        assert "cannot take more requests" in str(error)


ABSURD: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "nosuch"}, 404, "model"),
    ({"model": "../m"}, 400, "model"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": 10**12}, 400, "max_tokens"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"temperature": 1e9}, 400, "temperature"),
    ({"top_p": 1.5}, 400, "top_p"),
    ({"top_p": 2}, 400, "top_p"),
    ({"n": 0}, 400, "n"),
    ({"n": 10**9}, 400, "n"),
    ({"stop": ["x"] * 100}, 400, "stop"),
    ({"stop": [1, 2]}, 400, "stop[0]"),
    ({"seed": 10**30}, 400, "seed"),
    ({"logit_bias": {"a": "b"}}, 400, "logit_bias[...]"),
    ({"logit_bias": {"1": 100}}, 400, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"extra_body": {"unknown": 1}}, 400, "unknown"),
    ({"extra_body": {"stream": "yes"}}, 400, "stream"),
]
BAD_PROMPTS: list[tuple[Any, int, str | None]] = [
    ("the " * 9000, 400, "prompt"),
    ("x" * 7_000_000, 400, "prompt"),
    ("x" * 10_000_000, 413, None),  # no field: the body is not read
    ([10**6], 400, "prompt"),
    ([], 400, "prompt"),
    ([[1], []], 400, "prompt"),
    (5, 400, "prompt"),
]
BAD_MESSAGES: list[tuple[Any, int, str | None]] = [
    ([], 400, "messages"),
    ("hi", 400, "messages"),
    ([{"role": "king", "content": "x"}], 400, "messages[0].role"),
    ([{"role": "user"}], 400, "messages[0].content"),
    ([{"role": "user", "content": "the " * 9000}], 400, "messages"),
]


def test_what_cannot_be_answered_is_said_at_once_and_harms_nobody(ai: openai.OpenAI) -> None:
    """Each is refused in OpenAI's form with the field that is at fault, and nothing hangs."""
    hurried = ai.with_options(timeout=30, max_retries=0)
    hi = [{"role": "user", "content": "the"}]
    asked = [({"prompt": "the", **changes}, status, param) for changes, status, param in ABSURD]
    asked += [({"messages": hi, **changes}, status, param) for changes, status, param in ABSURD]
    asked += [({"prompt": prompt}, status, param) for prompt, status, param in BAD_PROMPTS]
    asked += [({"messages": said}, status, param) for said, status, param in BAD_MESSAGES]
    for changes, status, param in asked:
        create: Any = hurried.chat.completions.create if "messages" in changes else None
        create = create or hurried.completions.create
        told = str(changes)[:100]
        with pytest.raises(openai.APIStatusError, match="cannot") as caught:
            create(**{"model": "m", "max_tokens": 4, **changes})
        error: Any = caught.value
        assert (error.status_code, error.param) == (status, param), told
        assert error.type == "invalid_request_error", told
    assert complete(ai, "the").choices[0].text


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 1e-300},
        {"temperature": 2, "top_p": 1e-300},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1, "temperature": 2},
        {"stop": ["x" * 1024] * 16},
        {"max_tokens": 10**6},
        {"prompt": "\0\x1b\ufffe\U0010ffff"},
        {"prompt": "", "temperature": 1},
        {"n": 16, "temperature": 2},
        {"logprobs": 20, "echo": True},
        {"user": "x" * 100_000},
    ],
)
def test_what_is_at_the_edge_is_answered(ai: openai.OpenAI, changes: dict[str, Any]) -> None:
    hurried = ai.with_options(timeout=60, max_retries=0)
    answer = hurried.completions.create(
        **{"model": "m", "prompt": "the", "max_tokens": 4, **changes}
    )
    assert len(answer.choices) == changes.get("n", 1)
    assert {choice.finish_reason for choice in answer.choices} <= {"length", "stop"}


def test_a_model_is_loaded_by_a_request_and_goes_again(
    ai: openai.OpenAI, client: Client, root: Path
) -> None:
    client.copy("m", "rare")
    assert all(d.name != "rare" for d in client.deployments())
    client.serve("rare", keep_alive_s=0.5, dtype="float32")
    answer = ai.completions.create(model="rare", prompt="the", max_tokens=8, temperature=0)
    assert answer.choices[0].text == complete(ai, "the", max_tokens=8).choices[0].text

    def replicas() -> list[str]:
        return next(d for d in client.deployments() if d.name == "rare").replicas

    until(lambda: not replicas())
    begun = time.monotonic()
    raw = ai.completions.with_raw_response.create(
        model="rare", prompt="the", max_tokens=8, temperature=0
    )
    whole_s = time.monotonic() - begun
    assert raw.parse().choices[0].text == answer.choices[0].text
    queue_s, load_s, compute_s = times(raw.headers)
    assert load_s > queue_s  # it was loaded for this request
    assert compute_s > 0
    assert queue_s + load_s + compute_s <= whole_s
    client.stop("rare")


def test_busy_models_take_turns_for_one_place_and_no_answer_is_cut(
    ai: openai.OpenAI, client: Client
) -> None:
    for name in ("first", "second"):
        client.copy("m", name)
    long: dict[str, Any] = {"prompt": ["the"] * 8, "max_tokens": 1500, "temperature": 0}
    with ThreadPoolExecutor(1) as pool:
        stream = ai.completions.create(model="first", stream=True, **long)
        next(iter(stream))
        begun = time.monotonic()
        other = pool.submit(
            ai.completions.create, model="second", prompt="the", max_tokens=4, temperature=0
        )
        finished = [c.choices[0].finish_reason for c in stream]
        took_s = time.monotonic() - begun
        # It went on for longer than a replica has that is ended without being drained.
        assert took_s > 1
        assert finished.count("length") == 8
        assert other.result(60).choices[0].text
    replicas = {d.name: d.replicas for d in client.deployments()}
    assert replicas["second"]
    assert not replicas.get("first")  # nobody asks for it


def test_an_answer_says_where_its_time_went(ai: openai.OpenAI, client: Client) -> None:
    """Of 40 that come at once, most wait for one of the few slots: no longer than they take."""

    def ask(number: int) -> tuple[float, float, float, float]:
        settings: dict[str, Any] = {"max_tokens": 24, "stream": number % 2 == 0}
        begun = time.monotonic()
        create = ai.completions.with_streaming_response.create
        with create(model="m", prompt="the", **settings) as raw:
            raw.read()
            return *times(raw.headers), time.monotonic() - begun

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    assert all(queue + load + compute <= whole for queue, load, compute, whole in answers)
    assert max(queue for queue, *_ in answers) > max(load for _, load, *_ in answers)
    text = client.http.get("/metrics").text
    for name in ("queue", "load", "compute"):
        counts = re.findall(rf'zenos_request_{name}_seconds_count{{model="m"}} (\S+)', text)
        assert float(counts[0]) >= 40


def test_requests_are_seen_as_threads_of_the_replica(ai: openai.OpenAI, client: Client) -> None:
    def sequences() -> list[PoolView]:
        task = next(d for d in client.deployments() if d.name == "m").replicas[0]
        processes = client.threads(task).processes
        return [p for process in processes for p in process.pools if p.name == "sequences"]

    until(lambda: len(sequences()) == 1)
    before = sequences()[0]
    assert (before.kind, before.wanted) == ("engine", SLOTS)
    complete(ai, PROMPTS[0], n=2)
    # Both have ended, whether or not they were looked at on their way.
    until(lambda: sequences()[0].succeeded >= before.succeeded + 2)
    until(lambda: (sequences()[0].running, sequences()[0].threads) == (0, []))


def test_who_asks_for_too_little_memory_is_told_and_not_refused(client: Client, root: Path) -> None:
    small = {"arch": "llama-mini", "data": str(root / "later"), "memory": "256MiB"}
    task = client.train(model="w", cpu=2, at="+1h", **small)
    assert "it wants about 1.9 GiB of memory, and asks for 256 MiB" in task.task.warning
    task.cancel()
    served = client.serve("m:1", memory="100MiB")
    assert "and asks for 100 MiB" in served.warning
    assert client.serve("m:1", memory="1GiB").warning == ""
    client.stop("m:1")
