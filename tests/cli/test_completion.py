"""What the shell completes: commands, what the daemon has, and values that are known without it."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Daemon, zenos
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
