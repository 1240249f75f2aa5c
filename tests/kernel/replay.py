"""Replay a seeded scenario: `python -m tests.kernel.replay SEED` tells what happens in it."""

from __future__ import annotations

import sys

from tests.kernel.scenarios import World
from zenos.kernel.step import Step


class Told(World):
    """The same, with a line for each turn of the loop that decides something, and each death."""

    def note(self, step: Step) -> None:
        super().note(step)
        for event in step.changes.events:
            line = f"{event.task}.{event.generation} {event.type} {event.detail}"
            self.say(f"{line.rstrip()} → {event.state}")
        for name, node in step.changes.nodes.items():
            self.say(f"node {name} {node.standing or 'is there'}")
        for action in step.actions:
            name = getattr(action, "task", None)
            self.say(f"    {type(action).__name__} {getattr(name, 'id', name) or ''}".rstrip())

    def boot(self) -> None:
        self.say("a daemon begins")
        super().boot()

    def say(self, text: str) -> None:
        print(f"{self.now:10.1f}  {text}")


def main() -> int:
    """Exit code 1 where it fails, after the traceback."""
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        print("usage: python -m tests.kernel.replay SEED", file=sys.stderr)
        return 2
    world = Told(int(sys.argv[1])).run()
    print(f"holds: {world.number} tasks, {world.deaths} deaths of the daemon, {world.losses} nodes")
    print(f"trace {world.trace.hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
