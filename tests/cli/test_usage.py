"""A wrong command line: one line that says what is wrong and where to read more."""

from __future__ import annotations

import inspect
import shlex

import pytest
from typer.main import get_command

from tests.cli.conftest import zenos
from tests.cli.test_commands import COMMANDS
from zenos.cli import errors
from zenos.cli.main import app


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "train --modle x",
            "--modle: there is none; did you mean '--model'? See 'zenos train --help'",
        ),
        ("trian", "no such command 'trian'. Did you mean 'train'?"),
        ("show", "cannot do without MODEL|TASK: give it; see 'zenos show --help'"),
        ("schema trian", "cannot use that NAME: 'trian' is not one of 'train', 'create'"),
        ("ps --limit x", "cannot use that --limit: give a whole number; see"),
        ("ps --limit 0", "cannot use that --limit: give at least 1; see"),
        ("train --steps 1e400", "cannot use that --steps: give a whole number; see"),
        ("train", "cannot do without --model: give it; see 'zenos train --help'"),
        ("train --model m --arch llama-nano", "cannot do without --data: give it; see"),
        ("ps more", "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_line(line: str, says: str) -> None:
    ran = zenos(*line.split())
    assert ran.code == errors.USAGE
    assert ran.err.startswith("zenos: cannot ")
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert not ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_can_be_typed(command: str) -> None:
    found = get_command(app)
    for name in command.split():
        found = found.commands[name]  # type: ignore[attr-defined]
    example = inspect.getdoc(found.callback or app).partition("Example: ")[2].partition("\n\n")[0]
    typed, _, _ = " ".join(example.split()).removeprefix(f"zenos {command}").partition(" > ")
    found.make_context(command, shlex.split(typed))  # raises what would be said of it


def test_no_command_shows_the_help() -> None:
    ran = zenos()
    assert "Usage: zenos" in ran.out + ran.err
    assert "cannot" not in ran.err


def test_flags_take_no_value_in_the_help() -> None:
    assert "bool" not in zenos("ps", "--help").out


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("hidden_size=NaN", "NaN"),
        ("hidden_size=-Infinity", "-Infinity"),
        ("rms_norm_eps=1e999", "1e999"),
        ('rope_parameters={"rope_theta": NaN}', "NaN"),
    ],
)
@pytest.mark.parametrize("command", ["create m", "train --model m --data ."])
def test_a_setting_that_is_no_number_is_refused_as_it_was_typed(
    command: str, given: str, number: str
) -> None:
    ran = zenos(*command.split(), "--arch", "llama-nano", "--set", given)
    assert ran.code == errors.USAGE
    assert ran.err == f"zenos: cannot use --set {given}: {number} is no number\n"
    assert not ran.out
