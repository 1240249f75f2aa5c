"""A request's answer is its own, whatever stands beside it."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from tests.runtime.engine.conftest import Answers, Made, answer, ask
from zenos.core.errors import BusyError, InvalidError
from zenos.core.limits import CHOICES_MAX
from zenos.core.specs import ServeSpec
from zenos.runtime.engine import engine as engine_module
from zenos.runtime.engine.engine import SEQUENCES_WAITING_MAX
from zenos.runtime.engine.linear import Linear
from zenos.runtime.engine.llama import LlamaBackend, split_lengths
from zenos.runtime.engine.rows import common_length
from zenos.runtime.engine.serve import Loaded


def prompts(seed: int, count: int, longest: int) -> list[list[int]]:
    """Random tokens; some begin as others do, so that there are prefixes to reuse."""
    source = random.Random(seed)  # noqa: S311 - seeded test data
    made: list[list[int]] = []
    for _ in range(count):
        tokens = [source.randrange(1, 300) for _ in range(source.randrange(1, longest))]
        if made and source.random() < 0.5:
            other = source.choice(made)
            tokens = other[: source.randrange(1, len(other) + 1)] + tokens[:20]
        made.append(tokens)
    return made


def text_of(model: Made, tokens: list[int]) -> str:
    vocabulary = model.loaded().vocabulary
    return vocabulary.decode(tokens)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_that_of_generate_however_requests_join_and_leave(
    model: Made, seed: int
) -> None:
    source = random.Random(seed)  # noqa: S311
    asked = prompts(seed, 14, 60)
    lengths = [source.randrange(1, 20) for _ in asked]
    engine = model.engine()
    answers = Answers(engine)
    for number, (prompt, length) in enumerate(zip(asked, lengths, strict=True)):
        ask(engine, str(number), prompt, max_tokens=length)
        for _ in range(source.randrange(4)):
            answers.step()
        if source.random() < 0.2:
            gone = str(source.randrange(number + 1))
            engine.abort(gone)
            lengths[int(gone)] = 0 if answers.finish_or_none(gone) is None else lengths[int(gone)]
    answers.drain()
    vocabulary = model.loaded().vocabulary
    for number, (prompt, length) in enumerate(zip(asked, lengths, strict=True)):
        if length:
            wanted = vocabulary.decode(model.greedy_through(prompt, length))
            assert answers.text(str(number)) == wanted, number
    assert engine.rows_used == 0


def test_a_long_prompt_in_parts_beside_others(model: Made) -> None:
    engine = model.engine()
    answers = Answers(engine)
    short, long = prompts(1, 1, 10)[0], prompts(2, 1, 2)[0] * 3 + list(range(1, 290))
    ask(engine, "short", short, max_tokens=30)
    answers.step()
    ask(engine, "long", long, max_tokens=5)
    answers.drain()
    vocabulary = model.loaded().vocabulary
    assert answers.text("short") == vocabulary.decode(model.greedy_through(short, 30))
    assert answers.text("long") == vocabulary.decode(model.greedy_through(long, 5))


@pytest.mark.parametrize("length", [39, 40, 41, 80, 81, 82, 200])
def test_a_long_prompt_in_parts_alone(
    model: Made, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Then there are steps in which nobody chooses a token."""
    monkeypatch.setattr(engine_module, "PART_TOKENS_ALONE", 40)
    prompt = [1 + n * 7 % 300 for n in range(length)]
    engine = model.engine()
    found = Answers(engine)
    ask(engine, "long", prompt, max_tokens=5)
    found.drain()
    vocabulary = model.loaded().vocabulary
    assert found.text("long") == vocabulary.decode(model.greedy_through(prompt, 5))


def test_what_prompts_share_is_computed_once(llama: Made) -> None:
    engine = llama.engine()
    shared = list(range(1, 41))
    first = answer(engine, [*shared, 50], max_tokens=4)
    assert engine.tokens_reused == 0
    second = answer(engine, [*shared, 60], max_tokens=4)
    assert engine.tokens_reused == len(shared)
    fresh = answer(llama.engine(), [*shared, 60], max_tokens=4)
    assert second.text("r") == fresh.text("r")
    assert first.text("r") == answer(llama.engine(), [*shared, 50], max_tokens=4).text("r")


def test_bfloat16_agrees_up_to_the_first_near_tie(llama: Made) -> None:
    engine = llama.engine(dtype="bfloat16")
    assert isinstance(engine._backend, LlamaBackend)
    vocabulary = llama.loaded().vocabulary
    compared = 0
    for prompt in prompts(5, 16, 40):
        text = answer(engine, prompt, max_tokens=16).text("r")
        wanted = llama.greedy_through(prompt, 16)
        for count in range(1, len(wanted) + 1):
            logits = llama.logits([*prompt, *wanted[: count - 1]])[-1]
            best, second = logits.topk(2).values.tolist()
            if best - second < 0.03 * abs(best):
                break
            assert text.startswith(vocabulary.decode(wanted[:count]).rstrip("\ufffd"))
            compared += 1
    # Else all were near ties from the first, and nothing was said.
    assert compared >= 40


def test_all_rows_come_back_and_a_gone_client_frees_its_own_at_once(model: Made) -> None:
    engine = model.engine(slots=2)
    answers = Answers(engine)
    for name in "abc":
        ask(engine, name, [1, 2, 3], max_tokens=400)
    answers.step()
    answers.step()
    assert engine.rows_used == 2
    assert not answers.of("c")
    engine.abort("a")
    answers.step()
    assert answers.of("c")
    assert engine.rows_used == 2
    assert sorted(engine.abort_all()) == ["b", "c"]
    assert engine.idle
    assert engine.rows_used == 0


