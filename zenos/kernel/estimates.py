"""Expected run times, learned from finished tasks of the same signature."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from msgspec.structs import replace

from zenos.core import limits, priority
from zenos.core.predictions import Estimate, Past, Prediction, Source
from zenos.core.specs import ProgramSpec
from zenos.core.task import Kind, State, Task

_INTERPRETERS: Final = ("python", "bash", "sh", "node", "ruby", "perl", "Rscript", "julia")


def signature(task: Task) -> str:
    """Tasks of one signature are expected to run equally long: kind, user and what they do.

    That is the task's name; else the program, of an interpreter its script; else the model.
    """
    work = task.spec.work
    what = task.spec.name
    if not what and isinstance(work, ProgramSpec):
        what = _program(work.argv)
    what = what or getattr(work, "model", "") or getattr(work, "arch", "")
    text = f"{task.kind}/{task.principal.user}/{what}"
    if len(text) > limits.SIGNATURE_CHARS_MAX:
        digest = hashlib.sha256(text.encode()).hexdigest()
        text = f"{text[: limits.SIGNATURE_CHARS_MAX - len(digest) - 1]}#{digest}"
    return text


def _program(argv: list[str]) -> str:
    """`python train.py --fast` is another program than `python eval.py`."""
    program = argv[0] if argv else ""
    name = PurePosixPath(program).name
    rest = argv[1:]
    if name.rstrip("0123456789.") in _INTERPRETERS and rest:
        if rest[0] == "-m" and len(rest) > 1:
            return f"{program} -m {rest[1]}"
        if not rest[0].startswith("-"):
            return f"{program} {rest[0]}"
    return program


def predicted(
    task: Task, known: Estimate | None, default_s: float = limits.EXPECTED_S_DEFAULT
) -> tuple[float, Source]:
    """The whole run time in seconds, and whose word that is.

    1. The user's own estimate.
    2. What finished tasks of the same signature took.
    3. A default, which is nobody's word.
    """
    if task.spec.expected_s is not None:  # 1
        return task.spec.expected_s, "user"
    if known is not None:  # 2
        return math.exp(known.log_s), "learned"
    return default_s, "default"  # 3


def prediction(task: Task, estimates: Mapping[str, Estimate]) -> Prediction | None:
    """What was predicted of a task, and how good that and others of its signature were.

    None for replicas, which run for as long as they are asked.
    """
    if task.kind is Kind.SERVE:
        return None
    key = signature(task)
    known = estimates.get(key)
    expected_s, source = predicted(task, known)
    if task.predicted_s is not None and task.predicted_by is not None:
        expected_s, source = task.predicted_s, task.predicted_by
    made = Prediction(expected_s=expected_s, source=source, signature=key)
    if known is not None:
        compared = sum(past.source != "default" for past in known.past)
        made = replace(
            made, finished=known.count, compared=compared, median_error=known.median_error
        )
    if task.state is State.SUCCEEDED:
        past = Past(predicted_s=expected_s, source=source, took_s=task.ran_s)
        made = replace(made, took_s=task.ran_s, error=past.error)
    return made


class Estimates:
    """Run times learned from finished tasks of the same signature.

    A geometric mean with exponential forgetting (weight 1/2 for the newest): run times are spread
    over orders of magnitude, so their logarithms are averaged. known: by signature, the one that
    has not run for longest first.
    """

    def __init__(self, default_s: float, known: Mapping[str, Estimate] | None = None) -> None:
        self._default_s = default_s
        rows = sorted((known or {}).values(), key=lambda row: row.at)
        self.known: dict[str, Estimate] = {row.signature: row for row in rows}

    def learn(self, task: Task, ran_s: float, now: float = 0.0) -> tuple[Estimate | None, str]:
        """A task of this signature has finished after `ran_s` seconds.

        Returns what is known of it now, and a signature that was forgotten for it, or "".
        """
        if task.kind is Kind.SERVE:
            return None, ""
        key = signature(task)
        new = math.log(max(ran_s, 1e-3))
        old = self.known.pop(key, None)
        past = old.past if old is not None else []
        if task.predicted_s is not None and task.predicted_by is not None:
            said = Past(predicted_s=task.predicted_s, source=task.predicted_by, took_s=ran_s)
            past = [*past, said][-limits.PREDICTIONS_KEPT :]
        made = Estimate(
            signature=key,
            log_s=new if old is None else (old.log_s + new) / 2,
            count=1 if old is None else old.count + 1,
            at=now,
            past=past,
        )
        self.known[key] = made
        if len(self.known) <= limits.SIGNATURES_MAX:
            return made, ""
        gone = next(iter(self.known))
        del self.known[gone]
        return made, gone

    def total(self, task: Task) -> tuple[float, Source]:
        """Expected seconds of the whole run, and whose word that is (`predicted`)."""
        return predicted(task, self.known.get(signature(task)), self._default_s)

    def expected_s(self, task: Task) -> float:
        """Expected remaining seconds: the user's word, else what was learned, else the default."""
        return priority.remaining_s(self.total(task)[0], task.ran_s)

    def is_known(self, task: Task) -> bool:
        """Whether its run time is more than the default."""
        return self.total(task)[1] != "default"
