"""Functions, arguments and results as pickles. What is loaded goes through zenos.threads.codec."""

from __future__ import annotations

import hashlib
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, Final

from zenos.calls.wire import Function
from zenos.core import limits
from zenos.core.errors import InvalidError, TooLargeError, WorkerError
from zenos.threads import codec

TRACEBACK_CHARS: Final = 10_000  # of an error that is too large
_SIMPLE: Final = (int, float, str, bytes, bool, type(None))
_STILL: Final = frozenset({*_SIMPLE, complex, types.ModuleType, types.BuiltinFunctionType})
# The faster way saves a few microseconds for each pickle; to look at more items takes longer.
LOOKED_AT_MAX: Final = 64
NOTHING: Final = codec.dumps(((), {}), simple=True)


def dump(value: Any) -> bytes:
    """The pickle of a value: by the faster way where that comes to the same."""
    return codec.dumps(value, simple=type(value) in _SIMPLE)


def load(body: bytes) -> Any:
    """The value. Raises whatever unpickling raises."""
    return codec.load([body])


def arguments_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> bytes:
    """The pickled arguments of a call. Raises whatever pickling raises, and TooLargeError."""
    if not arguments and not named:
        return NOTHING
    simple = not named and all(type(one) in _SIMPLE for one in arguments)
    return _checked(codec.dumps((arguments, named), simple=simple))


def items_of(items: list[Any]) -> bytes:
    """The pickled items of a chunk."""
    simple = len(items) <= LOOKED_AT_MAX and set(map(type, items)).issubset(_SIMPLE)
    return _checked(codec.dumps(items, simple=simple))


def _checked(body: bytes) -> bytes:
    if len(body) > limits.CALL_BYTES_MAX:
        raise TooLargeError(
            f"cannot send {len(body)} bytes of arguments: a call has at most "
            f"{limits.CALL_BYTES_MAX}; send where they lie, such as the name of a file"
        )
    return body


class Functions:
    """Pickles of functions. What a function refers to may change from one call to the next; so a
    pickle is used again only where it is seen that nothing of that has changed."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], Function]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, work: Callable[..., Any]) -> Function:
        """The function as it is now. InvalidError when it can't be pickled."""
        seen = _seen(work)
        if seen is not None:
            known = self._known.get(work)
            if known is not None and _same(known[0], seen):
                return known[1]
        name = str(getattr(work, "__qualname__", type(work).__name__))
        try:
            body = codec.dumps(work)
        except Exception as error:
            raise InvalidError(
                f"cannot send the function {name} to a lane: {error}; give one that can be pickled"
            ) from error
        if len(body) > limits.CALL_BYTES_MAX:
            raise TooLargeError(
                f"cannot send the function {name}: {len(body)} bytes with what it refers to, at "
                f"most {limits.CALL_BYTES_MAX}; let it read large data from a file"
            )
        made = Function(
            hashlib.sha256(body).digest()[:16], name[: limits.NAME_SHOWN_CHARS_MAX], body
        )
        if seen is not None:
            self._known[work] = (seen, made)
        return made


def _seen(work: Callable[..., Any]) -> tuple[Any, ...] | None:
    """All that a plain function refers to, where none of it can change in place; else None."""
    if not isinstance(work, types.FunctionType):
        return None
    module = sys.modules.get(work.__module__ or "")
    if work.__module__ != "__main__" and getattr(module, work.__qualname__, None) is work:
        return (work.__code__,)  # it goes by its name
    code = work.__code__
    if any(isinstance(constant, types.CodeType) for constant in code.co_consts):
        return None  # functions in it have names of their own
    found: list[Any] = [code]
    found += [work.__globals__[name] for name in code.co_names if name in work.__globals__]
    found += work.__defaults__ or ()
    found += (work.__kwdefaults__ or {}).values()
    try:
        found += [cell.cell_contents for cell in work.__closure__ or ()]
    except ValueError:  # an empty cell
        return None
    if work.__dict__ or not all(map(_is_still, found[1:])):
        return None
    return tuple(found)


def _is_still(one: Any) -> bool:
    """Whether it cannot change in place, or its pickle would not show it: a class of a module."""
    if type(one) is not type:
        return type(one) in _STILL
    module = sys.modules.get(one.__module__)
    return one.__module__ != "__main__" and getattr(module, one.__qualname__, None) is one


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


def error_of(error: BaseException, text: str) -> bytes:
    """An error with its traceback, as it goes back. One that doesn't come through is told."""
    body = dump((codec.sendable(error, "call"), text))
    if len(body) > limits.CALL_BYTES_MAX:
        told = WorkerError(
            f"cannot finish the call: its function raised a {type(error).__name__} of {len(body)} "
            f"bytes; at most {limits.CALL_BYTES_MAX} go back"
        )
        body = dump((told, text[-TRACEBACK_CHARS:]))
    return body


def result_of(value: Any) -> bytes:
    """A result as it goes back. InvalidError when it can't."""
    try:
        body = dump(value)
    except Exception as reason:  # noqa: BLE001 - whatever pickling raises
        raise codec.unsendable(reason) from None
    if len(body) > limits.CALL_BYTES_MAX:
        raise TooLargeError(
            f"cannot send a result of {len(body)} bytes back: at most {limits.CALL_BYTES_MAX}; "
            "write it to a file, and return its name"
        )
    return body
