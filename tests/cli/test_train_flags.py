"""What `zenos train` says of the task, besides the training itself."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.cli.conftest import Daemon, zenos
from zenos.cli.train_flags import fields, flag_of, read_spec
from zenos.core.home import Home
from zenos.core.specs import TrainSpec
from zenos.core.task import Task, TaskSpec

GUIDE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "train-on-your-text.md"


def trained(*args: str) -> TaskSpec:
    ran = zenos("train", *args, "--json")
    assert ran.code == 0, ran.err
    return msgspec.json.decode(ran.out, type=Task).spec


def test_a_training_takes_what_any_task_takes(daemon: Daemon) -> None:
    args = "--cpu 0.5 --gpu 1 --memory 1GiB --priority low --time 2m --time-limit 1h --retries 3"
    spec = trained(
        *("--model", "m", "--arch", "a", "--data", "x", "--name", "job", *args.split()),
    )
    assert (spec.name, spec.priority, spec.retries) == ("job", 25, 3)
    assert (spec.expected_s, spec.time_limit_s) == (120.0, 3600.0)
    held = spec.resources
    assert (held.cpu, held.gpu, held.memory) == (500, 1000, 2**30)


def test_its_file_may_say_so_and_flags_win(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\narch: a\ndata: x\nretries: 2\ntime: 5m\nname: written\n")
    spec = trained(str(path))
    assert (spec.name, spec.retries, spec.expected_s) == ("written", 2, 300.0)
    spec = trained(str(path), "--retries", "0", "--time", "1m")
    assert (spec.name, spec.retries, spec.expected_s) == ("written", 0, 60.0)


# What is typed for each field, and what it becomes where that is something else. No two are alike,
# so that none takes another's place.
FROM_SCRATCH: dict[str, tuple[str, Any]] = {
    "model": ("new", "new"),
    "data.paths": ("/corpus", ["/corpus"]),
    "data.format": ("csv", "csv"),
    "data.text_column": ("body", "body"),
    "data.encoding": ("gb18030", "gb18030"),
    "data.exclude": ("*.md", ["*.md"]),
    "data.eval_fraction": ("0.25", 0.25),
    "arch": ("llama", "llama"),
    "settings": ("hidden_size=64", {"hidden_size": 64}),
    "vocab_size": ("301", 301),
    "sequence_length": ("302", 302),
    "batch_size": ("303", 303),
    "accumulate": ("304", 304),
    "steps": ("305", 305),
    "time_budget_s": ("307", 307.0),
    "steps_min": ("308", 308),
    "learning_rate": ("0.309", 0.309),
    "learning_rate_min": ("0.3", 0.3),
    "warmup": ("311", 311),
    "weight_decay": ("0.312", 0.312),
    "beta1": ("0.313", 0.313),
    "beta2": ("0.314", 0.314),
    "clip": ("0.315", 0.315),
    "mask_probability": ("0.316", 0.316),
    "dtype": ("float32", "float32"),
    "compile": ("", True),
    "workers": ("4", 4),
    "workers_min": ("3", 3),
    "backend": ("shared", "shared"),
    "seed": ("317", 317),
    "eval_every": ("318", 318),
    "eval_batches": ("319", 319),
    "checkpoint_every": ("320", 320),
    "inexact": ("", True),
    "publish": ("live", "live"),
    "publish_every": ("321", 321),
    "publish_keep": ("322", 322),
}
FROM_A_MODEL: dict[str, tuple[str, Any]] = {
    "model": ("new", "new"),
    "data.paths": ("/corpus", ["/corpus"]),
    "base": ("old:1", "old:1"),
    "tokenizer": ("older:2", "older:2"),
    "objective": ("masked_lm", "masked_lm"),
    "epochs": ("306", 306.0),
}


@pytest.mark.parametrize("given", [FROM_SCRATCH, FROM_A_MODEL])
def test_every_flag_sets_its_own_field(daemon: Daemon, given: dict[str, tuple[str, Any]]) -> None:
    assert {*FROM_SCRATCH, *FROM_A_MODEL} == fields().keys()
    argv = [[flag_of(name), text] if text else [flag_of(name)] for name, (text, _) in given.items()]
    work = msgspec.to_builtins(trained(*itertools.chain(*argv)).work)
    found = {name: work["data"][name[5:]] if "." in name else work[name] for name in given}
    assert found == {name: value for name, (_, value) in given.items()}


def test_the_lowest_rate_follows_the_rate(daemon: Daemon) -> None:
    given = ("--model", "m", "--arch", "a", "--data", "x")
    for flags, lowest in (((), 1e-4), (("--learning-rate", "3e-5"), 3e-6)):
        work = trained(*given, *flags).work
        assert isinstance(work, TrainSpec)
        assert work.lowest_rate == lowest
    work = trained(*given, "--learning-rate", "3e-5", "--learning-rate-min", "0").work
    assert isinstance(work, TrainSpec)
    assert work.lowest_rate == 0
    ran = zenos("train", *given, "--learning-rate", "3e-5", "--learning-rate-min", "0.01")
    assert ran.code == 2
    assert "cannot use --learning-rate-min 0.01: it is above learning_rate" in ran.err
    assert "3e-05" in ran.err


def test_how_long_it_trains_is_said_once(daemon: Daemon, tmp_path: Path) -> None:
    given = ("--model", "m", "--arch", "a", "--data", "x")
    ran = zenos("train", *given, "--steps", "5", "--epochs", "2")
    assert ran.code == 2
    assert "cannot use --epochs 2 beside steps 5" in ran.err
    ran = zenos("train", *given, "--steps", "5", "--epochs", "1")  # which is the default
    assert ran.code == 2
    assert "cannot use --epochs 1 beside steps 5" in ran.err
    path = tmp_path / "run.yaml"
    path.write_text("model: m\narch: a\ndata: x\nsteps: 5\n")
    work = trained(str(path), "--epochs", "2").work
    assert isinstance(work, TrainSpec)
    assert (work.steps, work.epochs) == (None, 2.0)
    path.write_text("model: m\narch: a\ndata: x\nsteps: 5\nepochs: 1\n")
    ran = zenos("train", str(path))
    assert ran.code == 2
    assert "cannot use epochs 1 beside steps 5" in ran.err
    # What was submitted is written out with all its fields, and may be submitted again.
    work = trained(*given, "--steps", "5").work
    path.write_bytes(msgspec.json.encode(work))
    assert trained(str(path)).work == work


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--publish-every", "5"), ("--publish-every", "200"), ("--publish-keep", "7")],
)
def test_how_to_publish_is_refused_where_nothing_is_published(
    daemon: Daemon, flag: str, value: str
) -> None:
    given = ("--model", "m", "--arch", "a", "--data", "x", flag, value)
    ran = zenos("train", *given)
    assert ran.code == 2
    assert f"cannot use {flag} without 'publish': give that a model's name" in ran.err
    trained(*given, "--publish", "live")


# Each line names the one before ten times: a thousand million values in some hundred characters.
LAUGHS = "settings:\n  a0: &a0 [1]\n" + "".join(
    f"  a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]\n" for at in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: .nan", "cannot use steps nan: it must be a finite number"),
        ("learning_rate: .inf", "cannot use learning_rate inf: it must be a finite number"),
        ("steps: 2.5", "cannot use steps: give a whole number or nothing, not one with a fraction"),
        ("settings: " + "[" * 5000, "it is nested too deeply"),
        ("settings: &all {x: *all}", "an alias (*NAME) stands in what it names"),
        (LAUGHS, "its aliases (*NAME) stand for more than 1,048,576 values"),
    ],
)
def test_what_no_file_can_say_is_told_plainly(
    daemon: Daemon, tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\narch: a\ndata: x\n{text}\n")
    ran = zenos("train", str(path))
    assert ran.code == 2
    assert says in ran.err
    assert "recursion" not in ran.err


def test_flags_stand_with_their_like() -> None:
    panels = re.split("╭─", zenos("train", "--help").out)
    (data,) = [panel for panel in panels if panel.startswith(" Data ")]
    ours = {flag_of(name) for name in fields() if name.startswith("data.")}
    assert set(re.findall(r"│ (--[a-z-]+)", data)) == ours


def schema() -> jsonschema.Draft202012Validator:
    made = zenos("schema", "train").json
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize(
    "text",
    [
        "arch: a\ndata: [x, y/*.txt]\nworkers: 1..2\ncpu: 1\nmemory: 2GiB",
        "type: train\nbase: b\ndata: {paths: x, format: csv}\npriority: low\nretries: 2",
        "arch: a\ndata: x\nat: 18:00\nby: 2099-12-24\nlabels: {}\ntime: 5m\nexclusive: yes",
        re.findall(r"(?s)<!-- file: spec.yaml -->\n```yaml\n(.*?)```", GUIDE.read_text())[0],
    ],
)
def test_the_published_schema_accepts_a_file_that_the_command_does(
    daemon: Daemon, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text if text.startswith("model") else f"model: m\n{text}")
    trained(str(path))
    schema().validate(read_spec(path))


def test_the_published_schema_refuses_what_the_command_does(home: Home) -> None:
    good = {"model": "m", "arch": "a", "data": "x"}
    for data in ("x", ["x", "y"], {"paths": "x"}, {"paths": ["x"]}):
        schema().validate({**good, "data": data})
    for bad in (
        {"lerning_rate": 1},
        {"steps": 0},
        {"workers": "some"},
        {"data": {"path": "x"}},
        {"dtype": "int8"},
        {"labels": ["a=b"]},
    ):
        assert not schema().is_valid({**good, **bad}), bad


@pytest.mark.parametrize("option", ["at", "by"])
def test_times_in_a_file_are_those_of_the_flags(
    daemon: Daemon, tmp_path: Path, option: str
) -> None:
    """YAML by itself reads `18:00` as 1,080, which is a moment of 1970, and dates as objects."""
    path = tmp_path / "run.yaml"
    for text in ("18:00", "2099-12-24", "2099-12-24 18:00:00+00:00", "2099-12-24T18:00"):
        path.write_text(f"model: m\narch: a\ndata: x\n{option}: {text}\n")
        by_file = trained(str(path))
        by_flag = trained("--model", "m", "--arch", "a", "--data", "x", f"--{option}", text)
        for spec in (by_file, by_flag):
            assert (spec.start_at or spec.deadline or 0) > 1e9
        assert (by_file.start_at, by_file.deadline) == (by_flag.start_at, by_flag.deadline)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("memroy", "memory"),
        ("label", "labels"),
        ("text_column", "data.text_column"),
        ("lerning_rate", "learning_rate"),
    ],
)
def test_a_misspelt_field_of_any_part_is_told_the_nearest(
    daemon: Daemon, tmp_path: Path, field: str, nearest: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\narch: a\ndata: x\n{field}: 1\n")
    ran = zenos("train", str(path))
    assert (ran.code, daemon.double.view.tasks) == (2, {})
    assert f"'{field}': it is unknown; did you mean '{nearest}'?" in ran.err
