"""OpenAPI from msgspec: what a route reads and answers stands beside it and is published whole."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response

from zenos import __version__
from zenos.api import errors
from zenos.api.shapes import ErrorAnswer

_MARK: Final = "x-zenos-type"
_types: list[Any] = [ErrorAnswer]
_REF: Final = "#/components/schemas/{name}"
_REASONS: Final = {
    400: "The request is not valid.",
    401: "The token is missing or wrong.",
    403: "Host, Origin or the action is not allowed.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "Not in the present state.",
    413: "The body is too large.",
    414: "The path is too long.",
    415: "The body is encoded.",
    422: "No node could ever hold it.",
    431: "The headers are too large.",
    500: "A fault inside zenos; its log has the details.",
    503: "Not at the moment; Retry-After says when.",
    504: "The deadline has passed.",
}
# What the gate may answer on every path.
_ALWAYS: Final = (400, 401, 403, 408, 413, 414, 415, 431, 500, 503)


# Before version 3.2 of OpenAPI the schema of server-sent events is that of each one.
EVENTS: Final = "text/event-stream"
EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "description": "Its kind; 'message' where none is said."},
        "id": {"type": "string", "description": "Where to resume, as Last-Event-ID."},
        "data": {"type": "string", "description": "JSON; '[DONE]' ends a stream of tokens."},
    },
    "required": ["data"],
}


def mark(type_: Any) -> dict[str, Any]:
    """Stands for the schema of a type until the document is made."""
    if type_ not in _types:
        _types.append(type_)
    return {_MARK: _types.index(type_)}


def operation(
    answer: Any = None,
    *,
    body: Any = None,
    status: int = 200,
    also: tuple[int, ...] = (),
    media: str = "application/json",
    body_required: bool = True,
    streams: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of a route: what it reads and answers.

    answer: a type, or None for text of the media type. also: statuses beside those that every path
    has. streams: it may answer with server-sent events as well.
    """
    schema = EVENT if media == EVENTS else {"type": "string"} if answer is None else mark(answer)
    content: dict[str, Any] = {media: {"schema": schema}}
    if streams:
        content[EVENTS] = {"schema": EVENT}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": "Done.", "content": content}
    }
    for code in sorted({*_ALWAYS, *also}):
        responses[code] = {
            "description": _REASONS[code],
            "content": {"application/json": {"schema": mark(ErrorAnswer)}},
        }
        if code == 503:
            responses[code]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
            }
    extra: dict[str, Any] = {}
    if body is not None:
        extra["requestBody"] = {
            "required": body_required,
            "content": {"application/json": {"schema": mark(body)}},
        }
    return {
        "status_code": status,
        "response_model": None,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": extra,
    }


async def read(request: Request, type_: Any) -> Any:
    """The request's body as a struct; raises InvalidError."""
    return errors.decode(await request.body(), type_)


def reply(value: Any, status: int = 200) -> Response:
    """A struct as the answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def document(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title="zenos",
            version=__version__,
            summary="Train, register and serve language models on the machines you have.",
            routes=app.routes,
        )
        schemas, components = msgspec.json.schema_components(_types, ref_template=_REF)
        made = _filled(made, [_plain(schema) for schema in schemas])
        made.setdefault("components", {})["schemas"] = {
            name: _plain(schema) for name, schema in components.items()
        }
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
        made["paths"]["/health"]["get"]["security"] = []
        for path in made["paths"].values():
            for one in path.values():
                _drop_frameworks_own(one)
        app.openapi_schema = made
    return app.openapi_schema


def schema_of(type_: Any) -> dict[str, Any]:
    """One self-contained JSON schema, as `zenos schema` prints it."""
    made = _plain(msgspec.json.schema(type_))
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return dict(made)


def _filled(node: Any, schemas: list[Any]) -> Any:
    if isinstance(node, dict):
        if _MARK in node:
            return schemas[node[_MARK]]
        return {key: _filled(value, schemas) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, schemas) for value in node]
    return node


def _plain(node: Any) -> Any:
    """Docstrings become one line; names of fields that are keywords of others stay."""
    if isinstance(node, dict):
        plain = {key: _plain(value) for key, value in node.items()}
        if isinstance(plain.get("description"), str):
            plain["description"] = re.sub(r"\s+", " ", plain["description"]).strip()
        return plain
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _drop_frameworks_own(one: dict[str, Any]) -> None:
    """Parameters that FastAPI refuses are answered with 400 here, never with its own 422."""
    refused = one.get("responses", {}).get("422", {})
    if "HTTPValidationError" in str(refused):
        del one["responses"]["422"]
