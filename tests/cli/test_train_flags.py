"""What `zenos train` says of the task, besides the training itself."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.cli.conftest import Daemon, zenos
from zenos.core.task import Task, TaskSpec


def trained(*args: str) -> TaskSpec:
    ran = zenos("train", *args, "--json")
    assert ran.code == 0, ran.err
    return msgspec.json.decode(ran.out, type=Task).spec


def test_a_training_takes_what_any_task_takes(daemon: Daemon) -> None:
    args = "--cpu 0.5 --gpu 1 --memory 1GiB --priority low --time 2m --time-limit 1h --retries 3"
    spec = trained(
        *("--model", "m", "--arch", "a", "--data", "x", "--name", "job", *args.split()),
    )
    assert (spec.name, spec.priority, spec.retries) == ("job", 25, 3)
    assert (spec.expected_s, spec.time_limit_s) == (120.0, 3600.0)
    held = spec.resources
    assert (held.cpu, held.gpu, held.memory) == (500, 1000, 2**30)


def test_its_file_may_say_so_and_flags_win(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\narch: a\ndata: x\nretries: 2\ntime: 5m\nname: written\n")
    spec = trained(str(path))
    assert (spec.name, spec.retries, spec.expected_s) == ("written", 2, 300.0)
    spec = trained(str(path), "--retries", "0", "--time", "1m")
    assert (spec.name, spec.retries, spec.expected_s) == ("written", 0, 60.0)
