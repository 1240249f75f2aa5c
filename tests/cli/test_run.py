"""`zenos run`: a chat or a text that is gone on with, as the model was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, zenos


@pytest.fixture
def taught(daemon: Daemon, tmp_path: Path) -> str:
    """A model whose tokenizer has a chat template."""
    registry, source = daemon.double.registry, daemon.double.source
    files = {path.name: path for path in source.iterdir()}
    files["chat_template.jinja"] = tmp_path / "template"
    files["chat_template.jinja"].write_text("{{ messages[0].content }}")
    return registry.publish("taught", files).ref


def test_a_model_that_was_taught_to_chat_is_chatted_with(daemon: Daemon, taught: str) -> None:
    assert zenos("run", taught, "Hi").code == 0
    assert daemon.double.asked[-1][1].messages == [{"role": "user", "content": "Hi"}]
    assert zenos("run", taught, "Hi", "--complete").code == 0
    assert (daemon.double.asked[-1][1].messages, daemon.double.asked[-1][1].prompt) == (None, "Hi")


def test_any_other_goes_on_with_the_text(daemon: Daemon) -> None:
    ran = zenos("run", "tiny", "def ", "--system", "Be kind")
    assert (ran.code, ran.out) == (0, "Hello, wörld\n")
    assert "--system is left out: tiny has no chat template" in ran.err
    assert (daemon.double.asked[-1][1].messages, daemon.double.asked[-1][1].prompt) == (
        None,
        "def ",
    )


def test_every_flag_reaches_the_engine(daemon: Daemon) -> None:
    flags = "-n 7 --temperature 0.5 --top-p 0.9 --seed 3 --stop x --stop yy --priority high"
    assert zenos("run", "tiny", "Hi", *flags.split()).code == 0
    [(_, request)] = daemon.double.asked
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert (sampling.seed, sampling.stop, request.priority) == (3, ["x", "yy"], 75)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-n", "0"], "max_tokens"),
        (["-n", "-1"], "max_tokens"),
        (["-n", "9" * 30], "max_tokens"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--top-p", "1.5"], "top_p"),
        (["--seed", "9" * 30], "seed"),
        (["--stop", ""], "stop"),
        (["--priority", "101"], "priority"),
    ],
)
def test_what_cannot_be_asked_for_is_told_before_an_answer(
    daemon: Daemon, flags: list[str], says: str
) -> None:
    ran = zenos("run", "tiny", "Hi", *flags)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert ran.err.startswith("zenos: cannot ")
    assert says in ran.err
    assert daemon.double.asked == []
    told = zenos("run", "tiny", "Hi", *flags, "--json")
    assert json.loads(told.err)["error"]["message"].startswith("cannot ")


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_what_comes_from_a_pipe_has_to_be_something(daemon: Daemon, nothing: str) -> None:
    ran = zenos("run", "tiny", stdin=nothing)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("zenos: cannot ask with nothing: no text came on stdin")
    assert daemon.double.asked == []
    # Said on purpose it is a prompt.
    assert zenos("run", "tiny", "", "--complete").code == 0
