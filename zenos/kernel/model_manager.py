"""The model manager: brings the replicas of each deployment to where they should be.

One idempotent verb, `reconcile`, after every batch of events. Replicas are ordinary tasks of kind
`serve`: they wait in the queue, are placed and end like all others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import StopWorker, Update
from zenos.core.errors import NotFoundError, RefusedError, UnavailableError
from zenos.core.names import ModelRef
from zenos.core.replicas import holds, replica_resources, replica_spec, takes_turns
from zenos.core.specs import DeploymentSpec, ServeSpec
from zenos.core.task import HOLDING, Deployment, Principal, State, Task
from zenos.kernel import supervision

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel


def follows(deployment: Deployment) -> bool:
    """Whether it takes what is published: named without a version, and not rolled back."""
    ref = ModelRef.parse(deployment.spec.model)
    return ref.tag is None and not deployment.pinned and not deployment.stopping


def _number(deployment: Deployment) -> int:
    """The number of the version that it serves; 0 where that isn't known."""
    return (ModelRef.parse(deployment.version).version if deployment.version else None) or 0


def _is_owned(deployment: Deployment) -> bool:
    """Whether somebody has deployed it; what a mere request has loaded is anybody's."""
    return not (deployment.implicit or deployment.stopping)


def _owner(old: Deployment | None, asker: Principal) -> Principal:
    """Whose a deployment is that is made or changed; the operator's change takes it from nobody."""
    if old is not None and _is_owned(old) and old.principal.project != asker.project:
        return old.principal
    return asker


