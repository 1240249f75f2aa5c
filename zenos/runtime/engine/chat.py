"""From messages to a prompt: the tokenizer's own template, or a plain one.

Templates come with models, and so are not trusted: they run in jinja2's sandbox, without access to
anything but the messages, and with bounds on their length, their loops, their time and what they
write. Time is looked at in each turn of a loop and at each call, filter and test. What one of these
takes is bounded where a short argument makes it long, and so is what is compared: lists that hold
the same list again and again have more in them than memory. The replica's limit of that holds for
all else.
"""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.models import templates

PLAIN: Final = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATE_BYTES_MAX: Final = 256 * limits.KIB
PROMPT_CHARS_MAX: Final = 16 * limits.MIB
RANGE_MAX: Final = 10_000
ITEMS_MAX: Final = 1_000_000  # of a list that a template puts together
NUMBER_BITS_MAX: Final = 4096  # of two numbers whose product or quotient is wanted
_SEQUENCES: Final = (str, list, tuple)
# Filters that write, or go on, for as long as a number says that they are given, and that number.
_BY_NUMBER: Final = frozenset({"batch", "center", "indent", "round", "slice", "tojson"})
FILTER_NUMBER_MAX: Final = 1000
# What compares, or looks up, all that is in a value: filters the items of theirs, calls what they
# are given, tests both sides.
_SORTING: Final = frozenset({"groupby", "max", "min", "sort", "unique"})
_SEEKING: Final = frozenset({"changed", "count", "dict", "fromkeys", "get", "index"})
_COMPARING: Final = frozenset(
    {"eq", "==", "equalto", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "in"}
    | {"gt", "greaterthan", ">", "ge", ">=", "dictsort"}
)
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})


# Until when the rendering that runs in this thread may go on.
_deadline: ContextVar[Callable[[], bool]] = ContextVar("deadline")


class _OverrunError(Exception):
    """A template has had its time."""


