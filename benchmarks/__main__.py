"""`python -m benchmarks [PART …] [--json FILE] [--markdown FILE] [--quick]`."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
from pathlib import Path

import msgspec

from benchmarks.report import Row, machine, say, table

PARTS = (
    "daemon",
    "tasks",
    "messages",
    "durable",
    "commands",
    "threads",
    "calls",
    "tokenizing",
    "memory",
    "cold_start",
    "training",
    "data_parallel",
    "decode",
    "preemption",
    "scheduler",
)


def main() -> int:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--markdown", type=Path, help="write the table there as well")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): the figures will be worth little")
    rows: list[Row] = []
    for part in given.parts or PARTS:
        say(f"-- {part}")
        rows += importlib.import_module(f"benchmarks.{part}").rows(quick=given.quick)
    described = machine()
    text = table(rows)
    print(text)
    if given.json:
        given.json.write_bytes(
            msgspec.json.format(msgspec.json.encode({"machine": described, "rows": rows}))
        )
    if given.markdown:
        notes = remarks(given.markdown)
        given.markdown.write_text(page(described, text) + notes, encoding="utf-8")
    return 0


def remarks(path: Path) -> str:
    """What people have written below the table, from its first heading on: it stays."""
    if not path.exists():
        return ""
    _, heading, rest = path.read_text(encoding="utf-8").partition("\n## ")
    return heading + rest


def page(described: dict[str, str], text: str) -> str:
    """The page of documentation with the results."""
    shown = "; ".join(f"{name} {value}" for name, value in described.items())
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        "# Benchmarks\n\n"
        "Ours beside the peer's: the same work, in the same run, in turns. Medians, with the\n"
        "lowest and the highest in brackets. `make bench` writes this page; Ray, ZeroMQ\n"
        "and Redis are measured where they are installed (`make bench-peers`).\n\n"
        f"Measured on {today}: {shown}.\n\n{text}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
