"""Writes pages of docs/reference from what they are about.

`python -m zenos.cli.reference cli` prints the page of the commands, `… specs` that of the
specifications, `… python` that of the Python client.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

from typer.main import get_command

HEAD = """# Commands

Written by `python -m zenos.cli.reference cli` from the commands themselves; `zenos COMMAND --help`
says the same.

Results go to stdout and messages to stderr. With `--json` the result is JSON.
On a terminal, tables become as narrow as it is: texts are shortened (`…`), and what can best be
done without is left out. In a pipe or a file nothing is, up to 4,000 characters of a text.
Where the terminal's locale is `LC_ALL=C`, or the output is to be in ASCII, such characters stand
for bars, lines and dots, and `?` for letters that it hasn't.
`zenos --install-completion` sets up completion in the shell, of commands and of the names of models
and tasks, and `zenos --show-completion` prints the script: for the shell
around, or for the one that is named (`bash`, `zsh`, `fish`, `powershell`, `pwsh`).

## Exit codes

| code | meaning |
| --- | --- |
| 0 | fine |
| 1 | failed |
| 2 | usage: an option or a value cannot be used |
| 3 | not found |
| 4 | refused: not allowed, not in this state, or no node is large enough |
| 5 | no daemon |
| 130 | interrupted with Ctrl-C; a task that was followed goes on |
| 141 | whoever read the output went away |

## Errors

