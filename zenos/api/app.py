"""The app: the gate, the routes of each noun, one map of errors, one OpenAPI document."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from zenos import __version__
from zenos.api import (
    arrays,
    audit,
    batches,
    bus,
    errors,
    events,
    models,
    openai,
    outlook,
    schema,
    serving,
    system,
    tasks,
    tokens,
)
from zenos.api.auth import Gate, PrincipalOf, no_tasks
from zenos.api.common import check_parameters, home_of
from zenos.api.metrics import Metered, Metrics
from zenos.api.ports import System
from zenos.api.refusals import Refusals
from zenos.core.config import Config
from zenos.core.errors import ZenosError
from zenos.core.tokens import Tokens

NOUNS: Final = (
    system,
    openai,
    tasks,
    arrays,
    batches,
    models,
    serving,
    events,
    bus,
    audit,
    outlook,
    tokens,
)


def create_app(
    system_: System,
    config: Config,
    token: str,
    users: Tokens | None = None,
    tasks: PrincipalOf = no_tasks,
) -> FastAPI:
    """The HTTP interface of a running system.

    `token` opens everything; those of `users`, and of running tasks, what is theirs; `GET /health`
    is open to all. Set `app.state.closing` to end open streams.
    """
    app = FastAPI(
        title="zenos",
        version=__version__,
        openapi_url="/openapi.json",
        docs_url=None,  # they load scripts from elsewhere, and a browser has no token
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Response,
    )
    app.state.system = system_
    app.state.metrics = Metrics()
    app.state.closing = asyncio.Event()
    app.state.tokens = users if users is not None else Tokens()
    app.state.refusals = Refusals(system_)
    app.state.once = WeakValueDictionary()  # keys of requests that are being carried out
    for noun in NOUNS:
        app.include_router(noun.router, dependencies=[Depends(check_parameters)])
    app.add_exception_handler(ZenosError, _zenos_error)
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(
        Gate,
        config=config,
        token=token,
        users=app.state.tokens,
        tasks=tasks,
        refused=app.state.refusals.refused,
    )
    app.add_middleware(Metered, metrics=app.state.metrics)
    app.openapi = partial(schema.document, app)  # type: ignore[method-assign]
    return app


async def _zenos_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ZenosError):
        error = errors.unexpected(error)
    return errors.respond(error, home_of(request))


async def _bad_parameters(request: Request, error: Exception) -> Response:
    problems = list(error.errors()) if isinstance(error, RequestValidationError) else []
    return errors.respond(errors.of_parameters(problems or [{}]))


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    response = errors.of_status(status, request.url.path, request.method)
    if status == 405:
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """What the path takes; the framework names the methods of the first of its routes alone."""
    found: set[str] = set()
    routes = [route for noun in NOUNS for route in noun.router.routes]
    for route in [*request.app.routes, *routes]:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found
