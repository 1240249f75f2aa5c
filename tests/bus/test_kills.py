"""A durable exchange whose parts are killed: what was acknowledged is done, and done once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.bus.exchange_part import lines
from tests.crash import labels
from tests.processes import until
from zenos.core import failpoints

PLANS = {
    "daemon": [
        "bus.send.received",
        "topics.decided",
        "topics.committed",
        "bus.delivered",
        "bus.ack.received",
    ],
    "sender": ["bus.send.sent", "bus.send.answered"],
    "receiver": ["bus.receive.taken", "bus.ack.sent"],
}
WAIT_S = 120.0


class Part:
    """A process that is started again when it was killed; then the next failpoint is armed."""

    def __init__(
        self, name: str, directory: Path, count: int, plans: list[str], *, many: bool
    ) -> None:
        self.name = name
        self.kills = 0
        self._argv = [sys.executable, "-m", "tests.bus.exchange_part", name, str(directory)]
        self._argv += [str(count), "many"] if many else [str(count)]
        self._plans: Iterator[str] = iter(plans)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        label = next(self._plans, None)
        plan = f"{label}=kill@3" if label else ""
        environment = {**os.environ, failpoints.VARIABLE: plan}
        return subprocess.Popen(self._argv, env=environment)

    def look(self) -> bool:
        """Whether it has ended by itself."""
        code = self.process.poll()
        if code == -signal.SIGKILL:
            self.kills += 1
            self.process = self._start()
        elif code is not None:
            assert code == 0, f"the {self.name} has failed"
        return code == 0

    @property
    def is_running(self) -> bool:
        """Whether there is something to kill."""
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Exchange:
    """All three."""

    def __init__(
        self, directory: Path, count: int, plans: dict[str, list[str]], *, many: bool
    ) -> None:
        self.directory = directory
        self.count = count
        self.parts = {
            name: Part(name, directory, count, plans.get(name, []), many=many)
            for name in ("daemon", "sender", "receiver")
        }

    def is_over(self) -> bool:
        """Whether sender and receiver have ended, after all that they had to do."""
        ended = [part.look() for part in self.parts.values()]
        return all(ended[1:])

    def kills(self) -> dict[str, int]:
        return {name: part.kills for name, part in self.parts.items()}

    def check(self) -> None:
        """Everything is acknowledged and done, in the order of sending, nothing twice."""
        expected = [f"m{number}" for number in range(self.count)]
        assert lines(self.directory / "sent") == expected
        assert sorted(lines(self.directory / "done")) == sorted(expected)

    def close(self) -> None:
        for part in self.parts.values():
            with suppress(ProcessLookupError):
                part.kill()


def test_every_labelled_point_of_an_exchange_is_among_them() -> None:
    planned = [label for plan in PLANS.values() for label in plan]
    assert sorted(planned) == sorted([*labels.BUS, *labels.TOPICS])


@pytest.mark.parametrize("many", [False, True])
def test_killed_at_every_point_nothing_is_lost_and_nothing_done_twice(
    tmp_path: Path, many: bool
) -> None:
    exchange = Exchange(tmp_path, 120 if many else 40, PLANS, many=many)
    try:
        until(exchange.is_over, WAIT_S)
    finally:
        exchange.close()
    exchange.check()
    assert exchange.kills() == {name: len(labels) for name, labels in PLANS.items()}


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "many"), [(1, False), (2, False), (3, True)])
def test_a_storm_of_kills(tmp_path: Path, seed: int, many: bool) -> None:
    chance = random.Random(seed)  # noqa: S311
    exchange, kills = Exchange(tmp_path, 10_000, {}, many=many), 200

    def done(count: int) -> bool:
        return exchange.is_over() or len(lines(tmp_path / "done")) >= count

    try:
        for number in range(kills):
            until(partial(done, 45 * (number + 1)), WAIT_S)
            running = [part for part in exchange.parts.values() if part.is_running]
            chance.choice(running).kill()
            exchange.is_over()  # which counts it, and starts it again
        until(exchange.is_over, WAIT_S)
    finally:
        exchange.close()
    exchange.check()
    assert sum(exchange.kills().values()) == kills
    assert min(exchange.kills().values()) > kills / 6
