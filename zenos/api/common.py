"""What the routes of all nouns share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Path, Request

from zenos.api.auth import PRINCIPAL
from zenos.api.ports import System
from zenos.core import limits
from zenos.core.errors import InvalidError, RefusedError
from zenos.core.task import Principal
from zenos.core.wording import FieldError, nearest

TASK_CHARS_MAX = limits.NAME_CHARS_MAX + 12  # with an index: NAME[3]

# A name and a tag each of at most so many characters; which ones says the message.
REF_PATTERN = "^[^:]{1,64}(:[^:]{1,64})?$".replace("64", str(limits.NAME_CHARS_MAX))

ModelPath = Annotated[
    str,
    Path(
        min_length=1,
        max_length=limits.REF_CHARS_MAX,
        description="`name`, `name:version` or `name:alias`.",
        json_schema_extra={"pattern": REF_PATTERN},
    ),
]
NamePath = Annotated[
    str, Path(min_length=1, max_length=limits.NAME_CHARS_MAX, description="A name without a tag.")
]
TaskPath = Annotated[
    str,
    Path(min_length=1, max_length=TASK_CHARS_MAX, description="A task's id, or its name."),
]
ArrayPath = Annotated[
    str, Path(min_length=1, max_length=TASK_CHARS_MAX, description="An array's id, or its name.")
]
NodePath = Annotated[
    str, Path(min_length=1, max_length=limits.NAME_CHARS_MAX, description="A node's name.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=limits.IDEMPOTENCY_KEY_CHARS_MAX,
        description="The same key with the same body makes one thing, however often it is sent.",
    ),
]


def system_of(request: Request) -> System:
    """The system behind the app."""
    system: System = request.app.state.system
    return system


def home_of(request: Request) -> str | None:
    """The home's path, which answers don't tell."""
    if not hasattr(request.app.state, "home"):
        request.app.state.home = str(system_of(request).status().get("home") or "") or None
    home: str | None = request.app.state.home
    return home


def principal_of(request: Request) -> Principal:
    """On whose behalf the request is, as the gate found out."""
    principal: Principal = request.scope[PRINCIPAL]
    return principal


@contextmanager
def refusing(request: Request) -> Iterator[None]:
    """What is refused inside has a row of the audit, where nobody else would write one."""
    try:
        yield
    except RefusedError as error:
        request.app.state.refusals.refused(request.scope, error)
        raise


async def for_operator(request: Request) -> None:
    """Raises RefusedError, with a row of the audit, for who has a user's token."""
    who = principal_of(request)
    with refusing(request):
        if not who.is_operator:
            raise RefusedError(
                f"cannot do that as {who.user}: it is for the operator alone, who has the token of "
                "the daemon's home"
            )


# Of a route: what concerns the machine, and not somebody's work.
OPERATORS: Final[dict[str, Any]] = {"dependencies": [Depends(for_operator)]}


async def check_parameters(request: Request) -> None:
    """Raises FieldError for a query parameter that zenos' own path doesn't know.

    A misspelt filter would else answer with everything. OpenAI's paths are left alone, since its
    clients may send what is new there; so are those that are asked by programs for monitoring.
    """
    if not request.url.path.startswith("/api/"):
        return
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "this path takes none"
            hint = nearest(name[:100], known) or f"; {takes}"
            raise FieldError(
                f"cannot use the query parameter {name[:64]!a}: it is unknown{hint}", name[:64]
            )


def check_path(path: str) -> str:
    """An absolute path on the daemon's machine; raises FieldError."""
    if not path.startswith("/") or "\0" in path or len(path) > limits.PATH_CHARS_MAX:
        raise FieldError(
            f"cannot use the path {path[:64]!a}: give an absolute one on the daemon's machine",
            "path",
        )
    return path


def check_depth(value: Any, what: str) -> None:
    """Raises InvalidError where lists and objects are nested deeper than the limit."""
    level = [value]
    for _ in range(limits.JSON_DEPTH_MAX):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise InvalidError(f"cannot use {what}: it is nested deeper than {limits.JSON_DEPTH_MAX}")
