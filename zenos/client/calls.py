"""The requests of the HTTP interface as values: what both the sync and the async client send."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec

from zenos.client.build import absolute
from zenos.client.decoding import decode
from zenos.client.types import (
    ArrayView,
    History,
    ModelVersion,
    NodeView,
    Removed,
    Status,
    TaskThreads,
    TaskView,
)
from zenos.core import limits
from zenos.core.arrays import ArraySpec
from zenos.core.batches import Batch, BatchSpec
from zenos.core.dependencies import check_task_name
from zenos.core.errors import InvalidError
from zenos.core.names import ModelRef, check_name
from zenos.core.outlook import Plan, Why
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, State, Task, TaskSpec

T = TypeVar("T")
S = TypeVar("S", TaskSpec, ArraySpec, BatchSpec, DeploymentSpec)
Mode = Literal["suspend", "drain", "leave"]
ANSWER_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 3600.0  # whole models are read, hashed and written


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request.

    into: the type of the answer. gone: the answer where a request that may have been carried out
    before is answered with "not found" (a deletion sent again). repeatable: sent twice, it does
    what it does once; if not, a lost connection is told to the caller.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    into: type[T]
    body: bytes | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = ANSWER_TIMEOUT_S
    gone: T | None = None
    repeatable: bool = True

    def __post_init__(self) -> None:
        for name, value in {**self.params, **self.headers}.items():
            _check_text(name, value)

    def decode(self, content: bytes) -> T:
        """The answer; raises UnavailableError."""
        return decode(content, self.into)


def _check_text(name: str, value: Any) -> None:
    """Raises InvalidError for what an address or a header can't have."""
    if not isinstance(value, str | int | float):
        raise InvalidError(f"cannot use {type(value).__name__} as {name}: give a text or a number")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise InvalidError(f"cannot use this {name}: it is not Unicode") from None


class TaskList(msgspec.Struct):
    """Answer of GET /api/tasks."""

    tasks: list[TaskView]
    arrays: list[ArrayView] = []


class NodeList(msgspec.Struct):
    """Answer of GET /api/nodes."""

    nodes: list[NodeView]


class ModelList(msgspec.Struct):
    """Answer of GET /api/models."""

    models: list[ModelVersion]
    damaged: dict[str, str] = {}


class DeploymentList(msgspec.Struct):
    """Answer of GET /api/deployments."""

    deployments: list[Deployment]


class Path_(msgspec.Struct):  # noqa: N801 - `Path` is the standard library's
    """Answer of POST /api/models/export."""

    path: str


class Health(msgspec.Struct):
    """Answer of GET /health."""

    status: str
    version: str


def _post(
    path: str,
    body: Any,
    into: type[T],
    *,
    key: str | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
    repeatable: bool = True,
) -> Call[T]:
    key = secrets.token_urlsafe(16) if key is None else key
    is_plain = isinstance(key, str) and key.isascii() and key.isprintable()
    # Blanks at its ends, of which HTTP knows nothing, would make it another one.
    fits = is_plain and 1 <= len(key) <= limits.IDEMPOTENCY_KEY_CHARS_MAX
    if not fits or key != key.strip():
        raise InvalidError(
            f"cannot use this key: give 1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII "
            "characters, without blanks at the ends"
        )
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    return Call(
        method="POST",
        path=path,
        into=into,
        body=encoded(body),
        headers=headers,
        timeout_s=timeout_s,
        repeatable=repeatable,
    )


def encoded(body: Any) -> bytes:
    """As JSON. Raises InvalidError for what that hasn't, with the name of the field."""
    try:
        check_numbers("", body)
        return msgspec.json.encode(body)
    except RecursionError:
        raise InvalidError("cannot send this request: it is nested too deeply") from None
    except UnicodeEncodeError:
        name, text = next(_no_unicode("a text", body), ("a text", "in it"))
        raise InvalidError(
            f"cannot use {name} {text[:64]!a}: it has bytes that are not UTF-8; write it in UTF-8 "
            "(a file whose name has such bytes can be renamed)"
        ) from None
    except (TypeError, OverflowError) as error:
        raise InvalidError(f"cannot send this request: {error}") from None


