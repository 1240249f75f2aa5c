"""What an answer says: its text, its end, its choices, its probabilities, its counts."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.runtime.engine.conftest import Answers, Made, answer, ask, byte_level
from zenos.runtime.engine.sampling import Draw, choose
from zenos.runtime.engine.text import BytePieces, TextStream, WindowPieces, overlap
from zenos.runtime.engine.vocabulary import Vocabulary


class Letters:
    """Tokens that are letters by their code."""

    def add(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
def test_a_stop_string_is_never_given_out_and_nothing_else_is_lost(
    text: str, stop: list[str]
) -> None:
    stream = TextStream(Letters(), stop)
    given_out = ""
    for letter in text:
        if stream.stopped:
            break
        given_out += stream.add(ord(letter))
        # What was given out once can't be taken back, so no stop string may begin in it unseen.
        assert not any(s in given_out for s in stop)
    if not stream.stopped:
        given_out += stream.finish()
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert given_out == text
        assert not stream.stopped
        return
    # It stops as soon as the first one is whole, and cuts where the earliest of the whole begins.
    seen = text[: min(ends)]
    assert given_out == seen[: min(seen.find(s) for s in stop if s in seen)]


@given(st.text("ab"), st.text("ab", min_size=1))
def test_overlap_is_the_longest(text: str, stop: str) -> None:
    wanted = max(n for n in range(len(stop)) if n <= len(text) and text.endswith(stop[:n]))
    assert overlap(text, stop) == wanted


TOKENIZER = byte_level()


@given(st.text(max_size=60))
@settings(deadline=None)
def test_pieces_are_the_text(text: str) -> None:
    pieces = BytePieces(lambda token: bytes([token]))
    assert "".join(map(pieces.add, text.encode())) + pieces.finish() == text
    window = WindowPieces(lambda ids: str(TOKENIZER.decode(list(ids))))
    ids = TOKENIZER.encode(text).ids
    assert "".join(map(window.add, ids)) + window.finish() == text


@given(st.lists(st.integers(0, 255), max_size=40))
def test_pieces_of_any_bytes_end_in_whole_characters(raw: list[int]) -> None:
    pieces = BytePieces(lambda token: bytes([token]))
    text = "".join(map(pieces.add, raw)) + pieces.finish()
    assert text == bytes(raw).decode("utf-8", "replace")


@given(st.lists(st.integers(1, 319), max_size=40))
@settings(deadline=None)
def test_a_vocabulary_decodes_as_its_tokenizer_does(
    vocabulary: Vocabulary, tokens: list[int]
) -> None:
    pieces = vocabulary.pieces(start=True)
    text = "".join(map(pieces.add, tokens)) + pieces.finish()
    assert text == vocabulary.decode(tokens) == TOKENIZER.decode(tokens)


@pytest.fixture(scope="module")
def vocabulary(made: Callable[[str], Made]) -> Vocabulary:
    return made("llama").loaded().vocabulary


def test_a_sentence_piece_tokenizer_is_understood(llama: Made, tmp_path: object) -> None:
    words = ["<unk>", "▁the", "▁river", "s", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    tokenizer = Tokenizer(
        models.BPE(dict(zip(words, range(8), strict=True)), [], unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    from pathlib import Path

    directory = Path(str(tmp_path))
    tokenizer.save(str(directory / "tokenizer.json"))
    vocabulary = Vocabulary(directory)
    tokens = [1, 2, 3, 4, 5, 6, 7, 1]
    assert vocabulary.decode(tokens) == tokenizer.decode(tokens) == "the rivers😀 the"
    going_on = vocabulary.pieces(start=False)
    assert going_on.add(1) == " the"


def test_a_stop_string_ends_the_answer_across_tokens(model: Made) -> None:
    engine = model.engine()
    whole = answer(engine, [5, 6, 7], max_tokens=40).text("r")
    for start in range(3, len(whole) - 5, 7):
        stop = whole[start : start + 4]
        answers = answer(engine, [5, 6, 7], max_tokens=40, stop=[stop])
        assert answers.text("r") == whole[: whole.index(stop)]
        assert answers.finish("r") == "stop"


def test_the_end_of_text_ends_the_answer(llama: Made) -> None:
    engine = llama.engine()
    backend = engine._backend
    forward = backend.forward

    def ending(batch: object) -> torch.Tensor:
        logits = forward(batch).clone()  # type: ignore[arg-type]
        if getattr(batch, "positions", None) and max(batch.positions) >= 6:  # type: ignore[attr-defined]
            logits[:, 0] = 1e4
        return logits

    backend.forward = ending  # type: ignore[method-assign, assignment]
    stopped = answer(engine, [5, 6, 7], ignore_eos=False, max_tokens=40)
    assert stopped.finish("r") == "stop"
    assert sum(chunk.token_count for chunk in stopped.of("r")) < 10
    assert answer(engine, [5, 6, 7], ignore_eos=True, max_tokens=40).finish("r") == "length"


def test_choices_differ_and_a_seed_gives_them_again_whoever_is_beside(model: Made) -> None:
    def draw(seed: int, beside: int) -> list[str]:
        engine = model.engine()
        answers = Answers(engine)
        for number in range(beside):
            ask(engine, f"other{number}", [9 + number] * 5, temperature=1.0, seed=number)
        ask(engine, "r", [5, 6, 7], n=3, seed=seed, temperature=1.0, max_tokens=8)
        answers.drain()
        return [answers.text("r", index) for index in range(3)]

    first = draw(1, 0)
    assert len(set(first)) == 3
    assert draw(1, 2) == first
    assert draw(2, 0) != first


def test_a_request_s_own_temperature_and_nucleus_hold_beside_others(model: Made) -> None:
    """Hot enough that any token may come; with the smallest nucleus it is the likeliest."""
    greedy = answer(model.engine(), [5, 6, 7], max_tokens=12).text("r")
    engine = model.engine()
    answers = Answers(engine)
    for name, top_p in (("narrow", 1e-6), ("wide", 1.0)):
        ask(engine, name, [5, 6, 7], temperature=2.0, top_p=top_p, seed=1, max_tokens=12)
    answers.drain()
    assert answers.text("narrow") == greedy
    assert answers.text("wide") != greedy


def test_log_probabilities_are_those_of_the_model(model: Made) -> None:
    prompt = [5, 6, 7, 8]
    answers = answer(model.engine(), prompt, max_tokens=6, logprobs=3)
    tokens = model.greedy_through(prompt, 6)
    wanted = torch.log_softmax(model.logits([*prompt, *tokens])[len(prompt) - 1 : -1], dim=-1)
    said = [entry for chunk in answers.of("r") for entry in chunk.logprobs]
    assert len(said) == 6
    for row, token, entry in zip(wanted, tokens, said, strict=True):
        assert entry.logprob is not None
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [value for _, _, value in entry.top] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-3
        )


def test_an_echo_scores_the_prompt(model: Made) -> None:
    prompt = [5, 6, 7, 8, 9]
    answers = answer(model.engine(), prompt, max_tokens=1, logprobs=0, echo=True)
    said = [entry.logprob for chunk in answers.of("r") for entry in chunk.logprobs]
    logs = torch.log_softmax(model.logits(prompt), dim=-1)
    wanted = [float(logs[i, prompt[i + 1]]) for i in range(len(prompt) - 1)]
    assert said[0] is None
    assert said[1 : len(prompt)] == pytest.approx(wanted, abs=1e-3)
    assert answers.text("r").startswith(model.loaded().vocabulary.decode(prompt))


def test_usage_counts_the_prompt_once_and_every_token_generated(model: Made) -> None:
    answers = answer(model.engine(), [5, 6, 7], n=2, max_tokens=5, temperature=1.0, seed=3)
    (usage,) = [chunk.usage for chunk in answers.chunks if chunk.usage is not None]
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 10)
    assert sum(chunk.token_count for chunk in answers.chunks) == 10


def draws(logits: list[float], temperature: float, top_p: float, count: int) -> Counter[int]:
    source = random.Random(5)  # noqa: S311 - seeded
    rows = torch.tensor([logits] * count)
    return Counter(choose(rows, [Draw(temperature, top_p, source.random()) for _ in range(count)]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    logits = [0.0, 1.0, 2.0, -3.0]
    weights = [math.exp(value / temperature) for value in logits]
    found = draws(logits, temperature, 1.0, 20_000)
    for token, weight in enumerate(weights):
        # Seeded, so this holds or it doesn't: five standard deviations at most.
        p = weight / sum(weights)
        assert abs(found[token] - 20_000 * p) < 5 * math.sqrt(20_000 * p * (1 - p))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, {2}), (0.01, {2}), (0.6, {2}), (0.7, {1, 2}), (0.95, {0, 1, 2}), (1.0, {0, 1, 2, 3})],
)
def test_nothing_outside_the_nucleus_is_drawn(top_p: float, kept: set[int]) -> None:
    # Probabilities 0.09, 0.24, 0.66 and 0.004.
    assert set(draws([0.0, 1.0, 2.0, -3.0], 1.0, top_p, 20_000)) == kept


def test_a_wide_nucleus_needs_more_than_the_likeliest() -> None:
    found = draws([0.0] * 1000, 1.0, 0.999, 5_000)
    assert len(found) > 900


def test_the_ends_of_the_unit_interval_draw_something_likely() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]] * 2)
    assert choose(logits, [Draw(1.0, 1.0, 0.0), Draw(1.0, 1.0, 1.0 - 2**-53)]) == [0, 2]


def test_greedy_ties_go_to_the_lower_token() -> None:
    assert choose(torch.tensor([[1.0, 3.0, 3.0]]), [Draw(0.0, 1.0, 0.5)]) == [1]
