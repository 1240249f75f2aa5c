"""A daemon, and what programs and lanes call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System
from zenos.calls.calling import links


def end_hosts(system: System) -> None:
    """Cancel what executes functions, and wait until it has ended."""

    def running() -> list[str]:
        views = system.ask(lambda client: client.tasks(kind="call"))
        return [view.task.id for view in views if not view.task.is_ended]

    for task in running():
        system.ask(lambda client, task=task: client.cancel(task))
    until(lambda: not running())


@contextmanager
def running_system(root: Path, *settings: str) -> Iterator[System]:
    """A home with a daemon, which calls of this process use; in the end nothing is left of it."""
    system = System(root, "zygote=lazy", "cpus=8", "memory=16GiB", *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENOS_HOME", str(system.home.root))
        try:
            yield system
        finally:
            links.close(0)
            if not system.dead:
                end_hosts(system)
            system.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One daemon for the tests of a module that leave it as it is."""
    with running_system(tmp_path_factory.mktemp("calls")) as system:
        system.start()
        yield system


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A home of the test's own, without a daemon yet."""
    with running_system(tmp_path) as made:
        yield made
