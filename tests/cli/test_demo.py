"""The demo, as a user sees it: everything real, in half a minute."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests import disks
from tests.cli.conftest import zenos
from tests.processes import mentioning, until
from zenos.cli import demo
from zenos.client import NodeView
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, TrainSpec
from zenos.models.footprint import training_shape
from zenos.runtime.train.corpus import Corpus

ZENOS = [sys.executable, "-m", "zenos"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Folders of its own: for temporary files, so that what is left over can be told, and a home
    with something in it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine").touch()
    own = {"TMPDIR": str(tmp_path / "tmp"), "ZENOS_HOME": str(tmp_path / "home")}
    return {**os.environ, **own, "COLUMNS": "100"}


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with disks.small_disk(request.node, tmp_path / "disk") as disk:
        yield disk.path


@pytest.mark.timeout(600)
def test_it_trains_registers_serves_and_leaves_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [*ZENOS, "demo", "--quick", "--output", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    rows = dict(re.findall(r"^│ (.+?) +│ +(.+?) +│$", done.stdout, re.MULTILINE))
    losses = "held-out loss", "bigram baseline", "unigram baseline"
    told = r"([\d.]+) nats per token, ([\d.]+) bits per byte"
    found = {name: re.fullmatch(told, rows.get(name, "")) for name in losses}
    loss = {name: float(match[1]) for name, match in found.items() if match}
    bits = {name: float(match[2]) for name, match in found.items() if match}
    assert loss.keys() == {"held-out loss", "bigram baseline", "unigram baseline"}, done.stderr
    assert loss["held-out loss"] < loss["bigram baseline"] < loss["unigram baseline"]
    assert bits["held-out loss"] < bits["bigram baseline"] < bits["unigram baseline"] < 8
    for name, unit in (
        ("corpus", "bytes"),
        ("parameters", ""),
        ("training", "tokens/s"),
        ("cold start to first token", "s"),
        ("time to first token, loaded", "ms"),
    ):
        number, _, of = rows[name].partition(" ")
        assert (float(number.replace(",", "")) > 0, of) == (True, unit), rows
    assert done.returncode == 0, done.stdout + done.stderr
    answer = done.stdout.partition("asks for 'def ':")[2].partition("What was measured")[0]
    assert len(answer.split()) > 5
    # The second act: a training gave way, and nothing of it was lost.
    assert done.stdout.count("the first token came after") == 1
    assert re.search(r"gave way once\s+│\s+same weights as undisturbed", done.stdout)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "registered as pycoder:1, " in done.stdout
    # How far it is; in a terminal a bar.
    assert re.search(r"^t\d+: running, training \d+/\d+, loss .* tok/s", done.stderr, re.M)
    assert re.search(r"^Next: .*zenos up, then zenos train --help", done.stdout, re.MULTILINE)
    # Its daemon had a home of its own, and both have gone.
    assert not list((tmp_path / "tmp").iterdir())
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["mine"]
    assert not mentioning(str(tmp_path))


def test_the_whole_one_trains_millions_of_parameters_on_the_library_without_its_tests() -> None:
    plan = demo.FULL
    data = DataSpec(**demo._data(plan))
    library = Path(sysconfig.get_paths()["stdlib"])
    corpus = Corpus(data)
    names = {str(file.path.relative_to(library)) for file in corpus.files}
    assert {"argparse.py", "json/decoder.py", "unittest/case.py"} <= names
    assert not [name for name in names if {"test", "tests", "idle_test"} & {*name.split("/")}]
    assert not [name for name in names if "-packages" in name]
    assert corpus.bytes > 5_000_000
    work = TrainSpec(
        model=demo.MODEL,
        arch=plan.arch,
        settings=plan.settings,
        data=data,
        vocab_size=plan.vocab_size,
    )
    shape = training_shape(work, None)
    assert shape is not None
    assert 2_000_000 < shape.parameters < 10_000_000
    assert 60 <= plan.train_s <= 180


@pytest.mark.parametrize(("cores", "asked"), [(4, 4), (2.5, 2), (0.5, 0.5)])
def test_it_reads_and_tokenizes_on_all_cores(cores: float, asked: float) -> None:
    """A training has a lane for each core that it is given."""
    node = Node(name="box", capacity=Resources.of(cpu=cores, memory="8GiB"))
    given: dict[str, Any] = {}

    def train(**options: Any) -> None:
        given.update(options)
        raise InterruptedError

    views = [NodeView(node=node, used=Resources())]
    client: Any = SimpleNamespace(nodes=lambda: views, train=train)
    with pytest.raises(InterruptedError):
        demo._train(client, demo.FULL, Console(file=io.StringIO()))
    assert given["cpu"] == asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_it_takes_its_daemon_with_it(
    number: signal.Signals, tmp_path: Path, environment: dict[str, str]
) -> None:
    demo = subprocess.Popen(
        [*ZENOS, "demo", "--quick", "--output", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for line in demo.stdout:
            if "training" in line:
                demo.send_signal(number)
                break
        _, said = demo.communicate(timeout=120)
    until(lambda: not mentioning(str(tmp_path / "tmp")), timeout_s=60)
    if number == signal.SIGTERM:
        assert demo.returncode == 128 + signal.SIGTERM
        assert said.count("Interrupted: its daemon is being ended, and its home removed.") == 1
        assert not list((tmp_path / "tmp").iterdir())


def test_with_keep_its_daemon_outlives_it(tmp_path: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [*ZENOS, "demo", "--quick", "--keep", "--output", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        while "a kernel booted" not in demo.stdout.readline():
            assert demo.poll() is None
        demo.send_signal(signal.SIGTERM)
        _, said = demo.communicate(timeout=120)
    (home,) = re.findall(r"What was begun is left: 'ZENOS_HOME=(\S+) zenos down'", said)
    assert f"'rm -r {home}' then removes it" in said

    def zenos(*args: str) -> int:
        own = {**environment, "ZENOS_HOME": home}
        return subprocess.run([*ZENOS, *args], env=own, capture_output=True, timeout=120).returncode

    try:
        assert zenos("submit", "--cpu", "0.1", "--wait", "--", "true") == 0
    finally:
        assert zenos("down") == 0
    until(lambda: not mentioning(str(tmp_path)))


@pytest.mark.parametrize("missing", ["openai", "matplotlib"])
def test_without_its_extra_it_refuses_before_any_work(
    missing: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    # None there is what Python has for a module that must not be imported.
    code = f"import sys; sys.modules[{missing!r}] = None; from zenos.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--quick", "--output", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"cannot run the demo: {missing} " in done.stderr
    assert "type: pip install 'zenos[demo]'" in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "tmp").iterdir())


def test_without_room_for_its_home_it_refuses_before_any_work(
    tmp_path: Path, environment: dict[str, str], small_disk: Path
) -> None:
    done = subprocess.run(
        [*ZENOS, "demo", "--quick", "--output", str(tmp_path)],
        env={**environment, "TMPDIR": str(small_disk)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"cannot run the demo: {small_disk} has " in done.stderr
    assert "100 MiB there; make room, or set TMPDIR" in done.stderr
    assert done.stdout == ""
    assert not list(small_disk.iterdir())


def test_where_its_picture_cannot_be_written_it_refuses_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "_make_home", lambda _: pytest.fail("it has begun"))
    # Where nobody can make a file, not even root.
    for output in ("", "/proc/self/fdinfo"):
        ran = zenos("demo", "--output", output)
        assert ran.code == 2, ran.err
        assert f"cannot write loss.png into {output}" in ran.err


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("result", "same", "says"),
    [
        ({"beats_bigram": True}, True, ""),
        ({"beats_bigram": False}, True, "did not beat the bigram baseline"),
        ({}, True, "did not beat the bigram baseline"),
        ({"beats_bigram": True}, False, "ended in other weights"),
    ],
)
def test_its_exit_code_says_whether_the_model_is_any_good(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    result: dict[str, object],
    same: bool,
    says: str,
    keep: bool,
) -> None:
    ended: list[Path] = []
    home = tmp_path / ("home" * 30)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(home))
    monkeypatch.setattr(demo, "_run", lambda *_, keep: demo._verdict(result, same=same))
    monkeypatch.setattr(demo, "_end", ended.append)
    ran = zenos("demo", "--output", str(tmp_path), *(["--keep"] if keep else []))
    assert ran.code == (1 if says else 0), ran.err
    assert says in ran.err
    # However good it is, its daemon is ended unless it is to be kept.
    assert ended == ([] if keep else [home])
    if keep:
        assert f"  export ZENOS_HOME={home}\n" in ran.out  # to be copied: in one line
        assert "Its home stays after that, until you remove it: rm -r $ZENOS_HOME" in ran.out
    else:
        assert ran.out.strip().count("\n") == 0
