"""Weights that change while requests are answered: no sequence mixes two versions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.processes import until
from tests.runtime.engine.conftest import CONFIGS, Made, byte_level
from tests.runtime.train.helpers import Bus, make_context, make_task
from zenos.core.errors import WorkerError
from zenos.core.specs import ServeSpec
from zenos.core.wire import Chunk, GenerateRequest, Sampling, Weights
from zenos.models.registry import Registry
from zenos.runtime.engine.generations import Generations
from zenos.runtime.engine.renewal import Renewal
from zenos.runtime.engine.serve import Loaded

PROMPT = [5, 9, 300, 41, 77, 12, 8, 200, 31, 64]
FAMILIES = ["gpt2", "llama"]


class Replica:
    """A replica without a bus: versions m:1 to m:3 of a model, and what was answered."""

    def __init__(
        self, root: Path, family: str, memory: int = 0, slots: int = 4, *, restart: bool = False
    ) -> None:
        registry = Registry(Path(root) / "home" / "models")
        self.versions = {}
        for number in (1, 2, 3):
            path = root / f"v{number}"
            torch.manual_seed(number)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
            model.save_pretrained(path)
            byte_level().save(str(path / "tokenizer.json"))
            (path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
            registry.import_directory(path, "m")
            self.versions[f"m:{number}"] = Made(path, model)
        work = ServeSpec(model="m:1", deployment="m", dtype="float32", slots=slots)
        self.context = make_context(root / "home", make_task(work), Bus())  # type: ignore[arg-type]
        directory = registry.path(registry.resolve("m:1"))
        self.loaded = Loaded(directory, work, memory, version="m:1")
        self.engines = Generations(self.loaded.engine, slots, restart=restart)
        self.renewal = Renewal(self.context, self.loaded, self.engines)
        self.chunks: list[Chunk] = []
        self.turns = 0

    def ask(self, name: str, *, whole: bool = False, **sampling: Any) -> None:
        settings: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": 16,
            "ignore_eos": True,
            "logprobs": 0,
            **sampling,
        }
        sampled = Sampling(**settings)
        request = GenerateRequest(id=name, tokens=PROMPT, sampling=sampled, whole=whole)
        self.engines.submit(request, PROMPT)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.renewal.turn()
            self.chunks += self.engines.step()

    def told(self, number: int, turn: int | None = None) -> None:
        self.turns = turn or self.turns + 1
        self.renewal.hear(Weights(version=f"m:{number}", turn=self.turns))

    def change(self, number: int) -> None:
        """That version is told, loaded and taken into use, whatever is answered meanwhile."""
        self.told(number)
        self.renewal.turn()
        self.renewal.wait(60)
        self.renewal.turn()
        assert self.engines.version == f"m:{number}"

    def drain(self) -> None:
        def over() -> bool:
            self.step()
            return self.engines.empty

        until(over, 60)

    def settle(self, number: int) -> None:
        """Step until that version is the only one."""

        def there() -> bool:
            self.step()
            return self.engines.settled and self.engines.version == f"m:{number}"

        until(there, 60)

    def version(self, name: str) -> str:
        """Which one answered; checks that it was one, and that it says exactly that."""
        chunks = [chunk for chunk in self.chunks if chunk.request == name]
        again = [place for place, chunk in enumerate(chunks) if chunk.again]
        chunks = chunks[again[-1] + 1 :] if again else chunks
        (version,) = {chunk.version for chunk in chunks}
        for index in {chunk.index for chunk in chunks}:
            own = [chunk for chunk in chunks if chunk.index == index]
            said = [token.bytes for chunk in own for token in chunk.logprobs]
            made = self.versions[version].greedy_through(PROMPT, len(said))
            wanted = [list(self.loaded.vocabulary.bytes_of(token)) for token in made]
            assert said == wanted, (name, version)
        return version


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    made = []

    def make(family: str = "llama", **more: Any) -> Replica:
        made.append(Replica(tmp_path, family, **more))
        return made[-1]

    yield make
    for one in made:
        one.renewal.close()
    assert "renew" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_begun_ends_with_the_old_weights(
    replica: Callable[..., Replica], family: str
) -> None:
    r = replica(family)
    r.ask("old", max_tokens=30)
    r.step(5)
    r.change(2)
    assert not r.engines.settled
    r.ask("new")  # the same prompt: its prefix is computed anew
    r.drain()
    assert (r.version("old"), r.version("new")) == ("m:1", "m:2")
    assert r.engines.settled


def test_what_waits_for_a_slot_goes_with_the_new_weights(replica: Callable[..., Replica]) -> None:
    r = replica(slots=2)
    for name in ("a", "b", "c", "d"):
        r.ask(name, max_tokens=20)
    r.ask("many", n=2)
    r.step(3)
    r.change(2)
    most = 0

    def over() -> bool:
        nonlocal most
        r.step()
        most = max(most, sum(engine.rows_used for engine in r.engines._engines()))
        return r.engines.empty

    until(over, 60)
    versions = {name: r.version(name) for name in ("a", "b", "c", "d", "many")}
    assert versions == {"a": "m:1", "b": "m:1", "c": "m:2", "d": "m:2", "many": "m:2"}
    assert most == 2  # slots are shared by both


def test_choices_of_one_request_have_one_version(replica: Callable[..., Replica]) -> None:
    r = replica(slots=2)
    r.ask("many", n=6, max_tokens=10)
    r.step(4)
    r.change(2)
    r.ask("new")
    r.drain()
    assert (r.version("many"), r.version("new")) == ("m:1", "m:2")


def test_the_newest_word_wins_and_old_news_is_left_out(replica: Callable[..., Replica]) -> None:
    r = replica()
    r.told(2, turn=5)
    r.told(3, turn=6)
    r.told(2, turn=5)
    assert r.renewal.is_due
    r.settle(3)
    r.told(2, turn=4)
    assert not r.renewal.is_due
    r.told(1, turn=7)  # somebody went back
    r.settle(1)
    r.ask("back")
    r.drain()
    assert r.version("back") == "m:1"


def test_never_more_than_two_sets_of_weights(replica: Callable[..., Replica]) -> None:
    r = replica()
    r.ask("old", max_tokens=400)
    r.step(3)
    r.change(2)
    r.told(3)
    for _ in range(3):
        r.renewal.turn()
        r.renewal.wait(60)
        r.step()
    assert r.engines.version == "m:2"  # the first still answers
    r.engines.abort("old")
    r.settle(3)


def test_without_room_for_two_the_old_ones_go_first_and_nothing_is_dropped(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loaded, "has_room", property(lambda _: False))
    r = replica()
    r.ask("begun", max_tokens=20)
    r.step(3)
    r.told(2)
    r.step(2)
    r.ask("waits")
    assert not r.engines.settled or r.engines.version == "m:1"
    r.drain()
    assert (r.version("begun"), r.version("waits")) == ("m:1", "m:2")


def test_a_memory_limit_says_whether_there_is_room(replica: Callable[..., Replica]) -> None:
    assert replica(memory=1).loaded.has_room is False


def test_going_back_before_the_weights_changed_changes_nothing(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loaded, "has_room", property(lambda _: False))
    r = replica()
    r.ask("begun", max_tokens=20)
    r.step(3)
    r.told(2)
    r.step()
    r.ask("waits")
    r.told(1)
    r.drain()
    assert (r.version("begun"), r.version("waits")) == ("m:1", "m:1")


def test_weights_that_cannot_be_had_leave_what_is_there(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    r = replica()
    r.told(9)  # removed, before it could be read
    r.renewal.turn()
    r.renewal.wait(60)
    r.ask("still")
    r.drain()
    assert r.version("still") == "m:1"
    assert not r.renewal.is_due
    # Without room for two the old ones had to go: they come back.
    monkeypatch.setattr(Loaded, "has_room", property(lambda _: False))
    r.told(9)
    r.step()
    r.ask("again")
    r.drain()
    assert r.version("again") == "m:1"
    # A replica that has none at all says so, and is replaced.
    r.context.registry.remove("m:1")
    r.told(9)
    with pytest.raises(WorkerError, match="cannot go on: the weights could not be loaded"):
        until(lambda: r.step(), 60)


@pytest.mark.parametrize("room", [True, False])
def test_by_policy_what_nobody_has_seen_is_begun_again_once(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch, *, room: bool
) -> None:
    monkeypatch.setattr(Loaded, "has_room", property(lambda _: room))
    r = replica(restart=True)
    r.ask("streamed", max_tokens=20)
    r.ask("whole", max_tokens=20, whole=True, n=2)
    r.step(5)
    if room:
        r.change(2)
    else:
        r.told(2)
        r.step(3)
        assert r.engines.version == "m:1"
    r.drain()
    assert (r.version("streamed"), r.version("whole")) == ("m:1", "m:2")
    assert [chunk.request for chunk in r.chunks if chunk.again] == ["whole"]


def test_however_fast_versions_come_an_answer_comes_to_an_end(
    replica: Callable[..., Replica],
) -> None:
    r = replica(restart=True)
    r.ask("whole", max_tokens=20, whole=True)
    r.step(3)
    r.change(2)
    r.step(3)
    r.change(3)
    r.ask("new")
    r.drain()
    assert (r.version("whole"), r.version("new")) == ("m:2", "m:3")
    assert sum(chunk.again for chunk in r.chunks) == 1
