"""What the tutorial and the how-to pages tell a reader to type works, and shows what they show.

Each page is run from its first to its last mark (see console.py) against a daemon of its own, in a
home of its own. Two things differ from what is written: the daemon takes a free port, and training
ends after a few steps, unless the page cancels it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.console import Shell, Step, matches, steps
from tests.docs.materials import make

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if steps(page)]
STEPS = 2  # of training, instead of what a page says
WRITTEN = "127.0.0.1:8642"
_CANCELLED = re.compile(r"^zenos cancel .*?(\S+)$", re.MULTILINE)
_STEPS = re.compile(r"(--steps |^steps: )\d+", re.MULTILINE)


def environment(home: Path) -> dict[str, str]:
    """A reader's environment, whose home directory is that."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ZENOS_")},
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "160",
        "ZENOS_PORT": "0",
        "ZENOS_ZYGOTE": "lazy",
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What how-to pages take for granted, made once: texts, a model's directory, a model `tiny`."""
    home = tmp_path_factory.mktemp("prepared") / "you"
    (home / "work").mkdir(parents=True)
    make(home / "work")
    with Shell(home / "work", environment(home)) as shell:
        for command in (
            "zenos up",
            "zenos train --model source --arch llama-nano --data input.txt --steps 2"
            " --vocab-size 1024 --wait",
            "zenos export source ./some-model",
            "zenos pull ./some-model tiny",
            "zenos rm source",
            "zenos down",
            "rm -r ~/.zenos/zenos.db* ~/.zenos/runs",  # pages count tasks from one
        ):
            code, said = shell.run(Step(0, "command", command, []))
            assert code == 0, f"{command}: {said}"
    return home


def as_run(step: Step, home: Path, cancelled: set[str]) -> Step:
    """The step with the daemon's real address, and with less training.

    Not so of the tasks that the page cancels: they would be done before it has come to that.
    """
    text = step.text
    if not any(f"--name {name}" in text for name in cancelled):
        text = _STEPS.sub(rf"\g<1>{STEPS}", text)
    daemon = home / ".zenos" / "daemon.json"
    if daemon.exists():
        url = json.loads(daemon.read_text())["url"]
        text = text.replace(WRITTEN, url.removeprefix("http://"))
    return step._replace(text=text)


def test_chapters_have_examples_that_are_run() -> None:
    """Of those on messages and on threads each call of Python, and each program of a file."""
    for name in ("messages.md", "threads.md", "how-to/call-functions.md"):
        page = DOCS / name
        assert page in PAGES
        shown = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
        run = [step.text for step in steps(page) if step.kind != "command"]
        assert shown
        assert [text.strip() for text in shown] == [text.strip() for text in run], name


def test_what_the_tutorial_has_in_python_works_with_any_port_and_any_model() -> None:
    page = DOCS / "tutorial" / "README.md"
    texts = [step.text for step in steps(page) if step.kind != "command"]
    assert texts
    for text in texts:
        assert "8642" not in text  # the page offers `--port 0`
        assert "metrics[" not in text  # one that was imported or created has none


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_tells_to_type_works(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home = tmp_path / "you"
    begins_from_nothing = page.parent.name == "tutorial"
    if begins_from_nothing:
        (home / "work").mkdir(parents=True)
    else:
        shutil.copytree(request.getfixturevalue("prepared"), home, symlinks=True)
        if not re.search(r"\btiny\b", page.read_text(encoding="utf-8")):
            shutil.rmtree(home / ".zenos" / "models")
    with Shell(home / "work", environment(home)) as shell:
        try:
            if not begins_from_nothing:
                shell.run(Step(0, "command", "zenos up", []))
            todo = steps(page)
            cancelled = {name for step in todo for name in _CANCELLED.findall(step.text)}
            for step in todo:
                check(page, as_run(step, home, cancelled), home, shell)
        finally:
            shell.run(Step(0, "command", "zenos down", []))
    described = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    for path in (home / ".zenos").iterdir():
        assert f"`{path.name}" in described, f"files.md doesn't tell what {path.name} is"


def check(page: Path, step: Step, home: Path, shell: Shell) -> None:
    """Run one step; fails with the page's line, and with what was shown instead."""
    where = f"{page.name}:{step.line}: {step.text}"
    code, said = shell.run(step)
    shown = [line.replace("/home/you", str(home)) for line in step.shown]
    while shown and not shown[-1].strip():
        shown.pop()
    fails = bool(shown) and shown[-1].startswith("zenos: ")
    assert (code != 0) == fails, f"{where}\nended with {code}:\n{said}"
    if step.kind == "command":
        assert matches(shown, said), f"{where}\nshows:\n{said}\ninstead of:\n" + "\n".join(shown)
