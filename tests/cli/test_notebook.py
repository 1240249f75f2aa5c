"""Tasks in a notebook: a real kernel, a real daemon, and what the notebook then holds."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from tests.crash.test_training import text  # noqa: F401 - a fixture
from tests.processes import until
from tests.system.harness import System
from zenos.core.task import State

CELL_S = 60
# A daemon that has nothing to tell says so every fifteen seconds, and wakes who waits for it.
AT_ONCE_S = 12


class Drawn(NamedTuple):
    """A message of the kernel about a display."""

    type: str
    id: str
    html: str
    text: str

    def row(self, name: str) -> str | None:
        found = re.search(rf"<th[^>]*>{name}</th><td[^>]*>(.*?)</td>", self.html)
        return found and found[1]

    @property
    def bar(self) -> float | None:
        found = re.search(r'<progress max="1" value="([\d.]+)"', self.html)
        return found and float(found[1])


class Notebook(NotebookClient):
    """A notebook that is executed a cell at a time, as by a person."""

    def __init__(self) -> None:
        super().__init__(
            nbformat.v4.new_notebook(), kernel_name="python3", timeout=CELL_S, allow_errors=True
        )
        self.drawn: list[Drawn] = []
        self.when: Callable[[Drawn], None] = lambda _: None

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] in ("display_data", "update_display_data"):
            made = Drawn(
                msg["msg_type"],
                content["transient"]["display_id"],
                content["data"]["text/html"],
                content["data"]["text/plain"],
            )
            self.drawn.append(made)
            self.when(made)
        return super().process_message(msg, cell, cell_index)

    async def run(self, *lines: str) -> list[Any]:
        """What a cell's outputs are in the end; `drawn` has what they were meanwhile."""
        self.drawn.clear()
        cell = nbformat.v4.new_code_cell("\n".join(lines))
        self.nb.cells.append(cell)
        await self.async_execute_cell(cell, len(self.nb.cells) - 1)
        return list(cell.outputs)

    def interrupt(self) -> None:
        """The button with the square."""
        self._pressed = asyncio.ensure_future(self.km.interrupt_kernel())


