"""`python -m tests.bus.fuzz [--seconds N] [--seed N] [--input FILE]`: `make fuzz`.

With atheris (the extra `fuzz`) inputs are looked for by what code they reach; without it they are
mutations of real frames, from a seed. What fails is written to a file, which `--input` tries again.

After a change of the decoder or of this, see that it still finds something: put a bug into Decoder
(zenos/bus/envelope.py), run this, and take it out again. Without atheris, with seed 1, on two slow
and busy cores: without the check of `frame_bytes_max`, found in 27 s; with `end > filled + 1` for
`end > filled`, or a byte too few of what is moved to the front, in a second.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

MEMORY_MB_MAX = 512


def main() -> None:
    """Look for as long as is said."""
    parser = argparse.ArgumentParser(prog="python -m tests.bus.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path)
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None or given.input:
        frames = importlib.import_module("tests.bus.fuzz_frames")
        if given.input:
            print(f"{frames.check(given.input.read_bytes())} frames")
        else:
            count = frames.mutate_for(given.seconds, given.seed)
            print(f"{count} mutations, seed {given.seed}, without atheris: nothing found")
        return
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["zenos.bus"]):
        frames = importlib.import_module("tests.bus.fuzz_frames")

    def check(data: bytes) -> None:
        frames.check(data)

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(frames.SEEDS):
            Path(corpus, str(number)).write_bytes(b"\xff" + seed)
        argv = [sys.argv[0], corpus, f"-max_total_time={int(given.seconds)}", "-max_len=4096"]
        argv += [f"-timeout={int(frames.SECONDS_MAX)}", f"-rss_limit_mb={MEMORY_MB_MAX}"]
        atheris.Setup([*argv, f"-seed={given.seed}", "-print_final_stats=1"], check)
        atheris.Fuzz()  # which ends the process


if __name__ == "__main__":
    main()
