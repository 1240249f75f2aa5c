"""The command `zenos`: puts the nouns together, and ends with the right exit code."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zenos.cli import errors, models, serving, system, tasks


class Commands(TyperGroup):
    """All commands, with one place where whatever they raise becomes a message and a code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            errors.quiet_stdout()
            raise typer.Exit(errors.BROKEN_PIPE) from None
        except KeyboardInterrupt:
            raise typer.Exit(errors.INTERRUPTED) from None
        except Exception as error:
            # Usage errors and exits are Typer's business: they carry a code of their own.
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise
            raise typer.Exit(errors.show(error)) from None


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


for noun in (system, tasks, models, serving):
    noun.register(app)
if importlib.util.find_spec("zenos.cli.demo") is not None:
    importlib.import_module("zenos.cli.demo").register(app)


def main() -> None:
    """Entry point of the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets a question mark.
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="zenos")
    except KeyboardInterrupt:
        sys.exit(errors.INTERRUPTED)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            errors.quiet_stdout()
