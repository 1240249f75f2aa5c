"""The README's commands and its program, typed one after the other by somebody new."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.docs.console import Shell, Step
from tests.docs.materials import make
from tests.docs.test_pages import WRITTEN, environment

ROOT = Path(__file__).parent.parent.parent
ACTIVATE = ". .venv/bin/activate"  # as the environment of these tests is already
LESS = "--steps 2 --vocab-size 1024"  # training than a user wants
FOR_A_TERMINAL = "zenos top"


def test_what_the_readme_shows_works(tmp_path: Path) -> None:
    text = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## What it looks like\n")[2]
    )
    typed = [line for line in re.findall(r"```\n(.*?)```", text, re.DOTALL)[0].splitlines() if line]
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert typed[0].startswith(ACTIVATE)
    assert typed[-1].startswith("zenos down")
    home = tmp_path / "you"
    (home / "work").mkdir(parents=True)
    make(home / "work")
    (home / "work" / "work.py").write_text("print('worked')\n")
    said = {}
    with Shell(home / "work", environment(home)) as shell:
        try:
            for line in typed[1:-1]:
                command = line.partition("#")[0].strip()
                more = LESS if " train " in command else ""
                code, said[command] = shell.run(Step(0, "command", f"{command} {more}", []))
                # What draws a screen needs one; it is said so.
                assert (code == 0) == (command != FOR_A_TERMINAL), f"{line}\n{said[command]}"
            url = json.loads((home / ".zenos" / "daemon.json").read_text())["url"]
            here = program.replace(WRITTEN, url.removeprefix("http://"))
            code, answer = shell.run(Step(0, "python", here, []))
            assert code == 0, answer
            assert "Completion(id=" in answer
            assert "worked" in shell.run(Step(0, "command", "zenos logs t1", []))[1]
        finally:
            code, ended = shell.run(Step(0, "command", typed[-1], []))
    assert code == 0, ended
    assert "registered as shakespeare:1" in next(v for c, v in said.items() if " train " in c)
