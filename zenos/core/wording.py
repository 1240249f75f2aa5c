"""What is wrong with given fields, in words for whoever wrote them.

msgspec checks; its messages name Python's types and leave out what would be right.
"""

from __future__ import annotations

import difflib
import enum
import re
import types
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from zenos.core.errors import InvalidError, ZenosError, from_code

SHOWN_CHARS_MAX: Final = 300
_PLACED: Final = re.compile(r"^(.*?) - at (`key` in )?`\$\.?(.*)`$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
_VALUE: Final = re.compile(r"^Invalid (?:enum )?value (.*)$", re.DOTALL)
_TYPE: Final = re.compile(r"^Expected `(.*?)`, got `(.*?)`$")
_NAME: Final = re.compile(r"^Expected `str`(?:, got `(.*?)`)?$")
_STEP: Final = re.compile(r"\[[^\]]*\]|[^.\[]+")
_REASONS: Final = tuple(
    (re.compile(f"^input should be (?:{pattern})"), says)
    for pattern, says in (
        (r"a valid integer.*|a finite integer.*", "give a whole number"),
        (r"a valid number.*|a finite number.*", "give a number"),
        (r"a valid boolean.*", "give true or false"),
        (r"greater than or equal to (\S+)", r"give at least \1"),
        (r"less than or equal to (\S+)", r"give at most \1"),
        (r"greater than (\S+)", r"give more than \1"),
        (r"less than (\S+)", r"give less than \1"),
    )
)
# Whole numbers in requests that people write as fractions elsewhere.
_UNITS: Final = {
    "cpu": "thousandths of a core, 1500 for 1.5",
    "gpu": "thousandths of a GPU, 500 for half of one",
    "memory": "bytes",
}
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


class FieldError(InvalidError):
    """cannot use a field; param: its name, as a path from the outermost object"""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def from_answer(
    code: str, message: str, param: str | None, *, retry_after_s: float | None = None
) -> ZenosError:
    """The error of that code as the daemon answered with it: of a field where it names one."""
    error = from_code(code, message, retry_after_s=retry_after_s)
    if param is not None and type(error) is InvalidError:
        return FieldError(message, param)
    error.param = param
    return error


def shown(value: object, chars: int = 40) -> str:
    """A value as Python writes it, as far as `chars` go; it writes no very long whole number."""
    try:
        return repr(value)[:chars]
    except ValueError:  # of more than 4,300 digits, which may be within something else
        return "so long a number"


def counted(number: int, word: str) -> str:
    """`1 job`, `2 jobs`, `1,249 jobs`: a word that takes an s."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` for the nearest of the known names, or nothing.

    prefix: with which all of them begin; it is shown, and makes no two of them alike.
    """
    bare = [one.removeprefix(prefix) for one in known]
    close = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1, cutoff=0.6)
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


def followed(text: str, more: str) -> str:
    """The text and what else there is to say: after a question as a sentence of its own."""
    return f"{text} {more[:1].upper()}{more[1:]}" if text.endswith("?") else f"{text}; {more}"


def plain_reason(text: str) -> str:
    """Why a parameter of a command line or a query is refused, in place of pydantic's words."""
    text = text.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:].rstrip(".")
    for pattern, says in _REASONS:
        if found := pattern.match(text):
            return found.expand(says)
    return text