An error is a line on stderr that begins with `zenos: cannot`. With `--json` it is one JSON object
in a line, of the same form as the [HTTP API's](http.md), also where the command line itself is
wrong; the exit codes are the same. Written here over several lines:

```json
{"error": {
  "message": "cannot find the task 't9': zenos ps --all lists them",
  "type": "invalid_request_error", "code": "not_found", "param": null
}}
```

`code` is for programs, `message` for people; `param` is the flag or the field that is wrong, where
that is known. What is done for several names at once may have several such lines. Lines that begin
with no brace are notes for people.

## Environment

| variable | meaning |
| --- | --- |
| `ZENOS_HOME` | the home, with the daemon's files; default `~/.zenos` |
| `ZENOS_HOST` | address of a daemon, `HOST`, `HOST:PORT` or a URL, instead of the one on the home |
| `ZENOS_TOKEN` | its token, or a user's; default: the task's inside a task, else the home's |
| `ZENOS_DEBUG` | `1` shows where an unexpected fault came from |
| `NO_COLOR` | no colours |

`ZENOS_HOME`, `ZENOS_HOST` or `ZENOS_TOKEN` that is set and empty is refused (2): it may be what a
script failed to find out, and would mean the home's daemon and its operator.

Settings of the daemon are in [settings.md](settings.md).
"""


def reference() -> str:
    """The page."""
    from zenos.cli.main import app

    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    panels: dict[str, list[str]] = {}
    for name, command in commands.items():
        if not command.hidden:
            panels.setdefault(_panel(command), []).extend(_sections(name, command))
    parts = [HEAD]
    for panel, sections in panels.items():
        parts += [f"## {panel}\n", *sections]
    return "\n".join(parts)


def _sections(name: str, command: Any) -> list[str]:
    """A command's section; of a group, those of its commands."""
    inner: dict[str, Any] = getattr(command, "commands", {})
    if not inner:
        return [_section(name, command)]
    return [_section(f"{name} {word}", each) for word, each in inner.items()]


def _panel(command: Any) -> str:
    panel = command.rich_help_panel
    return panel if isinstance(panel, str) else "Others"


def _section(name: str, command: Any) -> str:
    text = inspect.cleandoc(command.help or "")
    about, _, example = text.partition("Example: ")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(["zenos", name, "[OPTIONS]", *(_placeholder(a) for a in arguments)])
    lines = [f"### zenos {name}\n", f"{' '.join(about.split())}\n", f"    {usage}\n"]
    if example:
        lines += ["Example:\n", f"    {' '.join(example.split())}\n"]
    rows = [(f"`{_placeholder(a)}`", a.help or "") for a in arguments]
    rows += [(_names(o), _about(o)) for o in options if o.name != "help"]
    if rows:
        lines += ["| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows), ""]
    return "\n".join(lines)


def _placeholder(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _about(option: Any) -> str:
    text = str(option.help or "").replace("|", "\\|")
    default = option.default
    if isinstance(default, bool | None) or default in ("", []) or callable(default):
        return text
    return f"{text} Default `{default}`."


SPECS_HEAD = """# Specifications

Written by `python -m zenos.cli.reference specs` from the types themselves. As JSON schemas:
`zenos schema NAME` or `GET /api/schemas/NAME` for train, create, task and deployment. An unknown
field is an error that names the nearest one.

A file for `zenos train` has the fields of [train](#train) and of [options](#options). In it `data`
may be a path or a list of paths instead of a mapping, paths are meant from where the file lies,
`workers` may be `1..4`, and `type` is left out; `zenos schema train` is the schema of such a file.
"""


def specs() -> str:
    """The page of the specifications, from the published schemas."""
    import msgspec

    from zenos.client.build import TaskOptions
    from zenos.core.task import SCHEMAS

    schemas, _ = msgspec.json.schema_components(SCHEMAS.values(), ref_template="{name}")
    names = {schema["$ref"]: name for schema, name in zip(schemas, SCHEMAS, strict=True)}
    _, types = msgspec.json.schema_components(SCHEMAS.values())
    names |= {name: name.removesuffix("Spec").lower() for name in types if name not in names}
    order = [*SCHEMAS, *(name for name in names.values() if name not in SCHEMAS)]
    by_name = {names[title]: schema for title, schema in types.items()}
    pages = [_spec(name, by_name[name], names) for name in order]
    options = msgspec.json.schema(TaskOptions)["$defs"]["TaskOptions"]
    return "\n".join([SPECS_HEAD, *pages, _spec("options", options, names)])


def _spec(name: str, schema: dict[str, Any], names: dict[str, str]) -> str:
    lines = [f"## {name}\n", f"{inspect.cleandoc(schema['description'])}\n"]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = schema.get("required", [])
    for field, about in schema["properties"].items():
        default = "required" if field in required else f"`{json.dumps(about.get('default'))}`"
        text = about.get("description", "")
        if "minimum" in about:
            text += f" From {_number(about['minimum'])} to {_number(about['maximum'])}."
        if field == "type":
            default, text = "", "Tells which work of a task it is."
        lines.append(f"| `{field}` | {_type(about, names)} | {default} | {text} |")
    return "\n".join([*lines, ""])


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _type(schema: dict[str, Any], names: dict[str, str]) -> str:
    """A schema's type in a few words."""
    if "$ref" in schema:
        name = names[schema["$ref"].rpartition("/")[2]]
        return f"[{name}](#{name})"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(
            _type(part, names) for part in schema["anyOf"] if part.get("type") != "null"
        )
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], names)}"
    return {"object": "mapping"}.get(schema["type"], str(schema["type"]))


PYTHON_HEAD = """# Python

Written by `python -m zenos.cli.reference python` from the client itself.

```python
import zenos

with zenos.connect() as client:
    task = client.submit(["python", "work.py"], cpu=0.5, memory="1GiB")
    task.watch()  # a live display, in a terminal or a notebook
    print(client.generate("pydoc", "def ", max_tokens=40).text())
```

In a coroutine, `async with zenos.connect_async() as client:` gives the same methods to await; what
is iterated here is iterated there with `async for`. Where it should stay open for longer than a
block, `client = await zenos.connect_async()`, and at the end `await client.aclose()`.

```python
import asyncio

import zenos


async def main() -> None:
    async with zenos.connect_async() as client:
        task = await client.submit(["python", "work.py"], cpu=0.5, memory="1GiB")
        async with client.events(task.id) as events:  # all that happens from here on
            async for event in events:
                print(event)


asyncio.run(main())
```

Every error is a `zenos.core.errors.ZenosError`, whose `message` says what was wrong and what to do:
`InvalidError`, `NotFoundError`, `RefusedError`, `ConflictError`, `UnfittableError`, `BusyError`,
`UnavailableError`, `DeadlineError`, `WorkerError`, `StorageError`, `NoDaemonError`. A field that
cannot be used is a `zenos.core.wording.FieldError`, an `InvalidError` whose `param` names it as a
path, such as `data.paths`.
"""


