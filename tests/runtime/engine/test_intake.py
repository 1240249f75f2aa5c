"""What comes to a replica: aborts are seen before the next prompt is tokenized."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.runtime.engine.conftest import Made
from tests.runtime.train.helpers import Bus, make_context, make_task
from zenos.core.specs import ServeSpec
from zenos.core.wire import Abort, Chunk, GenerateRequest
from zenos.runtime.engine.serve import Intake, Loaded


def request(name: str, prompt: str = "the river") -> bytes:
    return msgspec.msgpack.encode(GenerateRequest(id=name, prompt=prompt))


def abort(name: str) -> bytes:
    return msgspec.msgpack.encode(Abort(request=name))


@pytest.fixture
def loaded(llama: Made) -> Loaded:
    return llama.loaded()


@pytest.fixture
def hand(tmp_path: Path, loaded: Loaded) -> Iterator[Callable[..., list[Any]]]:
    """Gives an intake messages that are there together; what it hands over, up to `last`."""
    intakes = []

    def go(*messages: tuple[str, bytes], last: str) -> list[Any]:
        bus = Bus()
        for topic, body in messages:
            bus.put(topic, body)
        task = make_task(ServeSpec(model="m", deployment="m"))
        intake = Intake(make_context(tmp_path / "home", task, bus), loaded)
        intakes.append(intake)
        intake.start()
        found: list[Any] = []
        while not found or found[-1] != last:
            item = intake.handed.get(timeout=30)
            name = item[0].id if isinstance(item, tuple) else item.request
            found.append(name if isinstance(item, tuple) else (type(item), name))
        with pytest.raises(queue.Empty):
            intake.handed.get_nowait()
        return found

    yield go
    for intake in intakes:
        intake.done.set()
        intake.join(30)


def test_requests_are_handed_over_in_the_order_of_their_coming(hand: Any) -> None:
    assert hand(*[("request", request(name)) for name in "abc"], last="c") == ["a", "b", "c"]


def test_what_is_aborted_while_it_waits_is_not_tokenized(hand: Any) -> None:
    messages = [("request", request(name)) for name in "abc"]
    assert hand(*messages, ("abort", abort("b")), last="c") == ["a", "c"]


def test_an_abort_that_overtook_its_request_holds(hand: Any) -> None:
    found = hand(
        ("abort", abort("a")), ("request", request("a")), ("request", request("b")), last="b"
    )
    # The engine hears of it too: it can't be told whether it has the request already.
    assert found == [(Abort, "a"), "b"]


def test_a_malformed_message_is_left_out(hand: Any) -> None:
    assert hand(("request", b"\xc1"), ("abort", b""), ("request", request("a")), last="a") == ["a"]


def test_a_prompt_that_can_never_fit_is_refused_without_tokenizing_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = GenerateRequest(id="long", prompt="river " * 100_000)
    least = loaded.vocabulary.least_tokens(long.prompt or "")
    assert 512 < least <= len(loaded.vocabulary.encode(long.prompt or "", special=False))
    monkeypatch.setattr(loaded.vocabulary, "encode", lambda *_, **__: pytest.fail("tokenized"))
    with pytest.raises(Exception, match=f"cannot fit the prompt: at least {least} tokens"):
        loaded.tokenize(long)


def test_the_least_number_of_tokens_is_never_too_large(loaded: Loaded) -> None:
    for text in ("", "a", "naïve café 日本語 😀" * 50, "the river ran over old stones " * 20):
        assert loaded.vocabulary.least_tokens(text) <= len(
            loaded.vocabulary.encode(text, special=False)
        )


def test_a_failure_is_told_to_whoever_asked(hand: Any) -> None:
    assert hand(("request", request("a", "river " * 100_000)), last=(Chunk, "a")) == [(Chunk, "a")]
