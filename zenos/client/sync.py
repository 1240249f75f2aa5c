"""The synchronous client."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from zenos.client import build, calls, display, feeds, transport
from zenos.client.address import Address, find
from zenos.client.arrays import Arrays
from zenos.client.audit import Audit
from zenos.client.bus import Bus
from zenos.client.calls import Call, Mode
from zenos.client.generation import Generation
from zenos.client.live import Live
from zenos.client.model_calls import Models
from zenos.client.nodes import Nodes
from zenos.client.outlook import Ahead, HandleAhead
from zenos.client.threads import HandleThreads, Threads
from zenos.client.tokens import UserTokens
from zenos.client.types import (
    Status,
    TaskProgress,
    TaskView,
)
from zenos.client.yielding import HandleYielding, Yielding
from zenos.core.errors import DeadlineError, InvalidError, NoDaemonError
from zenos.core.specs import TrainSpec
from zenos.core.task import Deployment, State, Task, TaskEvent, TaskSpec
from zenos.core.wire import Progress

T = TypeVar("T")


def connect(
    host: str | None = None,
    *,
    token: str | None = None,
    home: str | Path | None = None,
    retry_s: float = transport.RETRY_S,
) -> Client:
    """A client of the daemon at `host`, else at `ZENOS_HOST`, else of `home` (`ZENOS_HOME`).

    retry_s: for how long a request whose connection was lost is sent again. Raises NoDaemonError
    where none runs.
    """
    return Client(find(host, token, home), retry_s=retry_s, home=home if host is None else None)


class Client(Models, Nodes, Yielding, Threads, Arrays, Ahead):
    """The daemon, for programs and notebooks. Every method raises ZenosError's classes."""

    def __init__(
        self,
        address: Address,
        *,
        retry_s: float = transport.RETRY_S,
        home: str | Path | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self.address = address
        self.retry_s = retry_s
        self._home = home
        self.http = http or httpx.Client(**transport.options(address))
        self.bus = Bus(self._run, self.stream)
        self.audit = Audit(self._run)
        self.tokens = UserTokens(self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self.http.close()

    def __repr__(self) -> str:
        return f"<zenos client of {self.address.url}>"

    # -- the system

    def health(self) -> str:
        """The daemon's version, if it answers."""
        return (self._run(calls.health())).version

    def status(self) -> Status:
        """The daemon, its nodes, and its tasks by state."""
        return self._run(calls.status())

    def shut_down(self, mode: Mode = "suspend") -> None:
        """Ask the daemon to go down: `suspend`, `drain` or `leave` running work."""
        self._run(calls.shutdown(mode))

    # -- tasks

    def submit(
        self,
        work: Sequence[str] | TaskSpec,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        topics: Sequence[str] = (),
        yields: str = "none",
        key: str | None = None,
        **options: Any,
    ) -> TaskHandle:
        """Submit a program (its arguments) or a whole TaskSpec.

        options: fields of TaskOptions, e.g. `cpu=0.5, memory="2GiB", priority="high"`. key: the
        same key again gives the same task, whatever happened in between.
        """
        if not isinstance(work, TaskSpec):
            work = build.options(options).task(build.program(work, env, cwd, topics, yields))
        elif options or env or cwd or topics or yields != "none":
            raise InvalidError("cannot use options beside a TaskSpec: put them into it")
        return TaskHandle(self, TaskView(task=self._run(calls.submit(work, key))))

    def train(
        self,
        spec: TrainSpec | Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        **fields: Any,
    ) -> TaskHandle:
        """Submit a training run: a TrainSpec, a mapping, or its fields as keywords.

        `data` may be one path or a list of them; relative ones are meant from here. Fields of
        TaskOptions (`cpu`, `memory`, `priority`, …) go beside them.
        """
        return self.submit(build.train_task(spec, fields), key=key)

    def create(
        self,
        name: str,
        arch: str,
        settings: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        tokenizer: str | None = None,
        **options: Any,
    ) -> TaskHandle:
        """Make a new, untrained model; a task that ends when it is registered.

        options: fields of TaskOptions.
        """
        spec = build.create(name=name, arch=arch, settings=settings, seed=seed, tokenizer=tokenizer)
        return self.submit(build.options(options).task(spec))

    def tasks(
        self, *, state: State | str | None = None, kind: str | None = None, limit: int | None = None
    ) -> list[TaskView]:
        """Tasks that have not ended, then ended ones; the newest first in each."""
        return self._run(calls.tasks(state, kind, limit)).tasks

    def task(self, id_: str) -> TaskHandle:
        """One task; NotFoundError when there is none."""
        return TaskHandle(self, self._run(calls.task(id_)))

    def cancel(self, id_: str) -> Task:
        """Cancel a task; one that runs is ended within the grace time, after the return."""
        return self._run(calls.cancel(id_))

    def events(
        self, task: str | None = None, *, after: int | None = None, deadline: float | None = None
    ) -> Live[TaskEvent | TaskProgress]:
        """Events from this call on, for ever; after: a sequence number, 0 for all that are kept.

        A lost connection is made again without losing an event (progress may be skipped).
        deadline: of `time.monotonic()`, when DeadlineError is raised.
        """
        return Live(self._events(task, after, deadline))

    def _events(
        self, task: str | None, after: int | None, deadline: float | None
    ) -> Generator[TaskEvent | TaskProgress | None]:
        """The same, with a None once the daemon listens."""
        listening = False
        feed = feeds.EventFeed(task, after)
        outage = transport.Outage(self.address, self.retry_s)
        while True:
            problem: Exception | None = None
            try:
                with self.stream(feed.call(), deadline, feeds.of_events) as parts:
                    for part in parts:
                        outage.opened()
                        if not listening:
                            listening = True
                            yield None
                        for event in feed.feed(part):
                            outage.connected()
                            yield event
                        feeds.check(deadline)
            except feeds.PASSING as error:
                feeds.check(deadline)
                problem = error
            self.wait_before_retry(outage.pause_s(problem))

    # -- serving

    def serve(self, model: str, *, key: str | None = None, **fields: Any) -> Deployment:
        """Deploy a model, or change its deployment. fields: of DeploymentSpec."""
        return self._run(calls.deploy(build.deployment(model=model, **fields), key))

    def stop(self, name: str) -> Deployment:
        """Stop a deployment."""
        return self._run(calls.undeploy(name))

    def roll_back(self, name: str, to: int | None = None) -> Deployment:
        """Send a deployment to the version before, or to number `to`, until it is served anew."""
        return self._run(calls.roll_back(name, to))

    def deployments(self) -> list[Deployment]:
        """All deployments."""
        return self._run(calls.deployments()).deployments

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> Generation:
        """Go on with a prompt (text or tokens), or answer messages; loads the model when needed.

        settings: `temperature, top_p, max_tokens, stop, seed, n, logprobs, priority, echo`. Iterate
        over the result for the chunks as they come, or take its `text()`.
        """
        return Generation(self, calls.generate(model, prompt, messages, settings))

    # -- sending

    def look(self, id_: str) -> TaskView:
        """A task's newest view; patient while the daemon is being started again."""
        return self._run(calls.task(id_), patient=True)

    def _run(self, call: Call[T], *, patient: bool = False) -> T:
        transport.check_open(self.http)
        attempts = transport.Attempts(call, self.address, self.retry_s, patient=patient)
        while True:
            try:
                response = self.http.request(
                    call.method, call.path, **transport.request_options(call)
                )
            except transport.HTTP_ERRORS as error:
                attempts.failed(error)
            else:
                value = attempts.answered(response)
                if value is not None:
                    return value
            self.wait_before_retry(attempts.pause_s or 0)

    def wait_before_retry(self, seconds: float) -> None:
        """Wait before trying again; the daemon may have moved meanwhile."""
        time.sleep(seconds)
        self._find_again()

    def _find_again(self) -> None:
        """After a restart the daemon may listen on another port, under the same token."""
        if self.address.daemon is None:
            return
        try:
            self.address = find(None, None, self._home)
        except NoDaemonError:
            return  # not there yet
        self.http.base_url = self.address.url

    @contextmanager
    def stream(
        self, call: Call[bytes], deadline: float | None, heard: feeds.Heard = feeds.unheard
    ) -> Iterator[Iterator[bytes]]:
        """The parts of an answer as they come; raises the error that it stands for."""
        transport.check_open(self.http)
        options = transport.request_options(call, silence_s=feeds.silence_s(deadline))
        try:
            with self.http.stream(call.method, call.path, **options) as response:
                if not response.is_success:
                    content, status = response.read(), response.status_code
                    raise transport.error_of(status, response.headers, content, self.address)
                heard(response.headers)
                yield response.iter_bytes()
        except transport.HTTP_ERRORS as error:
            raise transport.broken(self.address, error) from None


class TaskHandle(HandleYielding, HandleThreads, HandleAhead):
    """One task: its newest view, and what can be done with it."""

    def __init__(self, client: Client, view: TaskView) -> None:
        self._client: Client = client
        self.view = view
        self.log_offset = 0

    def __repr__(self) -> str:
        return f"<task {self.id} ({self.task.name}): {self.task.state}>"

    def _repr_html_(self) -> str:
        return display.task_html(self.view)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.view.task.id

    @property
    def task(self) -> Task:
        """The task as last seen."""
        return self.view.task

    @property
    def progress(self) -> Progress | None:
        """How far it is, as last seen."""
        return self.view.progress

    def refresh(self) -> TaskView:
        """Ask for the task again."""
        self.view = self._client.look(self.id)
        return self.view

    def cancel(self) -> Task:
        """Cancel it; `wait()` waits until it has ended."""
        task = self._client.cancel(self.id)
        self.view = TaskView(task=task, progress=self.view.progress)
        return task

    def follow(self, timeout_s: float | None = None) -> Generator[TaskView]:
        """Views as the task moves on, until it has ended; DeadlineError when that takes longer."""
        deadline = feeds.deadline_of(timeout_s)
        yield self.refresh()
        if self.task.is_ended:
            return
        with closing(self._client.events(self.id, after=0, deadline=deadline)) as events:
            for event in events:
                if isinstance(event, TaskProgress):
                    self.view = TaskView(task=self.task, progress=event.progress)
                elif not self._is_news(event):
                    continue
                else:
                    self.refresh()
                view = self.view
                yield view
                if view.task.is_ended:
                    return

    def _is_news(self, event: TaskEvent) -> bool:
        return (event.generation, event.state) != (self.task.generation, self.task.state)

    def wait(self, timeout_s: float | None = None, *, progress: bool = False) -> Task:
        """The task once it has ended, however it did; progress: show it live meanwhile.

        Raises DeadlineError when `timeout_s` pass before.
        """
        try:
            with closing(self.follow(timeout_s)) as views:
                if not progress:
                    for _ in views:
                        pass
                    return self.task
                with display.watching(self.view) as show:
                    for view in views:
                        show(view)
        except DeadlineError:
            raise DeadlineError(
                f"cannot wait longer for {self.task.name}: it is {self.task.state} after "
                f"{timeout_s:g} s"
            ) from None
        return self.task

    def watch(self) -> Task:
        """Show live progress in the terminal or the notebook until it has ended."""
        return self.wait(progress=True)

    def log(
        self,
        *,
        follow: bool = False,
        offset: int = 0,
        generation: int | None = None,
        errors: str = "replace",
    ) -> Generator[str]:
        """The log's text in pieces; follow: go on until the task has ended.

        offset: bytes to leave out; `log_offset` says up to where it was read. generation: of an
        earlier run of a task that was started again, whole and not followed. errors: as of `open`,
        for bytes that are no UTF-8. What the log no longer holds is said in its place.
        """
        follow = follow and generation is None
        feed = feeds.LogFeed(self.view, offset, follow=follow, generation=generation, errors=errors)
        outage = transport.Outage(self._client.address, self._client.retry_s)
        while True:
            problem: Exception | None = None
            try:
                with self._client.stream(feed.call(), None, feed.begin) as parts:
                    outage.connected()
                    for part in parts:
                        text = feed.feed(part)
                        self.log_offset = feed.offset
                        if text:  # a part may be less than a character
                            yield text
                if feed.is_over(self.refresh().task):
                    if rest := feed.finish():
                        yield rest
                    return
            except feeds.PASSING as error:
                problem = error
            if problem is not None or not self.task.is_ended:
                self._client.wait_before_retry(outage.pause_s(problem))
                self.refresh()