class _NothingBefore(CodeGenerator):
    """What is constant would be worked out when a template is read, without a bound."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Sandbox(ImmutableSandboxedEnvironment):
    """No attribute that leads anywhere, no change of what is given, no long range, not for ever."""

    intercepted_binops = frozenset({"*", "**", "+", "/", "//", "%"})
    code_generator_class = _NothingBefore

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Let every loop look at the time, every `~` at the length of what it makes, and every
        comparison and key at how much is in it."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _through("_timed", loop.iter)
        for compared in list(tree.find_all(nodes.Compare)):
            compared.expr = _through("_bounded", compared.expr)
            for operand in compared.ops:
                operand.expr = _through("_bounded", operand.expr)
        for pair in list(tree.find_all(nodes.Pair)):
            pair.key = _through("_bounded", pair.key)
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [_through("_joined", nodes.List(joined.nodes, lineno=joined.lineno))]
        tree.set_environment(self)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As every call of a template goes; macros and `loop()` may call themselves."""
        _check_time()
        if getattr(__obj, "__name__", "") in _SEEKING:
            _check_items(*args)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`."""
        return super().getitem(obj, _bounded(argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Putting text together again and again is how a short template writes a long answer."""
        if operator == "+":
            if isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
                _check_length(len(left) + len(right), text=isinstance(left, str))
            return super().call_binop(context, operator, left, right)
        texts = isinstance(left, _SEQUENCES) or isinstance(right, _SEQUENCES)
        if operator == "**" or (operator == "*" and texts):
            raise jinja2.TemplateRuntimeError("multiplication of this kind is not allowed")
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        return super().call_binop(context, operator, left, right)


def _through(name: str, value: Any) -> nodes.Filter:
    """The expression, with this filter around it."""
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _check_time() -> None:
    if _deadline.get()():
        raise _OverrunError


def _check_length(length: int, *, text: bool) -> None:
    if length > (PROMPT_CHARS_MAX if text else ITEMS_MAX):
        raise jinja2.TemplateRuntimeError("it puts together more than is allowed")


def _check_items(*values: Any) -> None:
    """At what is in them, and in that, as often as it is there."""
    waiting, count = list(values), 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list | tuple):
            count += len(value)
            _check_length(count, text=False)
            waiting += value


def _bounded(value: Any) -> Any:
    _check_items(value)
    return value


def _each_bounded(values: Iterable[Any]) -> Iterator[Any]:
    for value in _timed(values):
        yield _bounded(value)


def _check_bits(bits: int) -> None:
    if bits > NUMBER_BITS_MAX:
        raise jinja2.TemplateRuntimeError("numbers as long as these are not allowed")


def _timed(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _check_time()
        yield value


def _watched(name: str, filter_: Any) -> Callable[..., Any]:
    """The filter or test, which looks at the time first, and at its numbers where they count."""
    behind = 2 if hasattr(filter_, "jinja_pass_arg") else 1  # what is filtered comes before

    @functools.wraps(filter_)
    def watched(*args: Any, **kwargs: Any) -> Any:
        _check_time()
        if name in _BY_NUMBER:
            for given in (*args[behind:], *kwargs.values()):
                if isinstance(given, int) and abs(given) > FILTER_NUMBER_MAX:
                    raise jinja2.TemplateRuntimeError(
                        f"{name} with more than {FILTER_NUMBER_MAX} is not allowed"
                    )
        if name in _SORTING:
            args = (*args[: behind - 1], _each_bounded(args[behind - 1]), *args[behind:])
        elif name == "sum":  # of lists each sum is another list
            args = (*args[: behind - 1], _timed(args[behind - 1]), *args[behind:])
        elif name in _COMPARING:
            _check_items(*args)
        return filter_(*args, **kwargs)

    return watched


def _joined(values: list[Any]) -> str:
    parts = [str(value) for value in values]
    _check_length(sum(map(len, parts)), text=True)
    return "".join(parts)


class ChatTemplate:
    """A model's template. `own` says whether it came with the model.

    Templates may use what transformers' own renderer offers. One that can't be used fails the
    chats, when they come, and nothing else of the model. `overran`: it has had its time with some
    messages, and so may have it with any.
    """

    def __init__(
        self,
        source: str | None,
        special: dict[str, str],
        broken: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own = source is not None
        self.overran = False
        self._now = now
        self._special = special
        self._broken = broken
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=templates.EXTENSIONS,
            optimized=False,  # as in _NothingBefore
        )
        del environment.globals["lipsum"]  # as much text as its arguments say, in one call
        environment.globals["raise_exception"] = _raise
        environment.globals["range"] = _range
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _tojson
        named: dict[str, Any]
        for named in (environment.filters, environment.tests):
            named |= {name: _watched(name, one) for name, one in named.items()}
        environment.filters |= {"_timed": _timed, "_joined": _joined, "_bounded": _bounded}
        try:
            self._template = environment.from_string(source or PLAIN)
        except (jinja2.TemplateError, RecursionError) as error:
            self._broken = str(error)

    @classmethod
    def read(cls, directory: Path) -> ChatTemplate:
        """The template of a model's directory: chat_template.jinja, or tokenizer_config.json's."""
        try:
            config, source = _read(directory)
        except (OSError, ValueError, InvalidError) as error:
            return cls(None, {}, str(error))
        if source is not None and len(source) > TEMPLATE_BYTES_MAX:
            return cls(None, {}, "it is too long")
        special = {
            name: _text(config[name])
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if config.get(name)
        }
        return cls(source, special)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The prompt. InvalidError for messages that the template doesn't take, or not in time."""
        if self._broken:
            raise InvalidError(f"cannot use the model's chat template: {self._broken[:200]}")
        for message in messages:
            if message.get("role") not in ROLES:
                role = str(message.get("role"))[:40]
                raise InvalidError(
                    f"cannot use the role {role!r}: one of {', '.join(sorted(ROLES))}"
                )
        end = self._now() + limits.CHAT_TEMPLATE_S
        before = _deadline.set(lambda: self._now() > end)
        try:
            return self._written(messages)
        except InvalidError:
            raise
        except _OverrunError:
            self.overran = True
            raise InvalidError(
                "cannot use the model's chat template: it takes longer than "
                f"{limits.CHAT_TEMPLATE_S:g} s for these messages; ask for a completion instead"
            ) from None
        except Exception as error:
            # A template is a program of the model's author: it may fail in any way.
            raise InvalidError(
                f"cannot use these messages with the model's chat template: {str(error)[:200]}"
            ) from error
        finally:
            _deadline.reset(before)

    def _written(self, messages: list[dict[str, Any]]) -> str:
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(
            messages=messages, add_generation_prompt=True, **self._special
        ):
            length += len(piece)
            if length > PROMPT_CHARS_MAX:
                raise InvalidError("cannot use these messages: the prompt becomes too long")
            pieces.append(piece)
        return "".join(pieces)


def _read(directory: Path) -> tuple[dict[str, Any], str | None]:
    """tokenizer_config.json, and the template of that or of chat_template.jinja."""
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_bytes()) if path.exists() else {}
    if not isinstance(config, dict):
        raise InvalidError("tokenizer_config.json is not a mapping")
    if (directory / templates.FILE).exists():
        return config, (directory / templates.FILE).read_text(encoding="utf-8")
    return config, templates.of_config(config)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(datetime.UTC).astimezone().strftime(form)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """Without HTML's escapes, which the filter of jinja2 puts in."""
    known = {name: options[name] for name in ("separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=False, indent=indent, **known)


def _raise(message: str) -> None:
    raise jinja2.TemplateRuntimeError(message)


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > RANGE_MAX:
        raise jinja2.TemplateRuntimeError(f"a range of more than {RANGE_MAX} is not allowed")
    return made


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)
