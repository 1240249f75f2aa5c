"""Writes docs/reference/bus.md from the bus itself: `python -m zenos.bus.reference`."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, Final

from zenos.bus import aio, aio_topics, bodies, codec, sync, sync_topics

HEAD: Final = """# Bus

Written by `python -m zenos.bus.reference` from the bus itself. [The chapter on
messages](../messages.md) shows it at work, and says what holds under faults.

```python
import zenos

with zenos.bus.connect() as bus:
    jobs = bus.topic("jobs", durable=True)
    jobs.send({"page": 7}, id="page-7")
    with jobs.receive(timeout_s=10) as job:
        print(job.body["page"])
```

In a coroutine, `async with zenos.bus.connect_async() as bus:` gives the same with the methods
to await; what differs has a heading of its own, below those for threads.

## Errors

All are of `zenos.core.errors`, and a `ZenosError`, whose `message` says what was wrong and what
to do.

| error | of | when |
| --- | --- | --- |
| `NoDaemonError` | `connect`, everything | no daemon lets it in within the time given |
| `UnauthorizedError` | `connect` | the daemon doesn't know this token |
| `RefusedError` | everything | the task may not use that topic: see `zenos submit --topic` |
| `InvalidError` | `send`, `read`, … | what can't be used; a bus from before a fork |
| `DeadlineError` | `receive`, `call`, `send`, … | nothing came, or no answer, within `timeout_s` |
| `BusyError` | `send`, `publish`, `call` | the topic was full until `timeout_s` |
| `BusyError` | the same | shared memory is full, or the topic refuses |
| `UnavailableError` | `call` | who had the call went away, or the daemon did |
| `UnavailableError` | durable `send`, `ack` | the daemon can't write to its database: try again |
| `UnavailableError` | everything | the bus was closed |
| `ConflictError` | `ack`, `nack`, `extend` | the lease has ended: the message is somebody else's |
| `ConflictError` | `subscribe` | twice the same topic over one connection |
| `TooLargeError` | `send`, `buffer`, … | it never fits into the connection's shared memory |
| `HandleError` | `body` | shared memory that came with a message makes no sense |
| `WorkerError` | `call` | what served it raised something that is no `ZenosError` |
"""
# Public for the bus's own modules, or of the interpreter's protocols.
_INTERNAL: Final = frozenset(
    (
        *("act", "act_before_more", "beat", "begin", "done", "encode", "forget", "in_thread"),
        *("inline", "let_go", "receive_now", "run", "send_now", "share", "wake"),
    )
)
_PAIRS: Final = (
    ("Bus", sync.Bus, aio.AsyncBus),
    ("Topic", sync_topics.Topic, aio_topics.Topic),
    ("Message", sync_topics.Message, aio_topics.Message),
    ("Messages", sync_topics.Messages, aio_topics.Messages),
    ("Subscription", sync_topics.Subscription, aio_topics.Subscription),
)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for connect in (sync.connect, aio.connect_async):
        parts += [
            f"## zenos.bus.{connect.__name__}\n",
            _callable(f"zenos.bus.{connect.__name__}", connect),
        ]
    for name, type_, loop in _PAIRS:
        parts += _class(f"{name}", type_)
        own, theirs = _members(type_), _members(loop)
        for member, function in theirs.items():
            # Where only the words `async` and `await` are new, there is nothing to say.
            if member not in own or _text(function) != _text(own[member]):
                parts.append(f"### `{member}` in an event loop\n\n{_callable(member, function)}")
    parts.append(
        "What a subscription gives is a message that needs no word: it has all of the above but\n"
        "`ack`, `nack`, `extend`, `reply` and `fail`.\n"
    )
    parts += _class("ArrayBuffer", bodies.ArrayBuffer)
    parts += ["## Codecs\n", f"{_text(codec)}"]
    parts += ["### `register`\n", _callable("zenos.bus.register", codec.register)]
    parts += [f"### `Codec`\n\n{_text(codec.Codec)}", f"### `Encoded`\n\n{_text(bodies.Encoded)}"]
    return "\n".join(parts)


def _class(name: str, type_: type) -> list[str]:
    parts = [f"## {name}\n", _text(type_)]
    for member, value in _members(type_).items():
        shown = _text(value.fget) if isinstance(value, property) else _callable(member, value)
        parts.append(f"### `{member}`\n\n{shown}")
    return parts


def _members(type_: type) -> dict[str, Any]:
    """What users see of it, and of what it stands on, by name."""
    found: dict[str, Any] = {}
    for base in type_.__mro__:
        if base.__module__.startswith("zenos.bus"):
            for name, member in vars(base).items():
                shown = isinstance(member, property) or callable(member)
                if shown and not name.startswith("_") and name not in _INTERNAL:
                    found.setdefault(name, member)
    return found


def _callable(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    given = [one for one in signature.parameters.values() if one.name != "self"]
    # Annotations are kept as text, which is shown with quotes.
    shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(signature.replace(parameters=given)))
    word = "await " if inspect.iscoroutinefunction(function) else ""
    return f"    {word}{name}{shown}\n\n{_text(function)}"


def _text(described: Any) -> str:
    return f"{(inspect.getdoc(described) or '').strip()}\n"


if __name__ == "__main__":
    sys.stdout.write(page())
