"""The group of all commands: one place where whatever they raise becomes a message and a code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from zenos.cli import completion, errors
from zenos.cli.batches import SUFFIXES
from zenos.cli.streams import OutputError, quiet
from zenos.core.errors import InvalidError
from zenos.core.wording import followed, nearest, plain_reason


class Commands(TyperGroup):
    """The commands. A wrong command line is refused in one line, as other errors are."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Read the command line and run the command; ends the process."""
        errors.as_json.set(wants_json(self, sys.argv[1:] if args is None else args))
        try:
            code = super().main(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except OutputError as error:  # of a help, which is shown before a command is run
            code = errors.show(error)
        except Exception as error:
            if isinstance(error, typer.Abort):
                raise
            if not hasattr(error, "format_message"):  # before a command: of --install-completion
                sys.exit(errors.show(error))
            if type(error).__name__ != "NoArgsIsHelpError":  # the help has been shown
                param = getattr(error, "param", None)
                name = getattr(error, "option_name", None) or (param and _shown(param))
                errors.say_error(usage_message(error), "invalid", name)
            code = errors.USAGE
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else errors.FINE)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the command's name."""
        if not ctx.resilient_parsing:
            completion.answer(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            quiet(sys.stdout)
            raise typer.Exit(errors.BROKEN_PIPE) from None
        except KeyboardInterrupt:
            raise typer.Exit(errors.INTERRUPTED) from None
        except Exception as error:
            # Usage errors and exits are Typer's business: they carry a code of their own.
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise
            raise typer.Exit(errors.show(error)) from None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; what takes no value says so in its help: by saying nothing."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            options: list[Any] = [*command.params, command.get_help_option(ctx)]
            for option in options:
                if getattr(option, "is_flag", False):
                    option.metavar = ""
        return command


def wants_json(command: Any, args: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, be it right or wrong: as if `--json` were read there.

    It isn't where it is the value of an option, or for a program that is to be run.
    """
    command, rest = _with_its_words(command, list(args))
    mixed = command.context_settings.get("allow_interspersed_args", True)
    rest = rest if mixed else FileOrProgram.flags_first(command, rest)[0]
    while rest:
        word = rest.pop(0)
        if word == "--json":
            return True
        if word == "--" or not (word.startswith("-") or mixed):
            return False
        del rest[: _takes(command, word)]
    return False


class FileOrProgram(TyperCommand):
    """A command whose first word is a program, after which all is the program's, or a file.

    Flags of the command may follow a file, as they may follow what other commands are given. What
    stands after `--` is a program, whatever it is called.
    """

    FILE = "zenos.file"  # under this name in the context's meta: the file, None for a program

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; InvalidError for what stands beside a file and is no flag."""
        args, file = self.flags_first(self, args)
        ctx.meta[self.FILE] = file
        rest = super().parse_args(ctx, args)
        if file is not None and not ctx.resilient_parsing and ctx.params["program"] != [file]:
            word = next((word for word in ctx.params["program"] if word != file), file)
            raise InvalidError(
                f"cannot use {word[:64]!r} after the file of tasks {file[:200]!r}: give one file, "
                f"and flags; to run {file[:200]!r} as a program, write '--' before it"
            )
        return rest

    @staticmethod
    def flags_first(command: Any, args: Sequence[str]) -> tuple[list[str], str | None]:
        """The words with a file of tasks behind all others, and that; None: there is no such.

        It isn't there behind a flag whose value is missing: it would be taken for that.
        """
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] != "--":
            at += 1 + _takes(command, args[at])
        if at >= len(args) or not args[at].endswith(SUFFIXES):
            return list(args), None
        file, behind, end = args[at], args[at + 1 :], 0
        while end < len(behind) and behind[end] != "--":
            end += 1 + _takes(command, behind[end])
        last = [] if end > len(behind) else [file]
        return [*args[:at], *behind, *last], file


def _takes(command: Any, word: str) -> int:
    """How many of the words that follow are the value of this one."""
    return int(
        any(
            word in option.opts and not option.is_flag and not option.count
            for option in command.params
            if option.param_type_name == "option"
        )
    )


def _with_its_words(command: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The command that is named, and what stands before and behind its name."""
    before: list[str] = []
    while words and (known := getattr(command, "commands", None)):
        word = words.pop(0)
        if word.startswith("-"):
            before.append(word)
        elif word in known:
            command = known[word]
        else:
            break
    return command, before + words


def usage_message(error: Any) -> str:
    """What is wrong with a command line, and where to read how it is meant."""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "zenos"
    return followed(f"cannot {_wrong(error)}", f"see '{path} --help'")


def _wrong(error: Any) -> str:
    kind, command = type(error).__name__, error.ctx.command if error.ctx else None
    if kind == "NoSuchOption":
        known = [o for p in command.params for o in (*p.opts, *p.secondary_opts)] if command else []
        name = error.option_name
        return f"use the option {name}: there is none{nearest(name, known)}"
    param = getattr(error, "param", None)
    name = _shown(param) if param is not None else ""
    if kind == "MissingParameter" and name:
        return f"do without {name}: give it"
    if kind == "BadParameter" and name:
        return f"use that {name}: {plain_reason(error.message)}"
    return f"read the command line: {plain_reason(error.format_message())}"


def _shown(param: Any) -> str:
    if param.param_type_name == "option":
        return str(max(param.opts, key=len))
    return str(param.metavar or param.name.upper())