def test_priority_goes_first_and_then_the_order_of_arrival(llama: Made) -> None:
    engine = llama.engine(slots=1)
    answers = Answers(engine)
    for name, priority in (("low", 10), ("first", 50), ("second", 50), ("high", 90)):
        ask(engine, name, [1, 2, 3], priority=priority, max_tokens=2)
    answers.drain()
    order = list(dict.fromkeys(chunk.request for chunk in answers.chunks))
    assert order == ["high", "first", "second", "low"]


def test_what_can_never_be_answered_is_refused(model: Made) -> None:
    engine = model.engine()
    for prompt, reason in (
        ([], "cannot continue an empty prompt"),
        ([1] * 512, "cannot fit the prompt: 512 tokens, the context holds 512"),
        ([320], "cannot use these tokens"),
        ([-1], "cannot use these tokens"),
    ):
        with pytest.raises(InvalidError, match=reason):
            ask(engine, "r", prompt)
    assert engine.idle


def test_too_many_waiting_are_refused(llama: Made) -> None:
    engine = llama.engine()
    for number in range(SEQUENCES_WAITING_MAX // CHOICES_MAX):
        ask(engine, str(number), [1], n=CHOICES_MAX)
    with pytest.raises(BusyError):
        ask(engine, "more", [1])
    engine.abort_all()
    ask(engine, "more", [1])


def test_the_context_bounds_prompt_and_answer(model: Made) -> None:
    answers = answer(model.engine(context=32), [1] * 30, max_tokens=100)
    assert answers.finish("r") == "length"
    assert sum(chunk.token_count for chunk in answers.of("r")) == 2


def test_the_memory_bounds_how_many_run_at_once(llama: Made) -> None:
    from zenos.runtime.engine.engine import Engine

    loaded = llama.loaded(slots=4)
    engine = Engine(loaded.engine._backend, loaded.vocabulary, budget=64)
    answers = Answers(engine)
    for number in range(4):
        ask(engine, str(number), [1, 2], max_tokens=28)
    answers.step()
    assert engine.rows_used == 2
    answers.drain()
    assert {answers.finish(str(n)) for n in range(4)} == {"length"}


def test_what_the_memory_holds_at_once_is_in_the_log(
    llama: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spec = ServeSpec(model="m", deployment="m", dtype="float32", slots=4)
    Loaded(llama.path, spec)  # without a limit there is nothing to say
    assert "tokens" not in caplog.text
    Loaded(llama.path, spec, memory=1)
    assert (
        "holds 64 tokens of all sequences together: 0 of at most 512 tokens at once" in caplog.text
    )


def test_a_sequence_that_is_not_a_number_fails_alone(llama: Made) -> None:
    engine = llama.engine()
    backend = engine._backend
    answers = Answers(engine)
    ask(engine, "good", [1, 2, 3], max_tokens=6)
    answers.step()
    ask(engine, "bad", [4, 5, 6], max_tokens=6)
    forward = backend.forward

    def broken(batch: object) -> torch.Tensor:
        logits = forward(batch).clone()  # type: ignore[arg-type]
        if len(logits) > 1:
            logits[1] = float("nan")
        return logits

    backend.forward = broken  # type: ignore[method-assign, assignment]
    answers.drain()
    (failure,) = answers.of("bad")
    assert failure.error is not None
    assert failure.error.startswith("cannot go on: the model computed something")
    assert answers.finish("good") == "length"
    assert engine.rows_used == 0


def test_a_choice_that_ends_as_another_of_its_request_fails_takes_nothing_from_others(
    llama: Made,
) -> None:
    engine = llama.engine()
    backend = engine._backend
    answers = Answers(engine)
    ask(engine, "good", [1, 2, 3], max_tokens=12)
    ask(engine, "both", [4, 5, 6], n=2, max_tokens=12, ignore_eos=False)
    while len(engine._running) < 3:
        answers.step()
    forward = backend.forward

    def broken(batch: object) -> torch.Tensor:
        logits = forward(batch).clone()  # type: ignore[arg-type]
        if len(logits) == 3:
            logits[1] = float("nan")
            logits[2] = -float("inf")
            logits[2][0] = 1.0  # the end
        return logits

    backend.forward = broken  # type: ignore[method-assign, assignment]
    answers.drain()
    assert answers.finish("good") == "length"
    assert [chunk.error is not None for chunk in answers.of("both")].count(True) == 1
    assert engine.rows_used == 0


@pytest.mark.parametrize("lengths", [[], [5], [5, 5, 5], [1000, 5, 6, 7], [9, 8, 1000, 900]])
def test_lengths_are_split_so_that_each_is_covered(lengths: list[int]) -> None:
    common, apart = split_lengths(lengths)
    for row, length in enumerate(lengths):
        assert (row, length) in apart or length <= common


def test_common_length_is_the_common_length() -> None:
    source = random.Random(0)  # noqa: S311
    for _ in range(300):
        first = [source.randrange(2) for _ in range(source.randrange(20))]
        second = [source.randrange(2) for _ in range(source.randrange(20))]
        most = source.randrange(min(len(first), len(second)) + 1)
        wanted = 0
        while wanted < most and first[wanted] == second[wanted]:
            wanted += 1
        assert common_length(first, second, most) == wanted


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_a_packed_product_is_the_product(rows: int) -> None:
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(rows, 32)
    base = torch.randn(rows, 48)
    product = Linear(weight.clone(), bias.clone())
    wanted = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(product(x), wanted, rtol=1e-5, atol=1e-5)
    kept = base.clone()
    torch.testing.assert_close(product.onto(x, base), wanted + kept, rtol=1e-5, atol=1e-5)