def _no_unicode(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The texts that can't be sent, each with the nearest name above it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield name, value
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from _no_unicode(field, getattr(value, field))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _no_unicode(name, key)
            yield from _no_unicode(ascii(key)[1:-1][:64], inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _no_unicode(name, inner)


def check_numbers(name: str, value: Any) -> None:
    """Raises InvalidError for a number that cannot be sent, however deep it stands.

    Of NaN and infinity the encoder would make null, which means the default; of whole numbers it
    takes those of 64 bits. name: the nearest one above it.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidError(f"cannot use {name} {value}: it must be a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            shown = value if abs(value) < 10**30 else "that"  # Python prints no very long numbers
            raise InvalidError(f"cannot use {name} {shown}: it must be a number of 64 bits")
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            check_numbers(field, getattr(value, field))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_numbers(str(key)[:64], inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_numbers(name, inner)


def _sent(spec: S, type_: type[S]) -> S:
    """The specification, once it is known that it may be used. InvalidError."""
    if not isinstance(spec, type_):
        raise InvalidError(f"cannot use {type(spec).__name__}: give a {type_.__name__}")
    with suppress(UnicodeEncodeError):  # `encoded` says which text it is
        spec.check()
    return spec


def _task(name: str) -> str:
    return quote(check_task_name(name), safe="")


def _model(ref: str) -> str:
    return quote(str(ModelRef.parse(ref)), safe=":")


# -- the system


def health() -> Call[Health]:
    """That the daemon answers."""
    return Call(method="GET", path="/health", into=Health, timeout_s=5)


def status() -> Call[Status]:
    """The daemon, its nodes, and its tasks by state."""
    return Call(method="GET", path="/api/status", into=Status)


def nodes() -> Call[NodeList]:
    """All nodes."""
    return Call(method="GET", path="/api/nodes", into=NodeList)


def set_cordon(node: str, verb: Literal["cordon", "drain", "uncordon"]) -> Call[NodeView]:
    """What may start on a node."""
    name = quote(check_name(node, "node name"), safe="")
    return _post(f"/api/nodes/{name}/{verb}", {}, NodeView)


def shutdown(mode: Mode) -> Call[dict[str, Any]]:
    """Ask the daemon to go down."""
    return _post("/api/shutdown", {"mode": mode}, dict[str, Any], repeatable=False)


# -- tasks


def submit(spec: TaskSpec, key: str | None) -> Call[Task]:
    """Submit a task."""
    return _post("/api/tasks", _sent(spec, TaskSpec), Task, key=key)


def tasks(state: State | str | None, kind: str | None, limit: int | None) -> Call[TaskList]:
    """Tasks, the newest first."""
    given = {"state": state and str(state), "kind": kind and str(kind), "limit": limit}
    params = {name: value for name, value in given.items() if value is not None}
    return Call(method="GET", path="/api/tasks", into=TaskList, params=params)


def tasks_of(
    array: str, state: State | str | None, kind: str | None, limit: int | None
) -> Call[TaskList]:
    """The tasks of an array."""
    call = tasks(state, kind, limits.TASKS_LISTED_MAX if limit is None else limit)
    return replace(call, params={**call.params, "array": array})


def collapsed(state: State | str | None, kind: str | None, limit: int | None) -> Call[TaskList]:
    """As `tasks`, with arrays as wholes."""
    call = tasks(state, kind, limit)
    return replace(call, params={**call.params, "collapse": "true"})


def submit_array(spec: ArraySpec, key: str | None) -> Call[ArrayView]:
    """Submit an array."""
    return _post("/api/arrays", _sent(spec, ArraySpec), ArrayView, key=key)


def submit_batch(tasks: Sequence[TaskSpec], key: str | None) -> Call[Batch]:
    """Submit several tasks as one."""
    if not isinstance(tasks, Iterable):
        raise InvalidError(f"cannot submit {type(tasks).__name__}: give a list of TaskSpecs")
    spec = BatchSpec(tasks=tuple(_sent(task, TaskSpec) for task in tasks))
    return _post("/api/batches", _sent(spec, BatchSpec), Batch, key=key)


def array(id_: str) -> Call[ArrayView]:
    """One array."""
    return Call(method="GET", path=f"/api/arrays/{_task(id_)}", into=ArrayView)


def cancel_array(id_: str) -> Call[ArrayView]:
    """Cancel all tasks of an array."""
    return _post(f"/api/arrays/{_task(id_)}/cancel", {}, ArrayView)


def task(id_: str) -> Call[TaskView]:
    """One task."""
    return Call(method="GET", path=f"/api/tasks/{_task(id_)}", into=TaskView)


def threads(id_: str) -> Call[TaskThreads]:
    """What a task's threads do."""
    return Call(method="GET", path=f"/api/tasks/{_task(id_)}/threads", into=TaskThreads)


def why(id_: str) -> Call[Why]:
    """Why a task waits, runs where it runs, or ended."""
    return Call(method="GET", path=f"/api/tasks/{_task(id_)}/why", into=Why)


def history(id_: str) -> Call[History]:
    """What has become of a task."""
    return Call(method="GET", path=f"/api/tasks/{_task(id_)}/history", into=History)


def plan(ahead_s: float | None) -> Call[Plan]:
    """The schedule ahead."""
    params: dict[str, str | int] = {} if ahead_s is None else {"ahead_s": str(ahead_s)}
    return Call(method="GET", path="/api/plan", into=Plan, params=params)


def cancel(id_: str) -> Call[Task]:
    """Cancel a task."""
    return _post(f"/api/tasks/{_task(id_)}/cancel", {}, Task)


def pause(id_: str) -> Call[Task]:
    """Pause a task."""
    return _post(f"/api/tasks/{_task(id_)}/pause", {}, Task)


def suspend(id_: str) -> Call[Task]:
    """Suspend a task."""
    return _post(f"/api/tasks/{_task(id_)}/suspend", {}, Task)


def resume(id_: str, *, inexact: bool) -> Call[Task]:
    """Let a task go on."""
    path = f"/api/tasks/{_task(id_)}/resume"
    return _post(path, {"inexact": inexact}, Task)


def nice(id_: str, priority: int) -> Call[Task]:
    """Give a task another priority."""
    return _post(f"/api/tasks/{_task(id_)}/nice", {"priority": priority}, Task)


def log(id_: str, offset: int, *, follow: bool, generation: int | None = None) -> Call[bytes]:
    """The log of a task's newest worker, or of that of a generation, from a byte on."""
    params: dict[str, str | int] = {"offset": offset, "follow": "true" if follow else "false"}
    if generation is not None:
        params["generation"] = generation
    return Call(method="GET", path=f"/api/tasks/{_task(id_)}/log", into=bytes, params=params)


def events(task_id: str | None, after: int | None) -> Call[bytes]:
    """Events of one task or of all, after a sequence number (None: from now on)."""
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    params = {"task": task_id} if task_id else {}
    return Call(method="GET", path="/api/events", into=bytes, params=params, headers=headers)


# -- models


def models() -> Call[ModelList]:
    """All versions of all models."""
    return Call(method="GET", path="/api/models", into=ModelList)


def model(ref: str) -> Call[ModelVersion]:
    """One version."""
    return Call(method="GET", path=f"/api/models/{_model(ref)}", into=ModelVersion)


def remove(ref: str) -> Call[Removed]:
    """Remove a version."""
    return Call(
        method="DELETE",
        path=f"/api/models/{_model(ref)}",
        into=Removed,
        gone=Removed(removed=ref, freed_bytes=0),
    )


def alias(name: str, alias_: str, version: int) -> Call[ModelVersion]:
    """Let an alias name a version."""
    body = {"alias": alias_, "version": version}
    path = f"/api/models/{_model(name)}/aliases"
    return _post(path, body, ModelVersion)


def copy(source: str, target: str) -> Call[ModelVersion]:
    """Register a version under another name too."""
    body = {"source": source, "target": target}
    return _post("/api/models/copy", body, ModelVersion, timeout_s=COPY_TIMEOUT_S)


def import_model(path: str | Path, name: str) -> Call[ModelVersion]:
    """Register a directory on the daemon's machine."""
    body = {"path": absolute(path), "name": name}
    return _post("/api/models/import", body, ModelVersion, timeout_s=COPY_TIMEOUT_S)


def export_model(ref: str, path: str | Path) -> Call[Path_]:
    """Write a directory on the daemon's machine."""
    body = {"ref": ref, "path": absolute(path)}
    return _post("/api/models/export", body, Path_, timeout_s=COPY_TIMEOUT_S)


# -- serving


def deployments() -> Call[DeploymentList]:
    """All deployments."""
    return Call(method="GET", path="/api/deployments", into=DeploymentList)


def deploy(spec: DeploymentSpec, key: str | None) -> Call[Deployment]:
    """Deploy a model, or change its deployment."""
    return _post("/api/deployments", _sent(spec, DeploymentSpec), Deployment, key=key)


def roll_back(name: str, to: int | None) -> Call[Deployment]:
    """POST /api/deployments/{name}/rollback. Without a number it goes one further each time."""
    path = f"/api/deployments/{_model(name)}/rollback"
    return _post(path, {"to": to}, Deployment)


def undeploy(name: str) -> Call[Deployment]:
    """Stop a deployment."""
    path = f"/api/deployments/{_model(name)}"
    return Call(method="DELETE", path=path, into=Deployment)


def generate(
    model: str,
    prompt: str | Sequence[int] | None,
    messages: Sequence[Mapping[str, Any]] | None,
    settings: Mapping[str, Any],
) -> Call[bytes]:
    """Generate, streamed. settings: OpenAI's fields and `priority`; None leaves one out."""
    if (prompt is None) == (messages is None):
        raise InvalidError("cannot tell what to generate: give either 'prompt' or 'messages'")
    body: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    body.update(model=model, stream=True, stream_options={"include_usage": True})
    if messages is not None:
        if not isinstance(messages, list | tuple):
            raise InvalidError("cannot use these messages: give a list of mappings")
        count = body.pop("logprobs", None)
        if count is not None:
            body.update(logprobs=True, top_logprobs=count)
        body.pop("echo", None)
        body["messages"] = list(messages)
        return _post("/v1/chat/completions", body, bytes)
    # The numbers of bytes would be taken for tokens.
    if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes | bytearray):
        raise InvalidError(f"cannot generate from {type(prompt).__name__}: give a text, or tokens")
    body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    return _post("/v1/completions", body, bytes)
