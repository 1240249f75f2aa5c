"""An executor on a home of its own, with real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.kernel.harness import spec
from tests.processes import until
from zenos.core import shim
from zenos.core.config import Config
from zenos.core.events import Event
from zenos.core.home import Home
from zenos.core.resources import Resources
from zenos.core.specs import ProgramSpec
from zenos.core.task import Allocation, Kind, Principal, State, Task, TaskSpec
from zenos.workers import fork_server
from zenos.workers.executor import LocalExecutor


def program(*argv: str, number: int = 1, **more: object) -> Task:
    """A task in state starting, as the kernel hands it to the executor."""
    resources = more.pop("resources", Resources.of(cpu=1, memory="200MB"))
    assert isinstance(resources, Resources)
    work = ProgramSpec(argv=list(argv), **more)  # type: ignore[arg-type]
    task_spec: TaskSpec = replace(spec(), work=work, resources=resources)
    return Task(
        id=f"t{number}",
        spec=task_spec,
        principal=Principal(),
        submitted=0.0,
        kind=Kind.RUN,
        state=State.STARTING,
        generation=1,
        allocation=Allocation(node="local", resources=resources),
    )


class Rig:
    """An executor and the events that it has posted."""

    def __init__(self, home: Home, config: Config) -> None:
        self.home = home
        self.config = config
        self.events: list[Event] = []
        self.later: list[Rig] = []
        self._posted = asyncio.Event()
        self.zygote = fork_server.zygote(home)
        self.launcher = fork_server.launcher(home)
        self.executor = LocalExecutor(home, config, self._post, self.zygote, self.launcher)

    def _post(self, event: Event) -> None:
        self.events.append(event)
        self._posted.set()

    async def until(self, kind: type[Event], count: int = 1) -> list[Event]:
        """The first `count` events of that kind."""
        async with asyncio.timeout(60):
            while True:
                found = [event for event in self.events if isinstance(event, kind)]
                if len(found) >= count:
                    return found[:count]
                self._posted.clear()
                await self._posted.wait()

    async def again(self, *tasks: Task) -> Rig:
        """A new daemon's executor on the same home; the old one has stopped watching."""
        await self.executor.close()
        await self.zygote.close()
        await self.launcher.close()
        fresh = Rig(self.home, self.config)
        self.later.append(fresh)
        await fresh.executor.recover(tasks, next_task=10**9)
        return fresh

    async def close(self) -> None:
        """Stop watching, and end the fork servers; also those of the daemons that came later."""
        for rig in self.later:
            await rig.close()
        await self.executor.close()
        await self.zygote.close()
        await self.launcher.close()


def survivors(home: Home) -> list[int]:
    """Shims and workers that are alive on a home."""
    found: list[int] = []
    for path in home.runs.glob("*/*/shim"):
        record = shim.read_record(str(path.parent), "shim")
        if record is not None:
            found += shim.session_members(int(record["pid"]))
    return found


@pytest.fixture
async def rigs(tmp_path: Path) -> AsyncIterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**settings: object) -> Rig:
        home = Home(tmp_path / "home")
        home.runs.mkdir(parents=True, exist_ok=True)
        made.append(Rig(home, Config(zygote="lazy", **settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        await rig.close()
        until(lambda rig=rig: not survivors(rig.home))


@pytest.fixture
async def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs()
