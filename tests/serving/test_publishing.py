"""A model that is served while it is trained: real daemon, real training, the official client."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import torch
import transformers

from tests.crash.machine import Machine
from tests.processes import until
from tests.serving.conftest import WORDS
from zenos.core import shim
from zenos.core.task import Kind, Task

PROMPTS = [" ".join(WORDS[n : n + 2 + n % 4]) for n in range(8)]
TOKENS = 32


class Answer(NamedTuple):
    """What one request was answered, and by which version."""

    prompt: str
    text: str
    version: str


class Served:
    """A daemon with a text to train on, and a client of what it serves."""

    def __init__(self, root: Path) -> None:
        self.machine = Machine(root)
        self.machine.start()
        self.root = root
        self.models: dict[str, Any] = {}
        self.text = root / "text"
        self.text.mkdir()
        source = random.Random(0)  # noqa: S311 - a text, no secret
        for number in range(20):
            (self.text / f"{number}.txt").write_text(" ".join(source.choices(WORDS, k=400)))

    def train(self, model: str, **changes: Any) -> str:
        """A training that publishes, by default under the name of `model`; its id."""
        settings: dict[str, Any] = {
            "arch": "llama-nano",
            "settings": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
            "data": {"paths": [str(self.text)]},
            "vocab_size": 320,
            "sequence_length": 64,
            "batch_size": 4,
            "warmup": 2,
            "eval_every": 1000,
            "dtype": "float32",
            "cpu": 1,
            "publish": model,
            "publish_every": 20,
            "publish_keep": 1000,
            **changes,
        }
        return self.machine.ask(
            lambda client: client.train(model=f"{model}-end", key=model, **settings).id
        )

    def newest(self, model: str) -> int:
        """The number of the newest version; 0 without one."""
        found = self.machine.ask(lambda client: client.models())
        return max((m.version for m in found if m.name == model), default=0)

    def serve(self, model: str, **changes: Any) -> None:
        until(lambda: self.newest(model), 120)
        self.machine.ask(
            lambda c: c.serve(model, dtype="float32", min_replicas=1, slots=4, **changes)
        )
        until(lambda: self.replica(model) is not None, 120)

    def replica(self, model: str) -> Task | None:
        views = self.machine.ask(lambda client: client.tasks(kind=Kind.SERVE))
        ready = [v.task for v in views if v.task.ready and not v.task.is_ended]
        return next((t for t in ready if getattr(t.spec.work, "deployment", "") == model), None)

    def kill(self, task: str) -> None:
        """Kill the worker of a task, wherever it is in its work."""
        generation = self.machine.ask(lambda client: client.task(task)).task.generation
        said = shim.read_record(str(self.machine.home.run(task, generation)), "started")
        assert said is not None
        os.kill(int(said["pid"]), signal.SIGKILL)

    def ended(self, task: str) -> bool:
        return self.machine.ask(lambda client: client.task(task)).task.is_ended

    def client(self) -> openai.OpenAI:
        token = self.machine.home.token.read_text().strip()
        url = self.machine.ask(lambda client: client.address.url)
        return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=60)

    def stream(self, ai: openai.OpenAI, model: str, prompt: str) -> Answer:
        """One streamed answer; all its events name the version that its header does."""
        response = ai.completions.with_raw_response.create(
            model=model, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True
        )
        version = response.headers["x-zenos-model-version"]
        events = list(response.parse())
        assert {event.system_fingerprint for event in events} == {version}
        return Answer(prompt, "".join(e.choices[0].text for e in events if e.choices), version)

    def whole(self, ai: openai.OpenAI, model: str, prompt: str) -> Answer:
        """One answer at once."""
        response = ai.completions.with_raw_response.create(
            model=model, prompt=prompt, max_tokens=TOKENS, temperature=0
        )
        said = response.parse()
        version = response.headers["x-zenos-model-version"]
        assert said.system_fingerprint == version
        return Answer(prompt, said.choices[0].text, version)

    def wanted(self, prompt: str, version: str) -> str:
        """What transformers generates with exactly that version."""
        if version not in self.models:
            path = self.machine.ask(
                lambda c: c.export_model(version, self.root / version.replace(":", "-"))
            )
            self.models[version] = (
                transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
                transformers.AutoTokenizer.from_pretrained(path),
            )
        model, tokenizer = self.models[version]
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        text: str = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    def check(self, answers: list[Answer]) -> None:
        """Each answer is what its version says, to the letter."""
        for answer in set(answers):
            assert answer.text == self.wanted(answer.prompt, answer.version), answer.version


def numbers(answers: list[Answer]) -> list[int]:
    return [int(answer.version.rpartition(":")[2]) for answer in answers]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("published"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    torch.set_num_threads(threads)
    made.machine.close()


def test_every_answer_is_of_the_version_it_names_while_they_change(served: Served) -> None:
    training = served.train("live", steps=180)
    served.serve("live")
    with served.client() as ai, ThreadPoolExecutor(3) as pool:

        def asking(number: int) -> list[Answer]:
            """One after the other, until the last version answers."""
            found: list[Answer] = []
            how = served.whole if number == 0 else served.stream
            while not (found and over and numbers(found)[-1] == last):
                found.append(how(ai, "live", PROMPTS[(number + len(found)) % len(PROMPTS)]))
            return found

        over, last = False, 0
        asked = [pool.submit(asking, number) for number in range(3)]
        try:
            until(lambda: served.ended(training) or any(one.done() for one in asked), 240)
            last = served.newest("live")
        finally:
            over = True
        found = [one.result(120) for one in asked]
    assert last == 9  # each 20 of 180 steps, the last one too
    for answers in found:
        assert numbers(answers) == sorted(numbers(answers))
    every = [answer for answers in found for answer in answers]
    assert len(set(numbers(every))) > 3
    served.check(every)
    assert served.machine.ask(lambda c: c.deployments())[0].version == "live:9"
    # By other weights, not by another replica.
    (replica,) = served.machine.ask(lambda client: client.tasks(kind=Kind.SERVE, limit=100))
    assert replica.task.label.startswith("live:")  # what it began with, whatever it serves now
    assert replica.progress is not None
    assert replica.progress.stage == "serving live:9"


def test_a_rollback_holds_until_the_model_is_served_anew(served: Served) -> None:
    last = served.newest("live")
    with served.client() as ai:
        served.machine.ask(lambda client: client.roll_back("live"))
        until(lambda: numbers([served.whole(ai, "live", PROMPTS[0])]) == [last - 1], 60)
        served.machine.ask(lambda client: client.roll_back("live", to=2))
        until(lambda: numbers([served.whole(ai, "live", PROMPTS[0])]) == [2], 60)
        training = served.train("again", publish="live", steps=40)
        until(lambda: served.ended(training), 120)
        assert served.newest("live") == last + 2
        answers = [served.stream(ai, "live", prompt) for prompt in PROMPTS]
        assert set(numbers(answers)) == {2}
        served.check(answers)
        log = served.machine.home.run(training, 1) / "log"
        assert "live was rolled back to live:2 and stays there" in log.read_text()
        served.serve("live")
        until(lambda: numbers([served.whole(ai, "live", PROMPTS[0])]) == [last + 2], 60)


def test_whatever_is_killed_versions_go_forward_and_the_last_one_arrives(served: Served) -> None:
    machine = served.machine
    for deployment in machine.ask(lambda client: client.deployments()):  # they have the other core
        machine.ask(lambda client, name=deployment.name: client.stop(name))  # type: ignore[misc]
    training = served.train("hard", steps=500, checkpoint_every=40, publish_every=25)
    until(lambda: served.newest("hard") > 1, 120)
    served.kill(training)
    served.serve("hard")
    answers: list[Answer] = []

    def ask() -> None:
        """What can't be answered, since somebody was killed, is asked again."""
        with suppress(openai.APIError, KeyError), served.client() as ai:
            answers.append(served.stream(ai, "hard", PROMPTS[len(answers) % len(PROMPTS)]))

    def further() -> None:
        """Until a version that is newer than all before has answered, or the training is over."""
        reached = max(numbers(answers), default=0)

        def is_further() -> bool:
            ask()
            return max(numbers(answers), default=0) > reached or served.ended(training)

        until(is_further, 120)

    further()
    served.kill(getattr(served.replica("hard"), "id", ""))
    further()
    machine.restart()
    further()
    until(lambda: served.ended(training), 240)
    assert machine.ask(lambda client: client.task(training)).task.state == "succeeded"

    def last_answers() -> bool:
        ask()
        return bool(answers) and numbers(answers)[-1] == served.newest("hard")

    until(last_answers, 120)
    assert numbers(answers) == sorted(numbers(answers))
    served.check(answers)
    found = machine.ask(lambda client: client.models())
    steps = [m.metrics["published_at_step"] for m in found if m.name == "hard"]
    assert steps == sorted(set(steps))  # what was published before the kill isn't published again
    assert steps[-1] == 500
