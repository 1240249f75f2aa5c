"""A wrong command line: one line that says what is wrong and where to read more."""

from __future__ import annotations

import pytest

from tests.cli.conftest import zenos
from zenos.cli import errors


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
