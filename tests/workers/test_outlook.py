"""Looking ahead in a process of its own: really started, and really ended."""

from __future__ import annotations

import asyncio

import pytest

from tests.kernel.harness import Harness, node, spec
from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError, ZenosError
from zenos.core.outlook import Picture
from zenos.kernel.picture import take
from zenos.workers import outlook
from zenos.workers.outlook import Outlook


def waiting() -> tuple[Picture, str]:
    h = Harness(node(cpu=1))
    h.run(h.submit(spec(expected_s=10.0)))
    task = h.submit(spec(expected_s=5.0))
    return take(h.kernel, h.clock.now(), task.id), task.id


async def test_a_process_answers_why_and_when() -> None:
    picture, task = waiting()
    ahead = Outlook()
    why, plan = await asyncio.gather(ahead.why(picture, task), ahead.plan(picture, 100.0))
    assert why.starts_at == picture.now + 10.0
    assert [segment.start - picture.now for segment in plan.segments] == [0.0, 10.0]


async def test_one_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORECAST_TIMEOUT_S", 0.0)
    monkeypatch.setattr(outlook, "_ARGV", ("sleep", "1000"))
    picture, task = waiting()
    with pytest.raises(DeadlineError, match="cannot look ahead"):
        await Outlook().why(picture, task)


async def test_what_goes_wrong_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "_ARGV", ("sh", "-c", "cat >&2 /dev/null; echo no >&2; exit 1"))
    picture, task = waiting()
    with pytest.raises(ZenosError, match="cannot look ahead: no"):
        await Outlook().why(picture, task)


async def test_so_many_questions_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "WAITING_MAX", 0)
    picture, task = waiting()
    with pytest.raises(BusyError):
        await Outlook().why(picture, task)
