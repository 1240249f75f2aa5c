"""Sequences as threads: what is seen of a replica from outside."""

from __future__ import annotations

from tests.runtime.engine.conftest import Answers, Made, ask
from zenos.core.thread_views import PoolView, ThreadView
from zenos.core.wire import GenerateRequest, Sampling
from zenos.runtime.engine.engine import PART_TOKENS, Engine
from zenos.runtime.engine.generations import Generations
from zenos.runtime.engine.shown import ShownSequences


class Seen:
    """An engine of two rows that is looked at."""

    def __init__(self, made: Made) -> None:
        self.engine: Engine = made.engine(slots=2)
        self.answers = Answers(self.engine)
        self._shown = ShownSequences(Generations(self.engine, 2))

    def pool(self) -> PoolView:
        return self._shown.snapshot()

    def of(self, name: str) -> ThreadView:
        (found,) = [thread for thread in self.pool().threads if thread.name == name]
        return found

    def count(self, name: str) -> tuple[str, int, int, str]:
        thread = self.of(name)
        return thread.state, thread.done, thread.total, thread.unit


def test_a_sequence_waits_has_its_prompt_run_and_then_decodes(llama: Made) -> None:
    seen = Seen(llama)
    ask(seen.engine, "first", [5, 6, 7], max_tokens=40)
    assert seen.count("first") == ("queued", 0, 40, "tokens")
    seen.answers.step()
    assert seen.count("first") == ("running", 1, 40, "tokens")
    ask(seen.engine, "long", list(range(1, 300)), max_tokens=10, priority=75)
    ask(seen.engine, "late", [1, 2], max_tokens=5)
    seen.answers.step()
    assert seen.count("first") == ("running", 2, 40, "tokens")
    assert seen.count("long") == ("prefill", PART_TOKENS, 299, "tokens of the prompt")
    assert seen.count("late") == ("queued", 0, 5, "tokens")
    long, late = seen.of("long"), seen.of("late")
    assert (long.lane, late.lane, long.priority) == (1, None, 75)
    assert long.progress == PART_TOKENS / 299
    assert (seen.pool().running, seen.pool().queued, seen.pool().wanted) == (2, 1, 2)
    assert [thread.state for thread in seen.pool().threads] == ["running", "prefill", "queued"]
    seen.answers.drain()
    assert (seen.pool().threads, seen.pool().submitted, seen.pool().succeeded) == ([], 3, 3)


def test_of_many_sequences_only_some_are_listed_and_all_are_counted(llama: Made) -> None:
    seen = Seen(llama)
    for number in range(5):
        ask(seen.engine, str(number), [3, number + 1], max_tokens=9)
    seen.answers.step()
    pool = seen._shown.snapshot(3)
    assert (len(pool.threads), pool.running, pool.queued) == (3, 2, 3)


def test_choices_have_names_of_their_own_and_the_aborted_are_counted(llama: Made) -> None:
    seen = Seen(llama)
    ask(seen.engine, "r", [3, 4], n=2)
    assert {thread.name for thread in seen.pool().threads} == {"r/0", "r/1"}
    assert len({thread.id for thread in seen.pool().threads}) == 2
    seen.engine.abort("r")
    assert (seen.pool().threads, seen.pool().cancelled) == ([], 2)


def test_who_came_first_goes_first_however_long_its_prompt_took(llama: Made) -> None:
    seen = Seen(llama)
    for name, arrival in (("a", 0), ("c", 2), ("d", 3), ("b", 1)):  # b was tokenized last
        request = GenerateRequest(id=name, tokens=[3, 4], sampling=Sampling(max_tokens=3))
        seen.engine.submit(request, [3, 4], arrival)
    seen.answers.step()
    assert [thread.name for thread in seen.pool().threads if thread.runs] == ["a", "b"]
