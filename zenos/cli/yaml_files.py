"""YAML as people mean it, and JSON: numbers, keys, aliases and a program's arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

# More than a file without aliases can hold (train_flags.SPEC_BYTES_MAX).
VALUES_MAX: Final = 1024 * 1024
_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = f"{_TAG}str"
_WRITTEN: Final = tuple(f"{_TAG}{kind}" for kind in ("int", "float", "bool"))


class Loader(yaml.SafeLoader):
    """PyYAML reads `1e-3` as text; here it is the number that everyone means.

    And `18:00` as 1,080 and a date as an object; here both are the text that a flag would be.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a value that has none."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        sixties = tag.endswith((":int", ":float")) and ":" in value
        return _TEXT if sixties or tag.endswith(":timestamp") else tag


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _unique(loader: Loader, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    """Of a key that stands there twice PyYAML takes the last, and the first is lost."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.YAMLError(f"{key.value[:64]!r} is there twice")
        seen.add(str(key.value))
    yield from loader.construct_yaml_map(node)


Loader.add_constructor("tag:yaml.org,2002:map", _unique)


def parse(text: str) -> Any:
    """What stands there; raises YAMLError, ValueError, RecursionError."""
    node = _of_json(text)
    loader = Loader("" if node else text)
    try:
        node = node or loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        for task in _below(_below([node], "tasks"), None):
            _as_written(_below([task], "run"))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _of_json(text: str) -> yaml.Node | None:
    """The node, for what is JSON: to YAML, a tab indents nothing, and pairs are no character.

    None for all else, also for a mapping of YAML in such brackets.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        return _node(
            json.loads(
                text,
                object_pairs_hook=_mapping,
                parse_int=lambda number: yaml.ScalarNode(f"{_TAG}int", number),
                parse_float=lambda number: yaml.ScalarNode(f"{_TAG}float", number),
                parse_constant=float,  # what is none is no JSON: see `_node`
            )
        )
    except ValueError:
        return None


def _mapping(pairs: list[tuple[str, Any]]) -> yaml.MappingNode:
    nodes = [(yaml.ScalarNode(_TEXT, name), _node(value)) for name, value in pairs]
    return yaml.MappingNode(f"{_TAG}map", nodes)


def _node(value: Any) -> yaml.Node:
    match value:
        case yaml.Node():
            return value
        case list():
            return yaml.SequenceNode(f"{_TAG}seq", [_node(one) for one in value])
        case str():
            return yaml.ScalarNode(_TEXT, value)
        case bool():
            return yaml.ScalarNode(f"{_TAG}bool", str(value).lower())
        case None:
            return yaml.ScalarNode(f"{_TAG}null", "null")
    raise ValueError(value)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that it stands for, of each alias all that it names. YAMLError where they are many.

    Of a file of some lines aliases of aliases make more than any memory holds.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError("an alias (*NAME) stands in what it names")
        return known[id(node)]
    known[id(node)] = 0
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inside = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    known[id(node)] = count = 1 + sum(_count(one, known) for one in inside)
    if count > VALUES_MAX:
        raise yaml.YAMLError(f"its aliases (*NAME) stand for more than {VALUES_MAX:,} values")
    return count


def _below(nodes: list[yaml.Node], name: str | None) -> list[yaml.Node]:
    """What stands in these mappings under that name; None: under any."""
    pairs = (pair for node in nodes if isinstance(node, yaml.MappingNode) for pair in node.value)
    return [value for key, value in pairs if name is None or key.value == name]


def _as_written(nodes: list[yaml.Node]) -> None:
    """The arguments of programs are texts: of `1.10` the zero stays, and `yes` is no `True`."""
    for node in nodes:
        if isinstance(node, yaml.SequenceNode):
            # An alias may name one of them elsewhere, where it is a number.
            node.value[:] = [
                yaml.ScalarNode(_TEXT, one.value) if one.tag in _WRITTEN else one
                for one in node.value
            ]
