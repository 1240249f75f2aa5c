"""What comes to a replica: aborts are seen before the next prompt is tokenized."""

from __future__ import annotations

import itertools
import json
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.processes import signalled_until
from tests.runtime.engine.conftest import Made, byte_level
from tests.runtime.train.helpers import Bus, make_context, make_task
from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.specs import ServeSpec
from zenos.core.wire import Abort, Chunk, GenerateRequest, Stop
from zenos.runtime.engine.chat import ChatTemplate
from zenos.runtime.engine.intake import LONG_CHARS, Intake, Prompted
from zenos.runtime.engine.serve import Loaded
from zenos.runtime.engine.vocabulary import Vocabulary


def request(name: str, prompt: str = "the river", priority: int = limits.PRIORITY_NORMAL) -> bytes:
    return msgspec.msgpack.encode(GenerateRequest(id=name, prompt=prompt, priority=priority))


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
        intake = Intake(make_context(tmp_path / "home", task, bus), loaded.tokenize)
        intakes.append(intake)
        intake.start()
        found: list[Any] = []
        while not found or found[-1] != last:
            item = intake.handed.get(timeout=30)
            prompted = isinstance(item, Prompted)
            name = item.request.id if prompted else item.request
            found.append(name if prompted else (type(item), name))
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


def test_a_model_whose_template_took_too_long_has_its_chats_beside_the_others(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "{% for _ in range(9999) %}" * 3 + "{% endfor %}" * 3
    monkeypatch.setattr(loaded, "template", ChatTemplate(loop, {}, now=itertools.count().__next__))
    chat = GenerateRequest(id="chat", messages=[{"role": "user", "content": "x"}])
    assert not loaded.is_slow(chat)
    with pytest.raises(InvalidError, match="it takes longer than"):
        loaded.tokenize(chat)
    assert loaded.is_slow(chat)
    assert not loaded.is_slow(GenerateRequest(id="prompt", prompt="x"))


def test_a_chat_is_asked_through_the_template_of_the_model(llama: Made, tmp_path: Path) -> None:
    chat = GenerateRequest(id="chat", messages=[{"role": "user", "content": "the river"}])
    plain = llama.loaded()
    assert not plain.template.own
    said = plain.vocabulary.encode("user: the river\nassistant:", special=False)
    assert plain.tokenize(chat) == said
    taught = shutil.copytree(llama.path, tmp_path / "taught")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    (taught / "chat_template.jinja").write_text(template)
    own = llama._replace(path=taught).loaded()
    assert own.template.own
    assert own.tokenize(chat) == own.vocabulary.encode("<user>the river<answer>", special=False)


def test_the_least_number_of_tokens_is_never_too_large(loaded: Loaded) -> None:
    for text in ("", "a", "naïve café 日本語 😀" * 50, "the river ran over old stones " * 20):
        assert loaded.vocabulary.least_tokens(text) <= len(
            loaded.vocabulary.encode(text, special=False)
        )


def test_ids_with_gaps_do_not_make_a_prompt_look_longer(tmp_path: Path) -> None:
    made = byte_level()
    made.save(str(tmp_path / "tokenizer.json"))
    said = json.loads((tmp_path / "tokenizer.json").read_text())
    longest = max(said["model"]["vocab"], key=len)
    said["model"]["vocab"][longest] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    vocabulary, text = Vocabulary(tmp_path), longest.replace("\u0120", " ") * 40
    assert vocabulary.least_tokens(text) <= len(vocabulary.encode(text, special=False))


def test_a_failure_is_told_to_whoever_asked(hand: Any) -> None:
    assert hand(("request", request("a", "river " * 100_000)), last=(Chunk, "a")) == [(Chunk, "a")]


def test_what_comes_after_the_word_to_end_is_for_another_replica(
    tmp_path: Path, loaded: Loaded
) -> None:
    bus = Bus()
    bus.put("stop", msgspec.msgpack.encode(Stop(save=False)))
    bus.put("request", request("a"))
    task = make_task(ServeSpec(model="m", deployment="m"))
    intake = Intake(make_context(tmp_path / "home", task, bus), loaded.tokenize)
    intake.start()
    try:
        assert intake.handed.get(timeout=30) == Stop(save=False)
        assert intake.handed.get(timeout=30) == Chunk(request="a", refused=True)
    finally:
        intake.done.set()
        intake.join(30)


def test_who_waits_for_something_to_do_is_not_held_up_by_a_signal(
    tmp_path: Path, loaded: Loaded
) -> None:
    task = make_task(ServeSpec(model="m", deployment="m"))
    handed = Intake(make_context(tmp_path / "home", task, Bus()), loaded.tokenize).handed
    late = threading.Timer(10, handed.put, [Stop(save=False)])
    late.start()  # who waits for ever is freed by this, and the test fails
    try:
        with signalled_until(time.monotonic() + 0.2), pytest.raises(queue.Empty):
            handed.get(timeout=0.1)
    finally:
        late.cancel()
        late.join()


class Gated:
    """An intake whose long prompts are tokenized only once they are let through."""

    def __init__(self, root: Path) -> None:
        self.bus = Bus()
        task = make_task(ServeSpec(model="m", deployment="m"))
        context = make_context(root, task, self.bus)
        self.intake = Intake(context, self._tokenize, lambda request: request.id == "slow")
        self.gate = threading.Event()
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.intake.start()

    def _tokenize(self, request: GenerateRequest) -> list[int]:
        if len(request.prompt or "") >= LONG_CHARS or request.id == "slow":
            self.begun.put(request.id)
            assert self.gate.wait(60)
        return [1, 2, 3]

    def ask(self, name: str, chars: int, priority: int = limits.PRIORITY_NORMAL) -> None:
        self.bus.put("request", request(name, "x" * chars, priority=priority))

    def next(self) -> Any:
        return self.intake.handed.get(timeout=60)

    def close(self) -> None:
        self.gate.set()
        self.intake.done.set()
        self.intake.join(60)


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    monkeypatch.setenv("ZENOS_CPU", "1")  # one lane
    made = Gated(tmp_path / "home")
    yield made
    made.close()


@pytest.mark.parametrize(("name", "chars"), [("long", LONG_CHARS), ("slow", 3)])
def test_a_long_prompt_holds_up_nobody_and_keeps_its_place(
    gated: Gated, name: str, chars: int
) -> None:
    gated.ask(name, chars)
    assert gated.begun.get(timeout=60) == name
    gated.ask("short", 3)
    assert gated.next() == Prompted(
        msgspec.msgpack.decode(request("short", "xxx"), type=GenerateRequest), [1, 2, 3], 1
    )
    gated.gate.set()
    handed = gated.next()
    assert (handed.request.id, handed.arrival) == (name, 0)


def test_of_long_prompts_those_of_a_higher_priority_are_tokenized_first(gated: Gated) -> None:
    gated.ask("first", LONG_CHARS)
    assert gated.begun.get(timeout=60) == "first"
    for name, priority in (("low", 25), ("normal", 50), ("high", 75)):
        gated.ask(name, LONG_CHARS, priority)
    gated.ask("marker", 3)  # what came before it has been looked at
    assert gated.next().request.id == "marker"
    gated.gate.set()
    order = [gated.begun.get(timeout=60) for _ in range(3)]
    assert order == ["high", "normal", "low"]


def test_a_client_that_goes_away_while_its_prompt_is_tokenized(gated: Gated) -> None:
    for name in ("on the lane", "waits for it", "stays"):
        gated.ask(name, LONG_CHARS)
    assert gated.begun.get(timeout=60) == "on the lane"
    for name in ("on the lane", "waits for it"):
        gated.bus.put("abort", abort(name))
    gated.ask("marker", 3)  # what came before it has been looked at
    assert gated.next().request.id == "marker"
    gated.gate.set()
    assert gated.next().request.id == "stays"
    assert gated.begun.get(timeout=60) == "stays"
    with pytest.raises(queue.Empty):
        gated.intake.handed.get_nowait()


def test_others_run_while_a_prompt_is_tokenized(loaded: Loaded) -> None:
    """Python's lock is given away: else every sequence of the replica would stand still."""
    text = " ".join(f"river{number}" for number in range(60_000))
    worker = threading.Thread(
        target=loaded.vocabulary.encode, args=(text,), kwargs={"special": False}
    )
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
        time.sleep(0)
    assert turns > 100  # with the lock kept it is a handful
