"""An elastic training on a real machine: others come and go, it ends in the same weights."""

from __future__ import annotations

from pathlib import Path

from tests.crash.test_training import finished, step, train, weights
from tests.processes import until
from tests.system.harness import System
from zenos.core.task import State


def test_its_workers_come_and_go_and_the_weights_are_the_same(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(10):
        (text / f"{number}.txt").write_text(f"river {number} runs over old stones\n" * 60)
    often = ("grow_s=0", "residence_s=0", "preemptions_per_hour=1000")
    system = System(tmp_path, "cpus=2", "zygote=lazy", *often)
    try:
        system.start()
        shape = {"workers": "1..2", "cpu": 1, "memory": "600MB"}
        train(system, text, "whole", **shape)
        whole = finished(system, "whole")
        assert (whole.generation, whole.workers) == (1, 2)

        other = system.ask(lambda client: client.submit(["sleep", "600"], name="other", cpu=1).id)
        until(lambda: system.tasks()["other"].state is State.RUNNING, 30)
        task = train(system, text, "elastic", **shape)
        until(lambda: step(system, task) >= 5, 90)
        assert system.tasks()["elastic"].workers == 1
        system.ask(lambda client: client.cancel(other))
        until(lambda: system.tasks()["elastic"].workers == 2, 60)
        until(lambda: step(system, task) >= 15, 90)
        system.ask(lambda client: client.submit(["true"], name="equal", cpu=1))
        until(lambda: system.tasks()["equal"].state is State.SUCCEEDED, 60)
        ended = finished(system, "elastic")
        assert (ended.generation >= 3, ended.attempts) == (True, 0)
        assert weights(system, "elastic") == weights(system, "whole")
    finally:
        system.close()
