"""The pages of all commands and specifications are what those are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.main import get_command

from zenos.cli.main import app
from zenos.cli.reference import python, reference, specs
from zenos.core.task import SCHEMAS

# Of Python itself, or type variables that a docstring explains.
BUILT_IN = {"None", "Any", "Path", "Iterator", "Generator", "CallFuture", "MapResults", "T", "R"}
PAGES = Path(__file__).parent.parent.parent / "docs" / "reference"


@pytest.mark.parametrize(
    ("name", "made"), [("cli", reference), ("specs", specs), ("python", python)]
)
def test_a_page_is_up_to_date(name: str, made: Callable[[], str]) -> None:
    assert (PAGES / f"{name}.md").read_text(encoding="utf-8") == made(), (
        f"write it anew: python -m zenos.cli.reference {name} > docs/reference/{name}.md"
    )


def test_what_the_python_client_gives_is_explained() -> None:
    text, on_other_pages = python(), specs()
    for name in (
        "Task",
        "Outcome",
        "Deployment",
        "ArrayView",
        "History",
        "Why",
        "Plan",
        "AuditRow",
    ):
        assert f"### {name}\n" in text
    for given in re.findall(r"-> (.*)", text):
        for name in re.findall(r"[A-Z]\w+", given):
            known = (
                f"## {name}\n" in text
                or f"## {name.removesuffix('Spec').lower()}\n" in on_other_pages
            )
            assert known or name in BUILT_IN, f"{name} is not explained"


def test_every_field_of_a_specification_is_explained() -> None:
    schemas, types = msgspec.json.schema_components(SCHEMAS.values())
    assert len(types) > len(schemas)
    for title, schema in types.items():
        for name, field in schema["properties"].items():
            assert name == "type" or field.get("description"), f"{title}.{name} is not explained"


def test_every_command_and_option_is_explained() -> None:
    text = reference()
    named = dict(get_command(app).commands)  # type: ignore[attr-defined]
    for group, inner in [(n, c.commands) for n, c in named.items() if hasattr(c, "commands")]:
        del named[group]
        named |= {f"{group} {name}": command for name, command in inner.items()}
    for name, command in named.items():
        assert f"### zenos {name}\n" in text
        for parameter in command.params:
            assert parameter.help, f"zenos {name}: {parameter.name} is not explained"
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}`" in text
