"""OpenAI's paths: models, completions and chat completions, streamed and at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos.api import errors, openai_answers, openai_bodies
from zenos.api.auth import PRINCIPAL
from zenos.api.common import ModelPath, home_of, system_of
from zenos.api.metrics import metrics_of
from zenos.api.models import in_thread
from zenos.api.openai_answers import Gathering
from zenos.api.openai_bodies import Common
from zenos.api.schema import operation, read, reply
from zenos.api.streams import CLIENT_GONE, Stream, merged, unless_gone
from zenos.core.errors import (
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnfittableError,
    from_code,
)
from zenos.core.names import ModelRef
from zenos.core.wire import Chunk, GenerateRequest, Times
from zenos.core.wording import FieldError

router = APIRouter(tags=["openai"])
_encode = msgspec.json.Encoder().encode
# Which version of the model computed the answer, as NAME:NUMBER.
VERSION_HEADER: Final = "X-Zenos-Model-Version"
# That it was begun again when a new version came, as the deployment's `on_update` says.
AGAIN_HEADER: Final = "X-Zenos-Begun-Again"
# Where its time has gone, in seconds (docs/reference/http.md says what counts as what).
QUEUE_HEADER: Final = "X-Zenos-Queue-Seconds"
LOAD_HEADER: Final = "X-Zenos-Load-Seconds"
COMPUTE_HEADER: Final = "X-Zenos-Compute-Seconds"
Chunks = AsyncGenerator[tuple[int, Chunk], None]


@router.get("/v1/models", **operation(openai_answers.ModelListAnswer))
async def list_models(request: Request) -> Response:
    """Models that can be asked: those that are registered, and deployments."""
    system = system_of(request)
    created: dict[str, float] = {}
    for version in await in_thread(system.registry.list):
        if not version.can_be_asked:
            continue
        created[version.name] = max(created.get(version.name, 0.0), version.created)
    for name, deployment in system.deployments().items():
        created.setdefault(name, deployment.created)
    data = [
        openai_answers.ModelAnswer(id=name, created=int(at)) for name, at in sorted(created.items())
    ]
    return reply(openai_answers.ModelListAnswer(data=data))


@router.get("/v1/models/{model}", **operation(openai_answers.ModelAnswer, also=(404,)))
async def show_model(request: Request, model: ModelPath) -> Response:
    """One model that can be asked."""
    system = system_of(request)
    deployment = system.deployments().get(model)
    if deployment is not None:
        return reply(openai_answers.ModelAnswer(id=model, created=int(deployment.created)))
    ref = ModelRef.parse(model)
    version = await in_thread(system.registry.resolve, ref)
    return reply(openai_answers.ModelAnswer(id=str(ref), created=int(version.created)))


@router.post(
    "/v1/completions",
    **operation(
        openai_answers.Completion,
        body=openai_bodies.CompletionBody,
        also=(404, 422, 504),
        streams=True,
    ),
)
async def complete(request: Request) -> Response:
    """Go on with a text."""
    body: openai_bodies.CompletionBody = await read(request, openai_bodies.CompletionBody)
    requests = openai_bodies.completion_requests(body)
    return await _answer(request, body, requests, chat=False)


@router.post(
    "/v1/chat/completions",
    **operation(
        openai_answers.Chat, body=openai_bodies.ChatBody, also=(404, 422, 504), streams=True
    ),
)
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    body: openai_bodies.ChatBody = await read(request, openai_bodies.ChatBody)
    return await _answer(request, body, [openai_bodies.chat_request(body)], chat=True)


async def _answer(
    request: Request, body: Common, requests: list[GenerateRequest], *, chat: bool
) -> Response:
    """Ask the engine; wait for the first chunk, so that errors before it have their status."""
    system, metrics = system_of(request), metrics_of(request)
    _check_model(body.model)
    if not body.stream:
        requests = [msgspec.structs.replace(one, whole=True) for one in requests]
    principal, deadline_s = request.scope[PRINCIPAL], openai_bodies.deadline_s(body)
    sources: list[AsyncIterator[Chunk]] = [
        system.generate(body.model, one, principal, deadline_s) for one in requests
    ]
    sampling = requests[0].sampling
    gathering = Gathering(
        requests[0].id,
        body.model,
        choices_each=sampling.n,
        logprobs=sampling.logprobs is not None,
    )
    chunks = metrics.watching(body.model, merged(sources))
    try:
        if body.stream:
            first = await unless_gone(request, _first(chunks))
            if first is not None:
                events = _events(first, chunks, gathering, body, home_of(request), chat=chat)
                answer: Response = Stream(events, "text/event-stream", chunks)
                return _headed(answer, first[1].version, first[1].times)
        else:
            whole = await unless_gone(request, _gather(chunks, gathering))
            if whole is not None:
                answer = reply(whole.chat() if chat else whole.completion())
                if whole.begun_again:
                    answer.headers[AGAIN_HEADER] = "true"
                return _headed(answer, ", ".join(whole.versions), whole.times)
    except BaseException as error:
        await chunks.aclose()
        _name_field(error, chat=chat)
        raise
    await chunks.aclose()
    return Response(status_code=CLIENT_GONE)


def _headed(answer: Response, version: str, times: Times | None) -> Response:
    """With what is known of how it came about, in headers."""
    if version:
        answer.headers[VERSION_HEADER] = version
    if times is not None:
        answer.headers[QUEUE_HEADER] = f"{times.queue_s:.6f}"
        answer.headers[LOAD_HEADER] = f"{times.load_s:.6f}"
        answer.headers[COMPUTE_HEADER] = f"{times.compute_s:.6f}"
    return answer


async def _first(chunks: Chunks) -> tuple[int, Chunk]:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        raise _cut_short() from None


async def _gather(chunks: Chunks, gathering: Gathering) -> Gathering:
    async with aclosing(chunks):
        async for prompt, chunk in chunks:
            gathering.add(prompt, _checked(chunk))
    return gathering


async def _events(
    first: tuple[int, Chunk],
    chunks: Chunks,
    gathering: Gathering,
    body: Common,
    home: str | None,
    *,
    chat: bool,
) -> AsyncGenerator[bytes, None]:
    """Server-sent events; an error after the first is one more event, then the end."""
    try:
        async with aclosing(chunks):
            prompt, chunk = first
            while True:
                for piece in _pieces(gathering, prompt, _checked(chunk), chat=chat):
                    yield _event(_encode(piece))
                try:
                    prompt, chunk = await anext(chunks)
                except StopAsyncIteration:
                    break
        if body.include_usage:
            yield _event(_encode(gathering.usage_piece(chat=chat)))
    except Exception as error:  # noqa: BLE001 - the status has gone: told in the stream
        _name_field(error, chat=chat)
        yield _event(errors.in_stream(error, home))
        return
    yield _event(b"[DONE]")


def _pieces(gathering: Gathering, prompt: int, chunk: Chunk, *, chat: bool) -> list[Any]:
    if chat:
        return list(gathering.chat_pieces(chunk))
    piece = gathering.completion_piece(prompt, chunk)
    return [] if piece is None else [piece]


def _checked(chunk: Chunk) -> Chunk:
    """The chunk; raises when it says that the request failed or was cut."""
    if chunk.error is not None:
        raise from_code(chunk.code or "worker", chunk.error)
    if chunk.finish == "cancelled":
        raise _cut_short()
    return chunk


def _check_model(model: str) -> None:
    """Raises FieldError for what can be no model's name."""
    try:
        ModelRef.parse(model)
    except InvalidError as error:
        raise FieldError(error.message, "model") from None


def _name_field(error: BaseException, *, chat: bool) -> None:
    """Which field is at fault: a model that isn't there or fits nowhere, else what was to be
    answered; those who found out don't know what it is called here."""
    if not isinstance(error, InvalidError | NotFoundError) or error.param is not None:
        return
    if isinstance(error, UnfittableError | NotFoundError):
        error.param = "model"
    else:
        error.param = "messages" if chat else "prompt"


def _cut_short() -> UnavailableError:
    return UnavailableError("cannot finish the answer: it was cut short; send it again")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
