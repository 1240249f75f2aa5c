"""Options of what is submitted that say when it may run, and where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from zenos.cli.common import complete_tasks

PANEL: Final = "When and where"


def _option(help_: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(
        metavar=metavar, help=help_, rich_help_panel=PANEL, show_default=False, **more
    )


After = Annotated[
    list[str] | None,
    _option(
        "Start once this task has succeeded; any:TASK: has ended. With commas, or repeated.",
        "TASK",
        autocompletion=complete_tasks,
    ),
]
At = Annotated[str | None, _option("Start not before: 18:00, an ISO time, +2h.", "TIME")]
By = Annotated[str | None, _option("Should have ended by then; goes first as that nears.", "TIME")]
Node = Annotated[str | None, _option("Run on this node alone.", "NAME")]
Label = Annotated[
    list[str] | None,
    _option("Run on a node with this label; may be repeated.", "KEY=VALUE"),
]
Exclusive = Annotated[
    bool | None,
    typer.Option(
        "--exclusive",
        help="Give it all that its node has: nobody else is there meanwhile.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
FLAGS: Final[dict[str, Any]] = {
    "after": After,
    "at": At,
    "by": By,
    "node": Node,
    "label": Label,
    "exclusive": Exclusive,
}
ARRAY: Final = Annotated[
    str | None,
    _option(
        "A task for each index, in ZENOS_ARRAY_INDEX; of which LIMIT run at once.",
        "FIRST-LAST[:STEP][%LIMIT]",
    ),
]


def with_when_flags(command: Callable[..., None], **more: Any) -> Callable[..., None]:
    """The command with these options; those that were given are in its mapping `when`.

    more: further ones, given to it by their names.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name not in ("when", *more)]
    rest = [p for p in own if p.kind is p.VAR_KEYWORD]
    plain = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD]
    made = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag)
        for name, flag in {**FLAGS, **more}.items()
    ]

    def wrapper(**given: Any) -> None:
        when = {name: given.pop(name, None) for name in FLAGS}
        chosen = {name: value for name, value in when.items() if value}
        if "label" in chosen:
            chosen["labels"] = _labels(chosen.pop("label"))
        command(**given, when=chosen)

    wrapper.__doc__ = command.__doc__
    wrapper.__name__ = command.__name__
    wrapper.__signature__ = inspect.Signature([*plain, *made, *rest])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in (*plain, *made)}
    return wrapper


def _labels(given: list[str]) -> dict[str, str]:
    from zenos.core.errors import InvalidError

    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidError(f"cannot read the label {text[:60]!r}: write KEY=VALUE")
        if labels.setdefault(key, value) != value:
            raise InvalidError(f"cannot want {key}={labels[key]} and {key}={value} of one node")
    return labels
