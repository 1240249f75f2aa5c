"""Answers say which version of the model they are of, also where they were begun again."""

from __future__ import annotations

from typing import Any

from zenos.api.openai_answers import Gathering
from zenos.core.wire import Chunk, TokenLogprob, Usage


def chunk(request: str, text: str = "", version: str = "m:1", **more: Any) -> Chunk:
    token = TokenLogprob(token=text, bytes=list(text.encode()), logprob=-1.0)
    return Chunk(request=request, text=text, version=version, logprobs=[token], **more)


def usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=1, completion_tokens=tokens)


def gathering(choices: int = 2) -> Gathering:
    return Gathering("id", "m", choices_each=choices, logprobs=True)


def test_what_was_said_before_it_was_begun_again_does_not_count() -> None:
    g = gathering()
    g.add(0, chunk("r0", "kept", finish="stop"))
    g.add(0, chunk("r0", "kept", index=1, finish="stop", usage=usage(2)))
    g.add(1, chunk("r1", "gone", finish="length"))
    g.add(1, chunk("r1", "gone", index=1))
    g.add(1, Chunk(request="r1", again=True))
    g.add(1, chunk("r1", "new", "m:2", index=1, finish="stop"))
    g.add(1, chunk("r1", "new", "m:2", finish="stop", usage=usage(2)))
    answer = g.completion()
    assert [choice.text for choice in answer.choices] == ["kept", "kept", "new", "new"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    logs = [choice.logprobs for choice in answer.choices]
    assert [(log.tokens, log.text_offset) for log in logs if log] == [
        (["kept"], [0]), (["kept"], [0]), (["new"], [0]), (["new"], [0]),
    ]  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.system_fingerprint == "m:1, m:2"
    assert g.begun_again


def test_each_event_of_a_stream_names_its_version() -> None:
    g = gathering(1)
    piece = g.completion_piece(0, chunk("r", "a"))
    assert piece is not None
    assert piece.system_fingerprint == "m:1"
    assert g.usage_piece(chat=False).system_fingerprint == "m:1"
    assert {p.system_fingerprint for p in gathering(1).chat_pieces(chunk("r", "a"))} == {"m:1"}
    assert gathering(1).completion().system_fingerprint is None
    assert not g.begun_again