def python() -> str:
    """The page of the Python client."""
    from zenos import client
    from zenos.client import build

    parts = [PYTHON_HEAD, "## zenos.connect\n", _callable("zenos.connect", client.connect)]
    for name in ("call", "map"):  # by name: the command line imports no part of it
        function = getattr(importlib.import_module("zenos.calls"), name)
        parts += [f"## zenos.{name}\n", _callable(f"zenos.{name}", function)]
    own_objects = (client.Bus, client.Audit, client.UserTokens)
    described = (client.Client, *own_objects, client.TaskHandle, client.Generation, client.Live)
    for type_ in described:
        parts += [f"## {type_.__name__}\n", _text(type_)]
        for name, member in _members(type_).items():
            if isinstance(member, property):
                parts.append(f"### `{name}`\n\n{_text(member.fget)}")
            elif callable(member):
                parts.append(f"### `{name}`\n\n{_callable(name, member)}")
    parts.append("## What they take and return\n")
    parts += [_record(type_) for type_ in (build.TaskOptions, *_results(described))]
    return "\n".join(parts)


def _results(described: Iterable[type]) -> list[type]:
    """The structs that the methods of these types give, and those that are in them.

    Without specifications, which have a page of their own.
    """
    import msgspec

    from zenos.core.task import SCHEMAS

    _, specs = msgspec.json.schema_components(SCHEMAS.values())
    found: dict[str, type] = {}
    waiting = [given for type_ in described for given in _given_by(type_)]
    while waiting:
        hint = waiting.pop(0)
        waiting += get_args(hint)
        is_struct = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        if is_struct and hint.__name__ not in {*found, *specs}:
            found[hint.__name__] = hint
            waiting += get_type_hints(hint).values()
    return list(found.values())


def _given_by(type_: type) -> list[Any]:
    """What the words mean by which the methods of a type say what they give."""
    iterated = [getattr(type_, name) for name in ("__iter__", "__next__") if hasattr(type_, name)]
    given = []
    for member in (*_members(type_).values(), *iterated):
        function = member.fget if isinstance(member, property) else member
        if callable(function):
            words = re.findall(r"[A-Z]\w+", str(inspect.signature(function).return_annotation))
            places = (sys.modules[function.__module__], importlib.import_module("zenos.client"))
            given += [getattr(place, w) for w in words for place in places if hasattr(place, w)]
    return given


def _members(type_: Any) -> dict[str, Any]:
    """What a user may use of a type, by name."""
    own = [base for base in type_.__mro__ if base.__module__.startswith("zenos.client")]
    found = {name: member for base in own for name, member in vars(base).items()}
    return {n: m for n, m in found.items() if not n.startswith("_") and n not in _INTERNAL}


# Public for the client's own modules.
_INTERNAL = frozenset({"look", "wait_before_retry", "stream"})


def _callable(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    given = [p for p in signature.parameters.values() if p.name != "self"]
    # Annotations are kept as text, which is shown with quotes.
    shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(signature.replace(parameters=given)))
    return f"    {name}{shown}\n\n{_text(function)}"


def _record(type_: Any) -> str:
    names = ", ".join(f"`{name}`" for name in inspect.signature(type_).parameters)
    return f"### {type_.__name__}\n\n{_text(type_)}\nFields: {names}.\n"


def _text(described: Any) -> str:
    return f"{(inspect.getdoc(described) or '').strip()}\n"


if __name__ == "__main__":
    sys.stdout.write({"cli": reference, "specs": specs, "python": python}[sys.argv[1]]())
