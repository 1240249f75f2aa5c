"""From files of text to token ids on the disk, on two cores, with the memory that it takes.

The same files and the same tokenizer for both, and a check that both come to as many tokens. The
text is the source of this Python's standard library, once and again with other words in each copy,
so that no file comes twice. Memory is what all processes hold together at its highest, pages that
several of them share counted once.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.report import Row, alternate, compare, say, target
from zenos.core.limits import MIB

CORES = 2
TEXT_BYTES = 100_000_000
VOCABULARY = 8000
RATIO_MIN = 1.5
SHARE_MAX = 0.5
LOOK_EVERY_S = 0.02
_WORD = re.compile(r"\b[a-z]{6,}\b")
# What the trainer takes as one document, even of a small corpus: both tokenize the same pieces.
_MODULE_BYTES = range(1000, 32_000)

COMMON = """
import os, sys, time
from pathlib import Path
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
text, vocabulary, scratch = map(Path, sys.argv[1:])
"""
OURS = """
from zenos.core.specs import DataSpec
from zenos.runtime.train import packing
from zenos.runtime.train.corpus import Corpus
from zenos.runtime.train.tokenizer import Vocabulary

begun = time.perf_counter()
corpus = Corpus(DataSpec(paths=[str(text)], eval_fraction=0.0))
survey = corpus.survey()
directory = packing.pack(corpus, survey, Vocabulary(vocabulary), scratch)
took_s = time.perf_counter() - begun
meta = packing.Packed(directory).meta
print(took_s, took_s, meta.train_tokens - meta.documents)  # an end after each document
"""
PEER = """
import datasets
from tokenizers import Tokenizer

datasets.disable_progress_bars()

def encode(batch):
    found = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
    return {"ids": [each.ids for each in found]}

begun = time.perf_counter()
tokenizer = Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
tokenizer.encode_special_tokens = True
files = sorted(map(str, text.glob("*.txt")))
options = {"sample_by": "document", "split": "train", "cache_dir": str(scratch)}
loaded = datasets.load_dataset("text", data_files=files, **options)
mapping = time.perf_counter()
mapped = loaded.map(encode, batched=True, batch_size=100, num_proc=2, remove_columns=["text"])
ended = time.perf_counter()
column = mapped.data.column("ids")
print(ended - begun, ended - mapping, sum(len(chunk.flatten()) for chunk in column.chunks))
"""


class Run(NamedTuple):
    """Seconds from files to ids, of these in `map`; bytes of memory at most; tokens."""

    whole_s: float
    map_s: float
    memory: int
    tokens: int


def rows(*, quick: bool) -> list[Row]:
    """MB of text per second, and MiB of memory."""
    rounds, size = (1, TEXT_BYTES // 10) if quick else (5, TEXT_BYTES)
    with tempfile.TemporaryDirectory(prefix="zenos-tokenizing-") as root:
        text = Path(root) / "text"
        written = write_text(text, size)
        train(text, Path(root) / "vocabulary")
        ours, theirs = alternate(
            functools.partial(measure, OURS, Path(root), {"TOKENIZERS_PARALLELISM": "true"}),
            functools.partial(measure, PEER, Path(root), {"TOKENIZERS_PARALLELISM": "false"}),
            rounds,
        )
    # A document that is cut has a token more or less.
    counts = sorted(run.tokens for run in ours + theirs)
    if counts[-1] - counts[0] > counts[0] // 1000:
        raise RuntimeError(f"cannot compare: {ours[0].tokens} tokens, {theirs[0].tokens} tokens")
    megabytes = written / 1e6
    what = f"tokenize {megabytes:.0f} MB of text on {CORES} cores"
    peer = f"datasets.map(num_proc={CORES})"
    whole = compare(
        f"{what}, from files to ids on the disk",
        "MB/s",
        [megabytes / run.whole_s for run in ours],
        f"load_dataset and {peer}",
        [megabytes / run.whole_s for run in theirs],
        more_is_better=True,
    )
    memory = compare(
        f"{what}: memory of all processes at its highest",
        "MiB",
        [run.memory / MIB for run in ours],
        peer,
        [run.memory / MIB for run in theirs],
    )
    return [
        target(whole, f"≥ {RATIO_MIN:g} x", (whole.ratio or 0) >= RATIO_MIN),
        compare(
            f"{what}, the peer without reading the files",
            "MB/s",
            [megabytes / run.whole_s for run in ours],
            f"{peer} alone",
            [megabytes / run.map_s for run in theirs],
            more_is_better=True,
            same_work=False,
        ),
        target(memory, f"≤ {SHARE_MAX:g} of the peer's", (memory.ratio or 0) >= 1 / SHARE_MAX),
    ]


def write_text(directory: Path, size: int) -> int:
    """Files of at least so many bytes together; how many they are."""
    directory.mkdir()
    written = 0
    for number, text in enumerate(texts()):
        raw = text.encode()
        (directory / f"{number:06}.txt").write_bytes(raw)
        written += len(raw)
        if written >= size:
            return written
    raise RuntimeError("cannot measure: there is no standard library")


def texts() -> Iterator[str]:
    """Modules of the standard library; from the second time on every seventh long word is new."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted([*library.glob("*.py"), *library.glob("[a-z]*/*.py")]):
        with suppress(UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
            if len(text.encode()) in _MODULE_BYTES and "site-packages" not in path.parts:
                modules.append(text)
    for copy in itertools.count() if modules else ():
        for text in modules:
            yield text if copy == 0 else _changed(text, copy)


def _changed(text: str, copy: int) -> str:
    counter = itertools.count(copy)

    def change(found: re.Match[str]) -> str:
        word = found[0]
        return word if next(counter) % 7 else f"{word[copy % 5 :]}{word[: copy % 5]}{copy}"

    return _WORD.sub(change, text)


def train(text: Path, directory: Path) -> None:
    """A byte-level BPE of some of the files."""
    from zenos.core.specs import DataSpec
    from zenos.runtime.train import tokenizer
    from zenos.runtime.train.corpus import Corpus

    some = [str(path) for path in sorted(text.iterdir())[:200]]
    corpus = Corpus(DataSpec(paths=some, eval_fraction=0.0))
    made = tokenizer.train(corpus, corpus.survey(), VOCABULARY, directory.with_name("cache"))
    directory.symlink_to(made.directory)


def measure(program: str, root: Path, environment: dict[str, str]) -> Run:
    """Run a program in a process of its own, with empty caches."""
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", COMMON + program),
                *(str(root / "text"), str(root / "vocabulary"), scratch),
            ],
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "ZENOS_CPU": str(CORES),
                "RAYON_NUM_THREADS": str(CORES),
                "HF_HOME": scratch,
                "HF_HUB_OFFLINE": "1",
                **environment,
            },
            text=True,
        )
        memory = 0
        while process.poll() is None:
            memory = max(memory, held(process.pid))
            time.sleep(LOOK_EVERY_S)
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"cannot measure: exit code {process.returncode}")
    whole_s, map_s, tokens = said.split()
    run = Run(float(whole_s), float(map_s), memory, int(tokens))
    say(f"{run.whole_s:.1f} s, {memory / MIB:.0f} MiB, {tokens} tokens")
    return run


def held(pid: int) -> int:
    """Bytes of memory of a process and all below it."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total
