"""Looking ahead in a process of its own: really started, and really ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.kernel.harness import Harness, node, spec
from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError, ZenosError
from zenos.core.outlook import Picture
from zenos.core.wire import Progress
from zenos.kernel.picture import take
from zenos.workers import outlook
from zenos.workers.outlook import Outlook
from zenos.workers.system import LocalSystem


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


@pytest.mark.parametrize("stage", ["waits for space", "training"])
async def test_a_training_that_waits_for_space_is_said_to(stage: str) -> None:
    h = Harness(node(cpu=1))
    task = h.submit(spec())
    h.run(task)
    system = LocalSystem.__new__(LocalSystem)
    system.view = SimpleNamespace(progress={task.id: Progress(stage=stage)})  # type: ignore[assignment]
    system._outlook = Outlook()

    async def look(task: str) -> Picture:
        return take(h.kernel, h.clock.now(), task)

    system.control = SimpleNamespace(look=look)  # type: ignore[assignment]
    reason = (await system.why(task.id)).reason
    assert reason.startswith("it runs on ")
    assert ("waits for space on the disk of the home" in reason) == (stage == "waits for space")


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
