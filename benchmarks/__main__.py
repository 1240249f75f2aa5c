"""`python -m benchmarks [PART …] [--json FILE] [--markdown FILE] [--quick]`."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
from pathlib import Path

import msgspec

from benchmarks.report import Part, machine, say, table

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
    parser.add_argument("--json", type=Path, help="keep the figures there, beside other parts'")
    parser.add_argument("--markdown", type=Path, help="write the page of all that is kept there")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): the figures will be worth little")
    described = machine()
    kept = read(given.json)
    for name in given.parts or PARTS:
        say(f"-- {name}")
        rows = importlib.import_module(f"benchmarks.{name}").rows(quick=given.quick)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        kept[name] = Part(measured=today, machine=described, rows=rows)
        print(table(rows), flush=True)
        # After each part: what comes later may fail.
        if given.json:
            given.json.write_bytes(msgspec.json.format(msgspec.json.encode(in_order(kept))))
        if given.markdown:
            notes = remarks(given.markdown)
            given.markdown.write_text(page(in_order(kept)) + notes, encoding="utf-8")
    return 0


def read(path: Path | None) -> dict[str, Part]:
    """What was measured before, by part."""
    if path is None or not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Part])


def in_order(kept: dict[str, Part]) -> dict[str, Part]:
    """The parts in their order; one that is no more goes."""
    return {name: kept[name] for name in PARTS if name in kept}


def remarks(path: Path) -> str:
    """What people have written below the table, from its first heading on: it stays."""
    if not path.exists():
        return ""
    _, heading, rest = path.read_text(encoding="utf-8").partition("\n## ")
    return heading + rest


def page(kept: dict[str, Part]) -> str:
    """The page of documentation with the results."""
    whens: dict[str, list[str]] = {}
    for name, part in kept.items():
        shown = "; ".join(f"{what} {value}" for what, value in part.machine.items())
        whens.setdefault(f"on {part.measured}: {shown}", []).append(name)
    if len(whens) == 1:
        measured = f"Measured {next(iter(whens))}."
    else:
        lines = (f"- {', '.join(names)} {when}." for when, names in whens.items())
        measured = "\n".join(["Measured were", "", *lines])
    text = table([row for part in kept.values() for row in part.rows])
    return (
        "# Benchmarks\n\n"
        "Ours beside the peer's: the same work, in the same run. What Python runs here takes\n"
        "turns with ours; Ray, ZeroMQ, Redis and the raw socket are measured right before or\n"
        "after, and where they are installed (`make bench-peers`). Medians, with the lowest and\n"
        "the highest in brackets. `make bench` writes this page.\n\n"
        f"{measured}\n\n{text}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