def field_error(
    error: Exception, into: Any, name: str = "", beside: Collection[str] = ()
) -> FieldError:
    """The error for what msgspec found wrong with a value of type `into`.

    name: what the value itself is called, where it is not the outermost object. beside: what else
    may stand in the outermost object and has been taken out of it.
    """
    placed = _PLACED.match(str(error))
    text, path = (placed[1], placed[3]) if placed else (str(error), "")
    where = ".".join(filter(None, (name, path)))[:SHOWN_CHARS_MAX]
    if placed and placed[2] and (found := _NAME.match(text)):
        below = f"below {where}" if where else "of a field"
        got = f", not {_word(found[1])}" if found[1] else ""
        return FieldError(f"cannot use a name {below}: give text in quotes{got}", where or None)
    if found := _UNKNOWN.match(text):
        there = [*_fields_at(into, path), *(() if path else beside)]
        hint = nearest(found[1][:100], there) or _elsewhere(found[1][:100], into)
        shown = f"{where}.{found[1]}" if where else found[1]
        shown = shown[:SHOWN_CHARS_MAX]
        return FieldError(f"cannot use the field {shown!r}: it is unknown{hint}", shown)
    if found := _MISSING.match(text):
        shown = f"{where}.{found[1]}" if where else found[1]
        return FieldError(f"cannot do without the field {shown!r}: give it", shown)
    what = where or "this"
    if found := _VALUE.match(text):
        allowed = ", ".join(repr(value) for value in _allowed(into, path))
        says = f"give one of {allowed}" if allowed else "it is none of those allowed"
        return FieldError(f"cannot use {what} {found[1][:SHOWN_CHARS_MAX]}: {says}", where or None)
    if found := _TYPE.match(text):
        wanted, got = _word(found[1]), _word(found[2])
        kinds = found[1].split(" | ")
        if "int" in kinds and "float" not in kinds and found[2] == "float":
            got = "one with a fraction"
            unit = _UNITS.get(where.rpartition(".")[2]) if "resources" in where else None
            wanted += f" ({unit})" if unit else ""
        return FieldError(f"cannot use {what}: give {wanted}, not {got}", where or None)
    text = text[:1].lower() + text[1:].replace("`", "'")
    return FieldError(f"cannot use {what}: {text[:SHOWN_CHARS_MAX]}", where or None)


def _word(kinds: str) -> str:
    return " or ".join(_WORDS.get(kind.strip(), kind.strip()) for kind in kinds.split("|"))


def _alternatives(type_: Any) -> Iterator[Any]:
    """The types that a type stands for: of a union each, without annotations."""
    origin = get_origin(type_)
    if origin is Annotated:
        yield from _alternatives(get_args(type_)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(type_):
            yield from _alternatives(one)
    else:
        yield type_


def _structs(type_: Any) -> Iterator[Any]:
    for one in _alternatives(type_):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            yield one


def _at(type_: Any, path: str) -> Iterator[Any]:
    """The types that may stand at a path like `a.b[0].c`."""
    found = list(_alternatives(type_))
    for step in _STEP.findall(path):
        below: list[Any] = []
        for one in found:
            if step.startswith("["):
                below += get_args(one)[-1:]
            elif isinstance(one, type) and issubclass(one, msgspec.Struct):
                hints = get_type_hints(one)
                below += [
                    hints[f.name] for f in msgspec.structs.fields(one) if f.encode_name == step
                ]
        found = [deeper for one in below for deeper in _alternatives(one)]
    yield from found


def _fields_at(type_: Any, path: str) -> Iterator[str]:
    for one in _at(type_, path):
        for struct in _structs(one):
            yield from (field.encode_name for field in msgspec.structs.fields(struct))


def _elsewhere(name: str, into: Any) -> str:
    """As `nearest`, among all that `into` can hold at any depth: where the field belongs."""
    places: dict[str, str] = {}
    for place in _all_fields(into):
        places.setdefault(place.rpartition(".")[2], place)
    close = difflib.get_close_matches(name, sorted(places), n=1, cutoff=0.6)
    return f"; did you mean {places[close[0]]!r}?" if close else ""


def _all_fields(type_: Any, above: str = "", seen: tuple[Any, ...] = ()) -> Iterator[str]:
    """Paths of the fields of a struct, and after them of those of all structs that it can hold."""
    for one in _alternatives(type_):
        for inner in get_args(one):
            yield from _all_fields(inner, above, seen)
    for struct in _structs(type_):
        if struct in seen:
            continue
        hints = get_type_hints(struct)
        fields = msgspec.structs.fields(struct)
        yield from (above + field.encode_name for field in fields)
        for field in fields:
            below = f"{above}{field.encode_name}."
            yield from _all_fields(hints[field.name], below, (*seen, struct))


def _allowed(type_: Any, path: str) -> list[Any]:
    """The values that may stand at a path, where they are listed: literals, enums, tags."""
    values: list[Any] = []
    for one in _at(type_, path):
        if get_origin(one) is Literal:
            values += get_args(one)
        elif isinstance(one, type) and issubclass(one, enum.Enum):
            values += [member.value for member in one]
    parent, _, last = path.rpartition(".")
    for one in _at(type_, parent):
        for struct in _structs(one):
            config = struct.__struct_config__
            if config.tag is not None and config.tag_field == last:
                values.append(config.tag)
    return values
