"""What a program says to its bus, checked where it says it: the daemon would end the connection."""

from __future__ import annotations

import functools
import inspect
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.wording import shown

P = ParamSpec("P")
T = TypeVar("T")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Have a method's options checked before anything else: InvalidError. numpy's numbers are taken
    as Python's. None is for those alone whose default it is."""
    options = {
        name: (_OPTIONS[name], parameter.default is None)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name in _OPTIONS
    }

    def check(given: dict[str, Any]) -> None:
        for name, value in given.items():
            found = options.get(name)
            if found is not None and not (value is None and found[1]):
                given[name] = found[0](name, value)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def begin(*arguments: P.args, **given: P.kwargs) -> Any:
            check(given)
            return await function(*arguments, **given)

        return begin  # type: ignore[return-value]  # it is one, too

    @functools.wraps(function)
    def call(*arguments: P.args, **given: P.kwargs) -> T:
        if given:
            check(given)
        return function(*arguments, **given)

    return call


def timeout(name: str, value: Any) -> float:
    """Seconds, at most some years; those that are over are none."""
    found = _real(name, value)
    if not found <= limits.EXPECTED_S_MAX:  # nor a NaN
        raise InvalidError(
            f"cannot use {name} {shown(value)}: give at most {limits.EXPECTED_S_MAX:g} seconds"
        )
    return max(0.0, found)


def seconds(name: str, value: Any) -> float:
    """Seconds from now, 0 or more."""
    found = _real(name, value)
    if not 0 <= found <= limits.EXPECTED_S_MAX:
        raise InvalidError(
            f"cannot use {name} {shown(value)}: from 0 to {limits.EXPECTED_S_MAX:g} seconds"
        )
    return found


def deadline(name: str, value: Any) -> float:
    """Seconds from now, more than 0."""
    found = _real(name, value)
    if not 0 < found <= limits.EXPECTED_S_MAX:
        raise InvalidError(
            f"cannot use {name} {shown(value)}: give seconds from now, more than 0 and at most "
            f"{limits.EXPECTED_S_MAX:g}, or None for no deadline"
        )
    return found


def _real(name: str, value: Any) -> float:
    kind = type(value)
    if kind is float:
        found: float = value
        return found
    if kind is bool or not isinstance(value, numbers.Real):
        raise InvalidError(f"cannot use a {kind.__name__} as {name}: give seconds, as a number")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in that range."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise InvalidError(
            f"cannot use a {type(value).__name__} as {name}: give a whole number, {least} to {most}"
        ) from None
    if not least <= found <= most:
        raise InvalidError(f"cannot use {name} {shown(found)}: from {least} to {most}")
    return found


def priority(value: Any) -> int:
    """0 to 100, or `low`, `normal`, `high`."""
    if type(value) is int and limits.PRIORITY_MIN <= value <= limits.PRIORITY_MAX:
        return value
    if isinstance(value, str):
        found = limits.PRIORITIES.get(value)
        if found is None:
            raise InvalidError(
                f"cannot use priority {shown(value)}: give low, normal, high or 0 to 100"
            )
        return found
    return whole("priority", value, limits.PRIORITY_MIN, limits.PRIORITY_MAX)


def prefetch(value: Any) -> int:
    """How many messages may come before they are asked for."""
    return whole("prefetch", value, 1, limits.PREFETCH_MAX)


def text(name: str, value: Any) -> str:
    """A text that can be sent."""
    if not isinstance(value, str):
        raise InvalidError(f"cannot use a {type(value).__name__} as {name}: give a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidError(f"cannot use that as {name}: {error}") from None
    return str(value)


def headers(name: str, value: Any) -> dict[str, str]:
    """Texts by name."""
    if not isinstance(value, Mapping):
        raise InvalidError(
            f"cannot use a {type(value).__name__} as {name}: give a dictionary of texts"
        )
    return {text(f"a name in {name}", key): text(f"a value in {name}", value[key]) for key in value}


def several(name: str, value: Any) -> list[Any]:
    """A list, or what can be made one. A text, or bytes, is one thing."""
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise InvalidError(f"cannot use a {type(value).__name__} as {name}: give a list")
    return list(value)


def shape(value: Any) -> tuple[int, ...]:
    """Of an array."""
    try:
        if isinstance(value, str):
            raise TypeError
        return tuple(operator.index(length) for length in value)
    except TypeError:
        raise InvalidError(
            f"cannot make an array of shape {shown(value)}: give whole numbers, such as (1000, 8)"
        ) from None


def function(value: Any) -> None:
    """Something that can be called."""
    if not callable(value):
        raise InvalidError(f"cannot serve with a {type(value).__name__}: give a function")


_OPTIONS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "id": text,
    "ids": lambda name, value: [text(f"one of {name}", one) for one in several(name, value)],
    "reason": text,
    "delay_s": seconds,
    "deadline_s": deadline,
    "lease_s": seconds,
    "timeout_s": timeout,
    "headers": headers,
}
