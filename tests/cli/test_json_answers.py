"""With --json each command answers in JSON, and with nothing else on its standard output."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.cli.conftest import Daemon, Ran, until, zenos
from tests.cli.test_commands import COMMANDS, FOR_PEOPLE
from zenos.core.home import Home

# In this order: what one looks at or ends, another before it has made.
ASKED = (
    "submit --name job --cpu 0.1 -- work",
    "submit --name waits --cpu 4 -- work",
    "train --model m --arch llama-nano --data x",
    "create fresh --arch llama-nano --no-wait",
    "ps",
    "why waits",
    "plan",
    "nice job --priority low",
    "suspend waits",
    "resume waits",
    "pause job",
    "logs job",
    "cancel job",
    "status",
    "top",
    "audit",
    "list",
    "show tiny",
    "cp tiny third",
    "alias tiny:1 prod",
    "rm third",
    "export tiny {root}/exported",
    "pull {root}/exported pulled",
    "serve tiny --no-wait",
    "run tiny hi",
    "rollback tiny --to 1",
    "stop tiny",
    "schema train",
    "simulate {root}/trace.csv --nodes 1x8gpu",
    "token create guest --user bob",
    "token list",
    "token revoke guest",
    "node list",
    "node cordon local",
    "node drain local",
    "node uncordon local",
    "bus send jobs/a x",
    "bus topics",
    "bus peek jobs/a",
    "bus dead jobs/a",
    "bus replay jobs/a",
    "bus purge jobs/a --yes",
    "up",
)
NEED_NONE = ("schema", "simulate", "up")
# A stream of lines, and the end of the daemon.
ELSEWHERE = {"bus tail", "down"}


def ask(line: str, root: Path) -> Ran:
    """One of these, with --json."""
    before, dashes, program = line.format(root=root).partition(" -- ")
    return zenos(*f"{before} --json{dashes}{program}".split())


def test_each_command_answers_in_json(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("submit,duration,gpus\n0,600,1\n")
    asked = set()
    for line in ASKED:
        ran = ask(line, tmp_path)
        assert ran.code == 0, (line, ran.err)
        assert ran.json not in (None, "", {}), line
        asked |= {name for name in COMMANDS if line.startswith(f"{name} ") or line == name}
        if line.startswith("submit --name job"):
            until(lambda: daemon.state("t1") == "running")
    assert asked | ELSEWHERE | FOR_PEOPLE == set(COMMANDS)


def test_without_a_daemon_each_says_how_to_start_one(home: Home, tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    for line in ASKED:
        if not line.startswith(NEED_NONE):
            ran = ask(line, tmp_path)
            assert (ran.code, ran.out) == (5, ""), line
            error = msgspec.json.decode(ran.err.splitlines()[-1])["error"]
            assert error["code"] == "no_daemon", line
            assert "zenos up" in error["message"], line
