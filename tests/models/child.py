"""One change of a registry, in a process of its own that a test kills.

`python -m tests.models.child ACTION ROOT SOURCE` does ACTION once. With `publish`, `copy` or
`collect` and a COUNT at the end it waits for a line on its standard input, does it so often, and
prints the numbers of the versions that it made.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zenos.models.registry import Registry


def act(action: str, registry: Registry, source: Path) -> object:
    """Do it; returns the version's number, or whatever there is to say."""
    match action:
        case "publish":
            files = {path.name: path for path in source.iterdir()}
            return registry.publish("m", files).version
        case "import":
            return registry.import_directory(source, "new").version
        case "copy":
            return registry.copy("m:1", "copied").version
        case "alias":
            registry.alias("m", "prod", 2)
            return None
        case "remove":
            return registry.remove("m:1")
        case "view":
            return registry.path(registry.resolve("m:2"))
        case "collect":
            return registry.collect_garbage()
    raise ValueError(action)


def main() -> None:
    action, root, source, *count = sys.argv[1:]
    registry = Registry(Path(root))
    if not count:
        act(action, registry, Path(source))
        return
    print("ready", flush=True)
    sys.stdin.readline()
    print(*(act(action, registry, Path(source)) for _ in range(int(count[0]))), flush=True)


if __name__ == "__main__":
    main()
