"""A shim that dies anywhere costs no training, no model creation and no replica."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import labels
from tests.crash.machine import Machine
from tests.processes import until
from zenos.client import Client, TaskHandle, connect
from zenos.core import failpoints
from zenos.core.task import State

WORDS = ["a", "river", "ran", "over", "old", "stones", "under", "one", "hill"]
MEMORY = "600MiB"
LONG_S = 150


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """The folder whose files arm a process."""
    folder = tmp_path / "plans"
    folder.mkdir()
    return folder


@pytest.fixture
def machine(tmp_path: Path, plans: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, "zygote=eager")
    made.start(f"{failpoints.FOLDER}{plans}")
    yield made
    made.close()


def train(client: Client, text: Path) -> TaskHandle:
    """Two steps; registered as the next version of `m`."""
    return client.train(
        model="m",
        arch="llama-nano",
        settings={"hidden_size": 32, "num_hidden_layers": 1},
        data={"paths": [str(text)]},
        vocab_size=270,
        sequence_length=16,
        batch_size=2,
        steps=2,
        dtype="float32",
        cpu=0.1,
        memory=MEMORY,
    )


def test_a_shim_of_any_kind_is_killed_at(machine: Machine, plans: Path) -> None:
    text = machine.ran.with_name("text.txt")
    source = random.Random(0)  # noqa: S311 - a text, no secret
    text.write_text("\n".join(" ".join(source.choices(WORDS, k=20)) for _ in range(40)))
    with connect(home=machine.home.root) as client:
        kill_those_that_make_models(client, plans, text)
        kill_those_that_serve(client, plans)


def kill_those_that_make_models(client: Client, plans: Path, text: Path) -> None:
    """At each label one that creates a model and one that trains."""
    doomed: dict[str, str] = {}
    for number, label in enumerate(labels.SHIM):
        for offset in (1, 2):  # ids are given in the order of submission
            id_ = f"t{2 * number + offset}"
            (plans / f"{label}=kill@{id_}").touch()
            doomed[id_] = label
        made = client.create(f"c{number}", "llama-nano", cpu=0.1, memory=MEMORY)
        assert [made.id, train(client, text).id] == list(doomed)[-2:]
    for id_, label in doomed.items():
        ended = client.task(id_).wait(LONG_S)
        # That it has ended is known once it is written; before that it begins again, as another
        # generation if this one was claimed.
        generation = 1 if label in ("shim.exit.after", "shim.claim.before") else 2
        events = [(event.type, event.detail) for event in client.history(id_).events]
        assert (ended.state, ended.generation) == (State.SUCCEEDED, generation), (label, events)
    assert not list(plans.iterdir()), "somebody was spared"
    numbers = range(len(labels.SHIM))
    made_once = [f"c{number}:1" for number in numbers] + [f"m:{number + 1}" for number in numbers]
    assert sorted(version.ref for version in client.models()) == sorted(made_once)


def kill_those_that_serve(client: Client, plans: Path) -> None:
    """Replicas on their way to work, whichever comes first; then as they end."""
    at_end = labels.group("shim.exit")
    for label in labels.SHIM:
        if label not in at_end:
            (plans / f"{label}=kill").touch()
    names = [f"m:{number + 1}" for number in range(len(at_end))]
    for name in names:
        client.serve(name, min_replicas=1, cpu=0.1, memory=MEMORY, dtype="float32")
    until(lambda: not list(plans.iterdir()), LONG_S)
    for name in names:
        answer = client.generate(name, "a river", max_tokens=2)
        answer.text()
        assert answer.finish() in ("stop", "length")
    for name, label in zip(names, at_end, strict=True):
        (plans / f"{label}=kill").touch()
        client.stop(name)
        until(lambda: not list(plans.iterdir()), LONG_S)
    until(lambda: not client.deployments(), LONG_S)
    assert all(view.task.is_ended for view in client.tasks(kind="serve"))
