"""What the shell completes: commands, what the daemon has, and values that are known without it."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, zenos
from tests.cli.test_process import PROGRAM, Terminal
from zenos.core.home import Home


@pytest.mark.parametrize(
    ("words", "number", "candidates"),
    [("zenos sub", 1, "submit"), ("zenos show ti", 2, "tiny"), ("zenos logs jo", 2, "job")],
)
def test_the_shell_completes_commands_and_names(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, words: str, number: int, candidates: str
) -> None:
    zenos("submit", "--name", "job", "--", "work")
    monkeypatch.setenv("_ZENOS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(number))
    assert candidates in zenos().out.split()


def test_completion_without_a_daemon_is_silent(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ZENOS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "zenos show ti")
    monkeypatch.setenv("COMP_CWORD", "2")
    ran = zenos()
    assert (ran.out.strip(), ran.err) == ("", "")


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("zenos train --arch llama-n", ["llama-nano"]),
        (
            "zenos create x --arch be",
            ["bert", "bert-micro", "bert-mini", "bert-nano", "bert-small"],
        ),
        ("zenos train --objective m", ["masked_lm"]),
        ("zenos submit --priority h", ["high"]),
        ("zenos serve m --priority n", ["normal"]),
    ],
)
def test_the_shell_completes_values_that_need_no_daemon(
    home: Home, monkeypatch: pytest.MonkeyPatch, words: str, candidates: list[str]
) -> None:
    monkeypatch.setenv("_ZENOS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert sorted(zenos().out.split()) == candidates


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("zenos show tiny:", "zenos show tiny:1 "),
        ("zenos show --json  tiny:", "zenos show --json  tiny:1 "),
        ("zenos show --js", "zenos show --json "),
        ("zenos sho", "zenos show "),
    ],
)
def test_bash_completes_names_with_a_version(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, there: str
) -> None:
    program = tmp_path / "zenos"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = tmp_path / "script"
    # What Ctrl-X p shows is the line as it then is, and not how it was drawn.
    shown = 'bind -x \'"\\C-xp": echo "<$READLINE_LINE>"\''
    script.write_text(f"{zenos('--show-completion', 'bash').out}\nPS1='ready> '\n{shown}\n")
    terminal = Terminal("--noprofile", "--rcfile", str(script), "-i", program=["/bin/bash"])
    try:
        terminal.until("ready> ")
        terminal.type(f"{typed}\t\x18p")
        terminal.until("<")
        assert terminal.until(">").rstrip("\r\n") == f"{there}>"
    finally:
        terminal.type("\x15exit\n")
        terminal.end()


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_a_shell_that_is_not_known_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = zenos(option, "foosh")
    assert (ran.code, ran.out) == (2, "")
    assert "'foosh' is no shell that it is for: give one of bash, zsh, fish" in ran.err
    assert not (tmp_path / ".bash_completions").exists()


@pytest.mark.parametrize(
    ("shell", "there"), [("zsh", "#compdef zenos"), ("fish", "complete --command zenos")]
)
def test_the_script_of_the_shell_that_is_named_is_shown(home: Home, shell: str, there: str) -> None:
    ran = zenos("--show-completion", shell)
    assert (ran.code, ran.out.startswith(there)) == (0, True)
