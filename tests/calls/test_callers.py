"""When a host tells a program what, and what a program hears of it."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator

import pytest

from zenos.calls import finding, wire
from zenos.calls.callers import Caller


@pytest.fixture
def pair() -> Iterator[tuple[Caller, socket.socket]]:
    theirs, link = socket.socketpair()
    caller = Caller(link)
    theirs.setblocking(False)
    yield caller, theirs
    caller.close()
    theirs.close()


def said(caller: Caller, program: socket.socket) -> list[object]:
    """What the host writes when it looks whether there is something to be told."""
    if not caller.has_news():
        return []
    caller.flush()
    found: list[object] = wire.Frames(wire.from_host).take(program.recv(65536))
    return found


def test_who_asks_hears_at_once_what_is_on_the_disk(pair: tuple[Caller, socket.socket]) -> None:
    caller, program = pair
    caller.accept(7)
    assert said(caller, program) == []
    caller.asks = True
    assert said(caller, program) == [wire.Accepted([7])]
    assert said(caller, program) == []
    assert caller.wake == math.inf


def test_others_hear_it_before_the_result_that_comes_next(
    pair: tuple[Caller, socket.socket],
) -> None:
    caller, program = pair
    caller.accept(7)
    assert 0 < caller.wake < math.inf  # at the latest then
    caller.tell(wire.Result(7, wire.DONE))
    assert said(caller, program) == [
        wire.Accepted([7]),
        wire.Results([wire.Result(7, wire.DONE)]),
    ]


def test_what_is_told_in_one_turn_comes_at_once() -> None:
    """A program that waits for a call alone is woken once."""
    link, program = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps sends apart
    caller = Caller(link)
    caller.accept(7)
    caller.tell(wire.Result(7, wire.DONE))
    with program:
        assert said(caller, program) == [
            wire.Accepted([7]),
            wire.Results([wire.Result(7, wire.DONE)]),
        ]
        caller.close()


def test_who_reads_nothing_does_not_keep_the_host_awake(
    pair: tuple[Caller, socket.socket],
) -> None:
    caller, _ = pair
    caller.asks = True
    caller.accept(7)
    assert caller.wake == -math.inf
    caller.is_writing = True
    assert caller.wake == math.inf


def test_what_the_host_says_right_after_it_lets_a_program_in_is_heard(
    pair: tuple[Caller, socket.socket],
) -> None:
    """Such as how a call has ended that an earlier host had accepted."""
    caller, program = pair
    caller.say(wire.Ready())
    caller.tell(wire.Result(7, wire.DONE))
    caller.flush()
    finding._greet(program, b"me")
    assert wire.Frames(wire.from_host).take(program.recv(65536)) == [
        wire.Results([wire.Result(7, wire.DONE)])
    ]


def test_results_are_kept_until_they_are_heard(pair: tuple[Caller, socket.socket]) -> None:
    caller, _ = pair
    told = [wire.Result(id_, wire.DONE) for id_ in range(4)]
    for result in told:
        caller.tell(result, keep=result.id != 1)
    assert caller.unheard == [told[0], told[2], told[3]]
    caller.hear(3)
    assert caller.unheard == [told[3]]
    caller.hear(3)
    with pytest.raises(wire.FrameError, match="more results than were told"):
        caller.hear(5)


def test_a_result_is_on_its_way_until_the_program_has_taken_it(
    pair: tuple[Caller, socket.socket],
) -> None:
    caller, _ = pair
    caller.tell(wire.Result(7, wire.DONE), keep=True)
    caller.tell(wire.Result(8, wire.DONE))
    assert (caller.is_told(7), caller.is_told(8)) == (True, False)  # of 8 nothing is kept
    caller.hear(1)
    assert not caller.is_told(7)
