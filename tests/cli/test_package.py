"""What `import zenos` gives a program: its names with their types, and both clients."""

from __future__ import annotations

import ast
from pathlib import Path

import zenos as package
from tests.cli.conftest import Daemon, until
from zenos.core.specs import TrainSpec


def test_the_package_tells_its_types() -> None:
    """Type checkers believe a package that has a py.typed; its lazy names stand in a stub."""
    root = Path(package.__file__).parent
    assert (root / "py.typed").is_file()
    told = {"__version__"}
    for node in ast.parse((root / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            told |= {alias.asname or "" for alias in node.names}
    assert told == set(package.__all__) == set(dir(package))
    for name in told:
        assert getattr(package, name)


async def test_the_async_client_trains_and_serves(daemon: Daemon) -> None:
    async with package.connect_async() as client:
        handle = await client.train(
            model="m", arch="llama-nano", data="corpus/*.txt", steps=5, cpu=0.1
        )
        work = handle.task.spec.work
        assert isinstance(work, TrainSpec)
        assert (work.data.paths, work.steps) == ([str(Path.cwd() / "corpus/*.txt")], 5)
        until(lambda: daemon.state(handle.id) == "running")
        served = await client.serve("tiny", min_replicas=1, priority="low", cpu=0.1)
        assert (served.name, served.spec.priority) == ("tiny", 25)
        assert [deployment.name for deployment in await client.deployments()] == ["tiny"]
        assert {view.task.kind for view in await client.tasks()} == {"train", "serve"}
        assert (await client.stop("tiny")).stopping
