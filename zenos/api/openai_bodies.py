"""What OpenAI's clients send, and its translation into requests for the engine.

Fields fall into four groups: used; ignored since they are hints or labels (`user`, `metadata`, …);
known but not supported, accepted while they say what zenos does anyway (`presence_penalty: 0`);
and unknown, refused with the nearest name. Those of the second and third group are the same for
completions and for chats: programs send to both what they have set for either.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final, Literal

import msgspec

from zenos.core import limits
from zenos.core.wire import SEED_MAX, SEED_MIN, GenerateRequest, Sampling
from zenos.core.wording import FieldError


def _from(low: float, high: float) -> msgspec.Meta:
    """Bounds for the published schema; they are checked where the message can say more."""
    return msgspec.Meta(extra_json_schema={"minimum": low, "maximum": high})


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """include_usage: one more event at the end with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of completions take.

    priority: zenos' own: 0 to 100, higher first. timeout_s: zenos' own: seconds within which the
    answer must be there. Other fields are as OpenAI describes them.
    """

    model: str
    temperature: Annotated[float, _from(0, 2)] | None = None
    top_p: Annotated[float, _from(0, 1)] | None = None
    n: Annotated[int, _from(1, limits.CHOICES_MAX)] | None = None
    max_tokens: Annotated[int, _from(1, limits.MAX_TOKENS_MAX)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, _from(SEED_MIN, SEED_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: Annotated[int, _from(limits.PRIORITY_MIN, limits.PRIORITY_MAX)] | None = None
    timeout_s: Annotated[float, _from(0.001, limits.REQUEST_DEADLINE_S)] | None = None
    # Known, not supported: see _NEUTRAL.
    frequency_penalty: Annotated[float, _from(0, 0)] | None = None
    presence_penalty: Annotated[float, _from(0, 0)] | None = None
    logit_bias: dict[str, float] | None = None
    best_of: Annotated[int, _from(1, limits.CHOICES_MAX)] | None = None  # see _check_supported
    suffix: str | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    # Hints and labels: taken and not used.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions. prompt: text, tokens, or a list of either."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, _from(0, limits.LOGPROBS_MAX)] | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatBody(Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: Annotated[int, _from(1, limits.MAX_TOKENS_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, _from(0, limits.LOGPROBS_MAX)] | None = None


# Values, besides null, that say what happens anyway.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
}


def completion_requests(body: CompletionBody) -> list[GenerateRequest]:
    """One request for each prompt; raises InvalidError."""
    _check_supported(body)
    sampling = _sampling(body, body.logprobs, body.max_tokens, limits.MAX_TOKENS_DEFAULT)
    prompts = _prompts(body.prompt)
    return [
        GenerateRequest(
            id=f"cmpl-{secrets.token_hex(12)}",
            prompt=prompt if isinstance(prompt, str) else None,
            tokens=None if isinstance(prompt, str) else prompt,
            sampling=sampling,
            priority=_priority(body),
            echo=bool(body.echo),
        )
        for prompt in prompts
    ]


def chat_request(body: ChatBody) -> GenerateRequest:
    """The request for a conversation; raises InvalidError."""
    _check_supported(body)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise FieldError(
            "cannot use both max_tokens and max_completion_tokens: give one",
            "max_completion_tokens",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise FieldError("cannot use top_logprobs without logprobs: true", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if not body.messages:
        raise FieldError("cannot answer nothing: give at least one message", "messages")
    if len(body.messages) > limits.MESSAGES_MAX:
        raise FieldError(
            f"cannot take more than {limits.MESSAGES_MAX} messages in one request", "messages"
        )
    return GenerateRequest(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        messages=[_message(i, message) for i, message in enumerate(body.messages)],
        sampling=_chat_sampling(body, logprobs, most),
        priority=_priority(body),
    )


def _chat_sampling(body: ChatBody, logprobs: int | None, most: int | None) -> Sampling:
    """Errors name the fields that were sent: a chat has other names for two of them."""
    names = {"logprobs": "top_logprobs"}
    if body.max_tokens is None:
        names["max_tokens"] = "max_completion_tokens"
    try:
        return _sampling(body, logprobs, most, None)
    except FieldError as error:
        if (said := error.param) is None or (name := names.get(said)) is None:
            raise
        raise FieldError(error.message.replace(said, name, 1), name) from None


def _check_supported(body: Common) -> None:
    for name, neutral in _NEUTRAL.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            raise FieldError(f"cannot use {name}: zenos does not support it; leave it out", name)
    if body.best_of is not None and body.best_of != (1 if body.n is None else body.n):
        raise FieldError("cannot use best_of: zenos returns all n choices", "best_of")
    if body.stream_options is not None and not body.stream:
        raise FieldError("cannot use stream_options without stream: true", "stream_options")


def _sampling(
    body: Common, logprobs: int | None, max_tokens: int | None, otherwise: int | None
) -> Sampling:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        max_tokens=otherwise if max_tokens is None else max_tokens,
        stop=stop,
        seed=body.seed,
        n=1 if body.n is None else body.n,
        logprobs=logprobs,
    )
    sampling.check()
    return sampling


def deadline_s(body: Common) -> float:
    """Seconds within which all of the answer must be there."""
    if body.timeout_s is None:
        return limits.REQUEST_DEADLINE_S
    if not 0.001 <= body.timeout_s <= limits.REQUEST_DEADLINE_S:  # NaN is neither
        most = f"{limits.REQUEST_DEADLINE_S:g}"
        raise FieldError(f"cannot use that timeout_s: from 0.001 to {most}", "timeout_s")
    return body.timeout_s


def _priority(body: Common) -> int:
    if body.priority is None:
        return limits.PRIORITY_NORMAL
    if not limits.PRIORITY_MIN <= body.priority <= limits.PRIORITY_MAX:
        raise FieldError(
            f"cannot use that priority: from {limits.PRIORITY_MIN} to {limits.PRIORITY_MAX}",
            "priority",
        )
    return body.priority


def _prompts(prompt: str | list[str | int | list[int]] | None) -> list[str | list[int]]:
    if prompt is None or prompt == []:
        raise FieldError("cannot complete nothing: give a prompt", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [_tokens([item for item in prompt if isinstance(item, int)])]
    if any(isinstance(item, int) for item in prompt):
        raise FieldError("cannot use a prompt of tokens mixed with others", "prompt")
    if len(prompt) > limits.PROMPTS_MAX:
        raise FieldError(
            f"cannot take {len(prompt)} prompts in one request: at most {limits.PROMPTS_MAX}",
            "prompt",
        )
    return [p if isinstance(p, str) else _tokens(p) for p in prompt if not isinstance(p, int)]


def _tokens(tokens: list[int]) -> list[int]:
    if not tokens:
        raise FieldError("cannot complete nothing: a prompt has no tokens", "prompt")
    if not 0 <= min(tokens) <= max(tokens) < 2**31:
        raise FieldError("cannot use these tokens: they are numbers of 0 or more", "prompt")
    return tokens


def _message(number: int, message: Message) -> dict[str, Any]:
    where = f"messages[{number}]"
    if message.tool_calls:
        raise FieldError(f"cannot use {where}: zenos does not support tools", where)
    content = message.content
    if content is None:
        raise FieldError(f"cannot use {where}: its content is missing", f"{where}.content")
    if not isinstance(content, str):
        for part in content:
            if part.type != "text" or part.text is None:
                raise FieldError(
                    f"cannot use a part of type {part.type[:40]!r} in {where}: "
                    "this model reads text only",
                    f"{where}.content",
                )
        content = "".join(part.text or "" for part in content)
    # Chat templates know `system`; `developer` is its newer name.
    role = "system" if message.role == "developer" else message.role
    made: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        made["name"] = message.name
    return made
