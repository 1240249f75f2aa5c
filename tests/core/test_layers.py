"""What the two innermost layers import, and nothing else: contracts can only list what is known."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CORE = sorted((ROOT / "zenos" / "core").glob("*.py"))
KERNEL = sorted((ROOT / "zenos" / "kernel").glob("*.py"))
# The way into the loop and the loop itself wait; all else of the kernel only computes.
WAITS = {"control.py", "loop.py"}
# What has no clock, no randomness, and no way to the world outside; of `datetime` lengths alone.
PURE = {
    *("__future__", "bisect", "collections", "datetime", "functools", "hashlib", "heapq"),
    *("itertools", "math", "pathlib.PurePosixPath", "typing", "zlib"),
}
CLOCKS = {"now", "today", "utcnow"}
# Parts of the core that read clocks, files or processes.
IMPURE_CORE = {
    f"zenos.core.{name}"
    for name in (
        *("cgroups", "clock", "durable", "failpoints", "forking", "home", "logs", "memory"),
        *("output", "pictures", "processes", "shim", "watch"),
    )
}


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each module that is imported, with the name that is taken of it, if that is said."""
    for found in ast.walk(tree):
        if isinstance(found, ast.Import):
            yield from ((alias.name, "") for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert not found.level, "a relative import: name the whole module"
            yield from ((found.module or "", alias.name) for alias in found.names)


@pytest.mark.parametrize("path", [*CORE, *KERNEL], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_core_and_kernel_stand_on_the_standard_library_and_msgspec(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {module.partition(".")[0] for module, _ in imports(tree)}
    assert roots - sys.stdlib_module_names <= {"msgspec", "zenos"}


@pytest.mark.parametrize(
    "path", [p for p in KERNEL if p.name not in WAITS], ids=lambda path: path.stem
)
def test_a_step_has_no_clock_no_randomness_and_no_files(path: Path) -> None:
    """So it decides the same on the same events: in the daemon, the simulator and the tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module, name in imports(tree):
        whole = f"{module}.{name}" if name else module
        assert not {module, whole} & IMPURE_CORE, whole
        root = module.partition(".")[0]
        assert {root, whole} & {*PURE, "msgspec", "zenos"}, f"{whole} may look outside"
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and is_date(n.value)}
    assert not names & CLOCKS
    builtins = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not builtins & {"open", "print", "input", "hash", "id"}


def is_date(node: ast.expr) -> bool:
    """Whether it is `datetime`, `datetime.datetime` or `datetime.date`."""
    return ast.unparse(node).partition(".")[0] == "datetime"