class ModelManager:
    """Deployments and their replicas."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    # -- events

    def deploy(self, event: ev.Deploy, now: float) -> Deployment:
        """Make or change a deployment; `reconcile` replaces replicas of what it was before."""
        state = self._kernel.state
        event.spec.check()
        name = event.spec.model
        known = self._kernel.remembered(event.principal, event.key, event.spec, now)
        if known is not None and known in state.deployments:
            self._kernel.unchanged = True
            return state.deployments[known]
        if self._kernel.draining:
            raise UnavailableError("cannot deploy: the daemon is going down")
        old = state.deployments.get(name)
        if old is not None and _is_owned(old) and not event.principal.may_change(old.principal):
            raise RefusedError(
                f"cannot change how {name} is served: {old.principal.user} serves it, of another "
                f"project; 'zenos cp {name} NAME' gives you one of your own"
            )
        state.accounts.check_ever(event.principal, replica_resources(event.spec, event.memory))
        state.resources.check_fits_ever(replica_resources(event.spec, event.memory))
        deployment = self._put(name, event, event.spec, now, implicit=False)
        self._kernel.remember(event.principal, event.key, event.spec, name, now)
        return deployment

    def _put(
        self,
        name: str,
        event: ev.Deploy | ev.Demand,
        spec: DeploymentSpec,
        now: float,
        *,
        implicit: bool,
    ) -> Deployment:
        state = self._kernel.state
        old = state.deployments.get(name)
        if implicit or (old is not None and self._loaded(old)):
            state.asking.used_at[name] = now
            state.asking.unloaded.discard(name)
        else:
            # That it is deployed is no use of it: min_replicas and requests load it.
            state.asking.used_at.pop(name, None)
            if old is not None:
                state.asking.unloaded.add(name)  # what its ending replicas answer needs none
        made = Deployment(
            name=name,
            spec=spec,
            version=event.version,
            memory=event.memory,
            principal=_owner(old, event.principal),
            created=old.created if old else now,
            used=now,
            replicas=old.replicas if old else [],
            implicit=implicit,
            build=event.build,
            warning=event.warning if isinstance(event, ev.Deploy) else "",
        )
        if old is None or not old.turn:
            return state.put_deployment(made)
        if follows(old) and follows(made) and _number(made) < _number(old):
            # Published while this one was being looked up.
            made = replace(
                made, version=old.version, memory=old.memory, build=old.build, source=old.source
            )
        return self._turn(replace(made, turn=old.turn))

    def _turn(self, deployment: Deployment) -> Deployment:
        """Remember the version of a deployment, and have its replicas told."""
        turned = self._kernel.state.put_deployment(replace(deployment, turn=deployment.turn + 1))
        self._kernel.actions.append(Update(deployment=turned))
        return turned

    def published(self, event: ev.Published) -> None:
        """A new version: deployments that follow its model serve it, unless theirs is newer.

        Said again after a restart of either side, it changes nothing.
        """
        ref = ModelRef.parse(event.version)
        for deployment in list(self._kernel.state.deployments.values()):
            model = ModelRef.parse(deployment.spec.model).name
            if model != ref.name or not follows(deployment):
                continue
            if (ref.version or 0) <= _number(deployment):
                continue
            by = self._kernel.state.tasks.get(event.task)
            if by and _is_owned(deployment) and not by.principal.may_change(deployment.principal):
                continue  # another project's training doesn't change what one serves
            self._turn(
                replace(
                    deployment,
                    version=event.version,
                    memory=event.memory,
                    build=event.build,
                    source=event.task,
                )
            )

    def roll_back(self, event: ev.Rollback, now: float) -> Deployment:
        """Serve that version, and stay there until it is deployed again."""
        deployment = self._kernel.state.deployments.get(event.name)
        if deployment is None or deployment.stopping:
            raise NotFoundError(f"cannot find a deployment of {event.name!r}: it isn't served")
        if not event.principal.may_change(deployment.principal):
            raise RefusedError(f"cannot roll back {event.name}: it belongs to another project")
        if deployment.pinned and deployment.version == event.version:
            return deployment
        if self._loaded(deployment):
            self._kernel.state.asking.used_at[event.name] = now
        return self._turn(
            replace(
                deployment,
                version=event.version,
                memory=event.memory,
                build=event.build,
                source="",
                pinned=True,
                implicit=False,
                error=None,
                failures=0,
            )
        )

    def undeploy(self, event: ev.Undeploy) -> Deployment:
        """Stop all replicas of a deployment and forget it when the last one has ended."""
        deployment = self._kernel.state.deployments.get(event.name)
        if deployment is None:
            raise NotFoundError(f"cannot find a deployment of {event.name!r}: it isn't served")
        if not event.principal.may_change(deployment.principal):
            raise RefusedError(f"cannot stop {event.name}: it belongs to another project")
        self._kernel.unchanged = deployment.stopping
        return self._kernel.state.put_deployment(replace(deployment, stopping=True))

    def demand(self, event: ev.Demand, now: float) -> Deployment:
        """Requests wait: the deployment is used; without one, an implicit one is made.

        Raises UnfittableError where no node can ever hold what would answer them: then nothing is
        changed, and they need not wait for their deadline.
        """
        state = self._kernel.state
        deployment = state.deployments.get(event.name)
        if deployment is None or deployment.stopping:
            if self._kernel.draining:
                raise UnavailableError(f"cannot load {event.name}: the daemon is going down")
            if event.spec is None:
                raise NotFoundError(f"cannot find a deployment of {event.name!r}: it isn't served")
            state.resources.check_fits_ever(replica_resources(event.spec, event.memory))
            deployment = self._put(event.name, event, event.spec, now, implicit=True)
        elif not any(task.state in HOLDING for task in self.live(deployment)):
            state.resources.check_fits_ever(replica_resources(deployment.spec, deployment.memory))
        if deployment.error is not None:
            # A new request is a new chance.
            deployment = state.put_deployment(replace(deployment, error=None, failures=0))
        asking, name = state.asking, event.name
        asking.count(name, max(asking.in_flight.get(name, 0), 1), deployment.spec, now)
        asking.unanswered[name] = max(asking.unanswered.get(name, 0), 1)
        asking.asked_at.setdefault(name, now)
        return deployment

    def used(self, event: ev.Used, now: float) -> None:
        """How many requests are in flight, and how many of them wait for a replica."""
        asking, name = self._kernel.state.asking, event.name
        deployment = self._kernel.state.deployments.get(name)
        if deployment is None:
            return
        asking.count(name, event.in_flight, deployment.spec, now)
        asking.unanswered[name] = event.waiting
        if event.waiting:
            asking.asked_at.setdefault(name, now)
        else:
            asking.asked_at.pop(name, None)

    def ready(self, event: ev.WorkerReady, now: float) -> None:
        """A replica has loaded its model and can answer."""
        task = supervision.current(self._kernel, event.task, event.generation)
        if task is None or task.ready:
            return
        if task.state is State.STARTING:
            started = ev.WorkerStarted(task=task.id, generation=task.generation, pid=0)
            supervision.started(self._kernel, started, now)
            task = self._kernel.state.tasks[task.id]
        self._kernel.state.put(task, replace(task, ready=True), now, "ready")
        self._kernel.state.asking.ready_at[task.id] = now
        deployment = self._deployment_of(task)
        if deployment is not None:
            self._kernel.state.asking.unloaded.discard(deployment.name)
        if deployment is not None and deployment.failures:
            self._kernel.state.put_deployment(replace(deployment, failures=0, error=None))

    def replica_ended(self, task: Task, now: float) -> None:
        """A replica has ended; one that wasn't told to counts as a failure of its deployment."""
        self._kernel.state.asking.ready_at.pop(task.id, None)
        deployment = self._deployment_of(task)
        if deployment is None:
            return
        replicas = [replica for replica in deployment.replicas if replica != task.id]
        failures = deployment.failures + (0 if task.stopping else 1)
        error = deployment.error
        if failures > limits.SERVE_RESTARTS_MAX or (
            not task.stopping and _is_final(task) and not task.ready
        ):
            error = task.outcome.describe() if task.outcome else "cannot serve: its workers fail"
        if not task.stopping:  # what was told to end is not loaded again for its keep-alive
            self._kernel.state.asking.used_at.setdefault(deployment.name, now)
        self._kernel.state.put_deployment(
            replace(deployment, replicas=replicas, failures=failures, error=error)
        )

    def _deployment_of(self, task: Task) -> Deployment | None:
        work = task.spec.work
        if not isinstance(work, ServeSpec):
            return None
        return self._kernel.state.deployments.get(work.deployment)

    # -- reconcile

    def reconcile(self, now: float) -> None:
        """Start missing replicas, stop idle ones, forget deployments that are done."""
        state = self._kernel.state
        for name in sorted(state.deployments):
            deployment = state.deployments[name]
            wanted = self.wanted(deployment, now)
            live, before = self.live(deployment), self.of_before(deployment)
            if len(live) > wanted:
                if wanted == 0:
                    state.asking.unloaded.add(name)
                self.stop_replicas(live, wanted, now, "idle")
            elif len(live) < wanted and not self._kernel.draining:
                self._start_replicas(deployment, wanted - len(live), now)
            # What answers stays until what replaces it can; for good, when that only fails.
            done = any(task.ready for task in live) or (wanted == 0 and deployment.error is None)
            gone = [task for task in before if done or not task.ready]
            self.stop_replicas(gone, 0, now, "replaced")
            deployment = state.deployments[name]
            used = deployment.error is not None and state.asking.in_flight.get(name, 0) > 0
            idle = deployment.implicit and wanted == 0 and not used
            if (deployment.stopping or idle) and not deployment.replicas:
                state.delete_deployment(name)

    def end_answered(self, now: float) -> None:
        """End by force replicas that were told to end, and have had nothing to answer for long.

        They have `model_drain_s` for their answers, which is far longer than they need without any.
        """
        for task, due in self._answered(now):
            if due <= now:
                over = replace(task, stop_at=now)
                self._kernel.state.put(
                    task, over, now, "stopping", "it has answered, and not ended"
                )
                self._kernel.actions.append(
                    StopWorker(task=task.id, generation=task.generation, grace_s=0.0)
                )

    def _answered(self, now: float) -> list[tuple[Task, float]]:
        """Replicas that end and have nothing to answer, and when they are to have ended by that."""
        state, config = self._kernel.state, self._kernel.config
        found: list[tuple[Task, float]] = []
        for task in (state.tasks[task_id] for task_id in state.stopping):
            deployment = self._deployment_of(task)
            if task.stopping not in supervision.ANSWERING or deployment is None:
                continue
            if task.stop_at is None or task.stop_at <= now:
                continue  # it is ended by force already
            if state.asking.in_flight.get(deployment.name):
                continue
            told_at = task.stop_at - supervision.grace_s(task, config)
            used_at = state.asking.used_at.get(deployment.name, told_at)
            due = max(told_at, used_at) + config.cancel_grace_s
            if due < task.stop_at:
                found.append((task, due))
        return found

    def wanted(self, deployment: Deployment, now: float) -> int:
        """How many replicas there should be.

        1. None while stopping, or after too many failures.
        2. One for each full set of slots in use, and one while used within the keep-alive; being
           deployed is a use of what is loaded only. One that was unloaded is loaded again for
           requests that wait, and for as long as they do: what is being answered by a replica
           that ends needs none.
        3. Of those that are loaded as many as were needed at once within the keep-alive: requests
           come and go from one moment to the next, and a load takes far longer than an answer.
        4. Within min_replicas and max_replicas.
        """
        state, spec = self._kernel.state, deployment.spec
        if deployment.stopping or deployment.error is not None:  # 1
            return 0
        away = deployment.name in state.asking.unloaded
        in_flight = (state.asking.unanswered if away else state.asking.in_flight).get(
            deployment.name, 0
        )
        wanted = math.ceil(in_flight / spec.slots)  # 2
        # One that waits for room still is there for requests that nobody waits for any more.
        loaded = sum(task.state is not State.QUEUED for task in self.live(deployment))
        used_at = state.asking.used_at.get(deployment.name, -math.inf)
        # Nobody has asked for it since it stands, or since the daemon has started.
        if loaded and used_at == -math.inf:
            used_at = state.asking.used_at[deployment.name] = now
        if wanted == 0 and now < used_at + spec.keep_alive_s:
            wanted = min(1, loaded) if deployment.implicit or away else 1
        further = state.asking.further(deployment.name)
        kept = sum(now < at + spec.keep_alive_s for at in further)
        if kept:  # 3
            wanted = max(wanted, min(1 + kept, loaded))
        return min(max(wanted, spec.min_replicas), spec.max_replicas)  # 4

    def _loaded(self, deployment: Deployment) -> bool:
        """Whether there is a replica that is loaded, or being loaded, and is to stay."""
        there = [*self.live(deployment), *self.of_before(deployment)]
        return any(task.state is not State.QUEUED for task in there)

    def live(self, deployment: Deployment) -> list[Task]:
        """Its replicas, without those that end and those of what it was before."""
        return self._those(deployment, current=True)

    def of_before(self, deployment: Deployment) -> list[Task]:
        return self._those(deployment, current=False)

    def _those(self, deployment: Deployment, *, current: bool) -> list[Task]:
        if not deployment.replicas:
            return []
        spec = replica_spec(deployment)
        tasks = (self._kernel.state.tasks[replica] for replica in deployment.replicas)
        return [
            task
            for task in tasks
            if not task.is_ended
            and not task.stopping
            and holds(task.spec, spec, takes_turns(deployment)) is current
        ]

    def next_wake(self, now: float) -> float:
        """When the next keep-alive ends."""
        asking = self._kernel.state.asking
        ends: list[float] = []
        for deployment in self._kernel.state.deployments.values():
            name, spec = deployment.name, deployment.spec
            if deployment.replicas and not asking.in_flight.get(name) and spec.min_replicas == 0:
                ends.append(asking.used_at.get(name, now) + spec.keep_alive_s)
            if len(deployment.replicas) > max(1, spec.min_replicas):
                ends += [at + spec.keep_alive_s for at in asking.further(name)]
        ends += [due for _, due in self._answered(now)]
        return min((end for end in ends if end > now), default=math.inf)

    def _start_replicas(self, deployment: Deployment, count: int, now: float) -> None:
        state = self._kernel.state
        new: list[str] = []
        for _ in range(count):
            spec = replica_spec(deployment)
            task = self._kernel.new_task(spec, deployment.principal, now)
            if deployment.failures:
                delay_s = limits.RETRY_BACKOFF_S * 2.0 ** min(deployment.failures - 1, 8)
                delayed = replace(task, not_before=now + delay_s)
                state.scheduler.queue.remove(task.id)
                task = state.put(task, delayed, now, "delayed", f"{delay_s:g} s after a failure")
            new.append(task.id)
        state.put_deployment(replace(deployment, replicas=[*deployment.replicas, *new]))

    def stop_replicas(self, tasks: list[Task], keep: int, now: float, why: str) -> None:
        """Stop all but `keep` of these: waiting ones first, then the newest."""
        state = self._kernel.state
        live = sorted(tasks, key=lambda t: (t.ready, -t.submitted), reverse=True)
        for task in live[keep:]:
            if task.state is not State.QUEUED:
                self._kernel.stop(task, why, now)
                continue
            ended = replace(task, state=State.CANCELLED, ended=now, stopping=why)
            state.put(task, ended, now, "cancelled", why)
            deployment = self._deployment_of(task)
            if deployment is not None:
                replicas = [replica for replica in deployment.replicas if replica != task.id]
                state.put_deployment(replace(deployment, replicas=replicas))


def _is_final(task: Task) -> bool:
    """Whether the worker itself said what is wrong: trying again would say the same."""
    return task.outcome is not None and task.outcome.exit_code == 1 and bool(task.outcome.error)