def drawn_last(output: Any) -> Drawn:
    """A display as the notebook keeps it."""
    assert output.output_type == "display_data"
    return Drawn("", "", output.data["text/html"], output.data["text/plain"])


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """A daemon, in whose home the kernel will look; and Jupyter's files are none of the user's."""
    made = System(tmp_path, "zygote=lazy")
    monkeypatch.setenv("ZENOS_HOME", str(made.home.root))
    for name in ("ZENOS_HOST", "ZENOS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    made.start()
    yield made
    made.close()


@pytest.fixture
async def notebook(system: System) -> AsyncIterator[Notebook]:
    made = Notebook()
    async with made.async_setup_kernel():
        await made.run("import asyncio, zenos", "client = zenos.connect()")
        yield made


def release(system: System, *names: str) -> Callable[[Drawn], None]:
    """Lets programs that `hold` end, once all these were seen to run: so not before."""
    left = set(names)

    def look(drawn: Drawn) -> None:
        if drawn.row("state") == "running":
            left.difference_update(name for name in names if drawn.text.startswith(f"{name}: "))
            if not left:
                system.released.touch()

    return look


def submitted(system: System, name: str, script: str = "", *, to: str = "client.submit") -> str:
    """Code that submits a program that goes on until it is released."""
    argv = ["/bin/sh", "-c", f"{system.hold}; {script or 'true'}"]
    return f"{to}({argv!r}, name={name!r}, cpu=0.1, memory='64MiB')"


async def test_a_training_is_one_output_that_is_drawn_again_until_its_end(
    notebook: Notebook,
    text: Path,  # noqa: F811
) -> None:
    outputs = await notebook.run(
        "task = client.train(model='tiny', arch='llama-nano', name='training-run',",
        f"    data={str(text)!r}, vocab_size=300, sequence_length=64, batch_size=4, steps=40,",
        "    settings=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2))",
        "task.watch()",
    )
    kinds = [drawn.type for drawn in notebook.drawn]
    assert kinds == ["display_data"] + ["update_display_data"] * (len(kinds) - 1)
    assert len({drawn.id for drawn in notebook.drawn}) == 1
    assert {"queued", "running", "succeeded"} <= {drawn.row("state") for drawn in notebook.drawn}
    training = [drawn for drawn in notebook.drawn if drawn.row("stage") == "training"]
    bars = [drawn.bar for drawn in training]
    assert bars  # how many of the steps are told of depends on how fast they are
    assert None not in bars
    assert bars == sorted(bars, key=lambda bar: bar or 0.0)
    assert training[-1].row("loss")
    assert re.search(r"training \d+/40, loss ", training[-1].text)
    # What is left when it has ended, and is saved with the notebook.
    kept, value = outputs
    end = drawn_last(kept)
    assert (end.row("state"), end.row("model"), end.bar) == ("succeeded", "tiny:1", None)
    assert re.fullmatch(r"\d+\.\d+", end.row("held out") or "")
    assert end.text == "training-run: succeeded"
    assert re.fullmatch(r"<task t\d+ \(training-run\): succeeded>", value.data["text/plain"])


async def test_what_a_program_does_is_seen_while_it_runs(
    system: System, notebook: Notebook
) -> None:
    notebook.when = release(system, "job")
    (kept,) = await notebook.run(f"task = {submitted(system, 'job', 'exit 3')}", "_ = task.watch()")
    end = drawn_last(kept)
    assert "exit code 3" in (end.row("state") or "")
    assert "exit code 3" in end.text
    # Shown without being watched, it is what it was when last seen.
    (shown,) = await notebook.run("task")
    assert "exit code 3" in shown.data["text/html"]


async def test_tasks_that_are_awaited_at_once_have_an_output_each(
    system: System, notebook: Notebook
) -> None:
    notebook.when = release(system, "one", "two")
    outputs = await notebook.run(
        "async with zenos.connect_async() as served:",
        f"    one = await {submitted(system, 'one', to='served.submit')}",
        f"    two = await {submitted(system, 'two', to='served.submit')}",
        "    await asyncio.gather(one.watch(), two.watch())",
    )
    assert [drawn_last(kept).text for kept in outputs] == ["one: succeeded", "two: succeeded"]
    assert [drawn_last(kept).row("state") for kept in outputs] == ["succeeded"] * 2


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_cell_that_is_interrupted_says_that_the_task_goes_on(
    system: System, notebook: Notebook, kind: str
) -> None:
    pressed: list[float] = []

    def press(drawn: Drawn) -> None:
        if drawn.row("state") == "running" and not pressed:
            pressed.append(time.monotonic())
            notebook.interrupt()

    wait = "await " if kind == "async" else ""
    connect = "zenos.connect_async()" if wait else "zenos.connect()"
    notebook.when = press
    kept, error = await notebook.run(
        f"served = {connect}",
        f"task = {wait}{submitted(system, 'long', to='served.submit')}",
        f"{wait}task.watch()",
    )
    assert time.monotonic() - pressed[0] < AT_ONCE_S
    assert error.ename in ("KeyboardInterrupt", "CancelledError")
    assert drawn_last(kept).row("state") == "running"
    for said in drawn_last(kept)[2:]:
        assert "not followed any more" in said
    assert system.tasks()["long"].state is State.RUNNING
    # Which can be done again.
    notebook.when = release(system, "long")
    kept, _ = await notebook.run(f"{wait}task.watch()")
    assert drawn_last(kept).row("state") == "succeeded"
    assert "not followed" not in drawn_last(kept).html
    until(lambda: system.tasks()["long"].state is State.SUCCEEDED)


async def test_functions_of_a_notebook_run_as_tasks_of_their_own(
    system: System, notebook: Notebook
) -> None:
    """Those of its cells, which no module has; they are awaited, or waited for."""
    outputs = await notebook.run(
        "import os, traceback",
        "factor = 3",
        "def scaled(number):",
        "    return number * factor, os.getpid()",
        "value, pid = await zenos.call(scaled, 14)",
        "print(value, pid == os.getpid())",
        "with zenos.map(lambda number: scaled(number)[0], range(4)) as results:",
        "    print(list(results))",
        "def failing():",
        "    raise KeyError('of the cell')",
        "try:",
        "    await zenos.call(failing, durable=False)",
        "except KeyError as error:",
        "    print('in failing' in ''.join(traceback.format_exception(error)))",
    )
    assert [(output.output_type, output.get("text")) for output in outputs] == [
        ("stream", "42 False\n[0, 3, 6, 9]\nTrue\n")
    ]
    # A cell that is changed and run again changes what is called.
    (again,) = await notebook.run("factor = 4", "print((await zenos.call(scaled, 14))[0])")
    assert again.text == "56\n"
