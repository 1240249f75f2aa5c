"""Errors under --json: one object of the HTTP API's form in a line on stderr."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import typer.main

from tests.cli.conftest import Daemon, Ran, until, zenos
from zenos.api.errors import STATUS, detail_of
from zenos.api.shapes import ErrorAnswer, ErrorDetail
from zenos.cli import errors
from zenos.cli.commands import wants_json
from zenos.cli.main import app
from zenos.core.home import Home
from zenos.core.task import Outcome


def told(ran: Ran) -> ErrorDetail:
    """The one error there is, read as the HTTP API's are."""
    assert ran.err.count("\n") == 1
    return msgspec.json.decode(ran.err, type=ErrorAnswer, strict=True).error


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("show nosuch", "not_found", None),
        ("logs t99", "not_found", None),
        ("ps --kind create", "invalid", "kind"),
        (f"train --data {__file__} --arch llama-nano --model m --steps 0", "invalid", "steps"),
        ("submit --cpu nan -- ls", "invalid", "cpu"),
        ("submit --memory lots -- ls", "invalid", "memory"),
        ("submit --time soon -- ls", "invalid", "time"),
        ("serve tiny --slots 0", "invalid", "slots"),
        ("ps --state wrong", "invalid", "state"),  # as the daemon calls it
        ("submit --gpu 64 -- ls", "unfittable", None),
        ("ps --limit 0", "invalid", "--limit"),
        ("ps --lmit 3", "invalid", "--lmit"),
        ("cancel", "invalid", "TASK..."),
        ("trian", "invalid", None),
        ("bus nonsense", "invalid", None),
    ],
)
def test_an_error_is_an_object_and_the_exit_code_stays(
    daemon: Daemon, line: str, code: str, param: str | None
) -> None:
    before, dashes, program = line.partition(" -- ")
    plain, ran = zenos(*line.split()), zenos(*f"{before} --json{dashes}{program}".split())
    error = told(ran)
    assert (error.code, error.param) == (code, param)
    assert plain.err == f"zenos: {error.message}\n"
    assert (ran.code, ran.out) == (plain.code, "")
    assert ran.code in (errors.exit_code(errors.ZenosError()), 2, 3, 4)


def test_without_a_daemon_it_says_so(home: Home) -> None:
    ran = zenos("ps", "--json")
    assert (told(ran).code, told(ran).type, ran.code) == ("no_daemon", "server_error", 5)


def test_of_several_names_each_has_its_line(daemon: Daemon) -> None:
    ran = zenos("cancel", "nosuch", "t99", "--json")
    found = [msgspec.json.decode(line, type=ErrorAnswer).error for line in ran.err.splitlines()]
    assert [error.code for error in found] == ["not_found", "not_found"]
    assert (ran.code, ran.json) == (3, [])


def test_a_task_that_fails_while_it_is_waited_for(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(handle: Any) -> None:
        until(lambda: daemon.state(handle.id) == "running")
        daemon.end(handle.id, Outcome(exit_code=7))
        handle.wait()

    monkeypatch.setattr("zenos.cli.waiting.until_end", ended)
    ran = zenos("submit", "--wait", "--json", "--", "work")
    assert (told(ran).code, ran.code, ran.json["state"]) == ("worker", 1, "failed")


def test_the_types_are_those_of_the_http_api() -> None:
    for code, status in STATUS.items():
        ours = errors.error_object("cannot", code, "field")
        assert ours == msgspec.to_builtins(detail_of(status, code, "cannot", "field")), code


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("ps --json", True),
        ("ps --wrong --json", True),
        ("--json ps", True),
        ("nosuch --json", True),
        ("bus topics --json", True),
        ("submit --json -- ls", True),
        ("submit --cpu 1 --json ls", True),
        ("submit ls --json", False),  # for ls
        ("submit -- ls --json", False),
        ("submit --name --json -- ls", False),  # a name
        ("submit --name=x --json -- ls", True),
        ("cancel --wait --json t1", True),
        ("cancel -- --json", False),
        ("ps", False),
        ("", False),
    ],
)
def test_json_is_wanted_where_it_would_be_read(line: str, wanted: bool) -> None:
    assert wants_json(typer.main.get_command(app), line.split()) is wanted
