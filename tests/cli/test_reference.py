"""The page of all commands is what the commands are."""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command

from zenos.cli.main import app
from zenos.cli.reference import reference

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "write it anew: python -m zenos.cli.reference > docs/reference/cli.md"
    )


def test_every_command_and_option_is_explained() -> None:
    text = reference()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"### zenos {name}\n" in text
        for parameter in command.params:
            assert parameter.help, f"zenos {name}: {parameter.name} is not explained"
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}`" in text
