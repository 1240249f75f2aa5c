"""The command `zenos`: puts the nouns together, and ends with the right exit code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Annotated

import typer

from zenos.cli import (
    audit,
    bus,
    errors,
    interrupts,
    models,
    nodes,
    outlook,
    serving,
    simulate,
    streams,
    system,
    tasks,
    tokens,
    yielding,
)
from zenos.cli.commands import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    help="An operating system for language models: train, register and serve them on the machines "
    "you have.",
    epilog="Exit codes: 0 fine, 1 failed, 2 usage, 3 not found, 4 refused, 5 no daemon.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from zenos import __version__
        from zenos.cli.output import put

        put(f"zenos {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """See `zenos COMMAND --help` for each with an example."""


for noun in (
    system,
    nodes,
    tokens,
    tasks,
    yielding,
    models,
    serving,
    bus,
    audit,
    outlook,
    simulate,
):
    noun.register(app)
if importlib.util.find_spec("zenos.cli.demo") is not None:
    importlib.import_module("zenos.cli.demo").register(app)


def main() -> None:
    """Run the command line; ends the process."""
    streams.set_up()
    interrupts.watch()
    try:
        app(prog_name="zenos")
    except KeyboardInterrupt:
        sys.exit(errors.INTERRUPTED)
    except interrupts.Ended as ended:
        interrupts.end_as_told(ended)
    finally:
        failed = streams.settle()
        if failed is not None:
            sys.exit(errors.show(failed))
