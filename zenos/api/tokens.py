"""Tokens of users: make, list, revoke. For the operator alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from zenos.api.audit import audited
from zenos.api.common import for_operator
from zenos.api.models import in_thread
from zenos.api.schema import operation, read, reply
from zenos.api.shapes import TokenBody, TokenList, TokenMade, TokenView
from zenos.core import limits
from zenos.core.names import check_name
from zenos.core.tokens import Token, Tokens, checked

router = APIRouter(prefix="/api/tokens", tags=["tokens"], dependencies=[Depends(for_operator)])
TokenPath = Annotated[
    str, Path(min_length=1, max_length=limits.NAME_CHARS_MAX, description="A token's name.")
]


@router.get("", **operation(TokenList))
async def list_tokens(request: Request) -> Response:
    """Tokens of users, expired ones too, by name; never what a token itself is."""
    tokens = _tokens(request)
    return reply(TokenList(tokens=[_view(tokens, token) for token in tokens.all()]))


@router.post("", **operation(TokenMade, body=TokenBody, status=201, also=(409,)))
async def create(request: Request) -> Response:
    """Make a token for a user. Only this answer says it.

    What makes it once is its name: sent again it is refused, under the same key too, since nobody
    knows the token any more.
    """
    body: TokenBody = await read(request, TokenBody)
    checked(body.name, body.user, body.project, body.expires_s)
    make = _tokens(request).create
    async with audited(request, "grant", f"{body.name} for {body.user}"):
        made, said = await in_thread(make, body.name, body.user, body.project, body.expires_s)
    return reply(
        TokenMade(
            name=made.name,
            user=made.user,
            project=made.project,
            created=made.created,
            expires=made.expires,
            token=said,
        ),
        201,
    )


@router.delete("/{name}", **operation(TokenView, also=(404,)))
async def revoke(request: Request, name: TokenPath) -> Response:
    """Take a token back: its holder's next request is refused, and what is being streamed ends."""
    tokens, name = _tokens(request), check_name(name, "name of a token")
    async with audited(request, "revoke", name):
        gone = await in_thread(tokens.revoke, name)
    return reply(_view(tokens, gone))


def _view(tokens: Tokens, token: Token) -> TokenView:
    return TokenView(
        name=token.name,
        user=token.user,
        project=token.project,
        created=token.created,
        expires=token.expires,
        expired=tokens.has_expired(token),
    )


def _tokens(request: Request) -> Tokens:
    tokens: Tokens = request.app.state.tokens
    return tokens
