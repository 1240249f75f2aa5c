"""The daemon: boot as a list that ends in the loop, and the same list in reverse to stop."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Until a loop hears it, SIGINT ends the process as SIGTERM does. A KeyboardInterrupt might be
    # raised inside of what an import calls back, where it is lost, and the daemon would go on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import errno
import fcntl
import hmac
import ipaddress
import logging
import logging.handlers
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from zenos import __version__
from zenos.api.app import create_app
from zenos.api.auth import PrincipalOf
from zenos.api.errors import at_start
from zenos.api.server import serve
from zenos.bus.broker import Authenticate, Broker
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.order import Policy
from zenos.bus.standing import keep_listening
from zenos.core import config as configuration
from zenos.core import durable, limits
from zenos.core import events as ev
from zenos.core.actions import Snapshot
from zenos.core.clock import SystemClock
from zenos.core.config import Config
from zenos.core.errors import ConflictError, InvalidError, RefusedError, StorageError, ZenosError
from zenos.core.holding import holder, write_holder
from zenos.core.home import Home
from zenos.core.messages import TopicSettings, settings_for
from zenos.core.task import HOLDING, Kind, Principal, State, Task
from zenos.core.tokens import Tokens
from zenos.kernel import loop, renaming
from zenos.kernel.control import Inbox, View
from zenos.kernel.step import Kernel
from zenos.models.registry import Registry
from zenos.store.sqlite import SqliteStore
from zenos.workers import disk, endings, fork_server, measuring, nodes, saving
from zenos.workers.executor import LocalExecutor
from zenos.workers.limits import raise_open_files
from zenos.workers.standing import daemon_file
from zenos.workers.system import LocalSystem, Mode

log = logging.getLogger("zenos.daemon")
STORE_LOOK_S: Final = 3.0


async def run(
    home: Home, config: Config, flags: Mapping[str, Any], ends_with: int | None = None
) -> None:
    """Boot, run until told to stop, and stop in reverse order. flags: win over a reload too.

    ends_with: a process whose end, however it comes, is a word to stop.
    """
    endings.end_boot_on_signals()
    async with AsyncExitStack() as stack:
        # 1. The home is ours alone.
        lock = stack.enter_context(claim(home))
        durable.remove_temporaries(home.root)
        token, users = read_or_make_token(home), Tokens(home.tokens)
        # 2. The address, before anything is started that would have to be stopped again.
        listener = stack.enter_context(listen(config))
        # 3. What the last daemon remembered.
        store = await open_store(home)
        stack.push_async_callback(store.close)
        snapshot = await remembered(store, config)
        write_holder(lock.fileno())  # from here on it changes what is there
        clock = SystemClock(floor=snapshot.now)
        settings = partial(settings_for, given=config.topics)
        topics = DurableTopics(store, clock, await store.load_messages(), settings)
        inbox, view = Inbox(), View(snapshot, config)
        kernel, registry = Kernel(config, snapshot), Registry(home.models, limits.MODEL_LANES_MAX)
        # 4. What forks workers warms up while the rest boots.
        zygote, launcher = fork_server.zygote(home), fork_server.launcher(home)
        await launcher.start()
        if config.zygote == "eager":
            await zygote.start()
        # 5. Workers: their bus, and what is left of the last daemon's.
        system = LocalSystem(
            home, config, store, inbox, view, registry, topics, lambda: zygote.ready
        )
        stack.push_async_callback(system.effects_done)
        stack.push_async_callback(launcher.close)
        stack.push_async_callback(zygote.close)  # both first: effects may wait for them
        executor = LocalExecutor(home, config, inbox.put, zygote, launcher)
        stack.push_async_callback(executor.close)
        keeping = asyncio.create_task(topics.run())
        stack.push_async_callback(_end_topics, keeping, topics)
        may_connect = who_may_connect(executor.authenticate, token)
        broker = new_broker(system, may_connect, config, topics, settings)
        home.write_sockets()
        await broker.start(home.bus)
        stack.push_async_callback(broker.close)
        stack.push_async_callback(_end_task, asyncio.create_task(keep_watch(broker, home)))
        system.executor, system.broker = executor, broker
        system.tidy(snapshot)
        inbox.put(view.boots_on(nodes.detect(config, executor.cgroups)))
        await executor.recover(kernel.recovering(), snapshot.next_task)
        stack.push_async_callback(_end_task, measuring.start(config, executor.running, inbox.put))
        # 6. The API.
        app = create_app(system, config, token, users, who_runs(executor.authenticate, view.tasks))
        api = asyncio.create_task(serve(app, [listener]))
        stack.push_async_callback(_end_task, api)
        address = listener.getsockname()[:2]
        url = await stack.enter_async_context(daemon_file(home, lock.fileno(), *address))
        # 7. The loop.
        looping = asyncio.create_task(
            loop.run(kernel, store, inbox, clock, view.apply, system.perform)
        )
        stack.push_async_callback(_end_loop, looping, inbox, system)
        watch_signals(system, flags, home)
        if ends_with is not None:
            stack.callback(endings.watch_process(ends_with, system.end_by_signal))
        log.info("zenos %s listens on %s, home %s", __version__, url, home.root)
        await _until_stopped(system, inbox, view, looping, {api, keeping})


def new_broker(
    system: LocalSystem,
    may_connect: Authenticate,
    config: Config,
    topics: DurableTopics,
    settings: Callable[[str], TopicSettings],
) -> Broker:
    """The bus, which tells the system what comes."""
    return Broker(
        may_connect,
        system.on_message,
        system.on_connect,
        system.on_disconnect,
        Policy(config.message_order, config.message_ageing),
        topics,
        may_use=system.may_use,
        settings=settings,
        on_program_gone=system.on_program_gone,
        is_paused=system.may_be_frozen,
    )


async def keep_watch(broker: Broker, home: Home) -> None:
    """Look after what others may take away: the bus's socket, the space on the disk."""
    await asyncio.gather(keep_listening(broker, home), disk.keep_telling(home.root))


async def _until_stopped(
    system: LocalSystem,
    inbox: Inbox,
    view: View,
    looping: asyncio.Task[None],
    others: set[asyncio.Task[None]],
) -> None:
    """Wait for the word to stop, then for the workers that it concerns; the last word counts."""
    asked = asyncio.create_task(system.stop_requests.get())
    try:
        await asyncio.wait({asked, looping, *others}, return_when=asyncio.FIRST_COMPLETED)
        while asked.done() and not looping.done():
            mode = asked.result()
            log.info("going down: %s", mode)
            asked_to_save = saving.that_save(view) if mode == "suspend" else []
            inbox.put(ev.Shutdown(suspend=mode == "suspend"))
            asked = asyncio.create_task(system.stop_requests.get())
            if await _have_ended(mode, view, inbox, {asked, looping}):
                if mode == "suspend":
                    saving.tell_unsaved(asked_to_save, view, system)
                return
    finally:
        asked.cancel()
    for ended in (looping, *others):
        if ended.done() and not ended.cancelled():
            ended.result()  # raises what went wrong


async def _have_ended(mode: Mode, view: View, inbox: Inbox, others: set[asyncio.Task[Any]]) -> bool:
    """Wait for the workers that `mode` waits for; False if one of `others` ended before them.

    While the store fails nothing is decided any more: then they are left to the next daemon. So is
    what somebody has paused, when the others finish: it would never end by itself.
    """
    if mode == "leave":
        return True
    # A program cannot save its state, and a replica would never end by itself.
    can_save = (Kind.TRAIN, Kind.SERVE, Kind.PREPROCESS)
    kinds = can_save if mode == "suspend" else tuple(kind for kind in Kind if kind != Kind.SERVE)

    def is_waited_for(task: Task) -> bool:
        stays = mode == "drain" and task.state is State.PAUSED and task.held is not None
        return task.state in HOLDING and task.kind in kinds and not stays

    while any(map(is_waited_for, view.tasks.values())):
        changed: asyncio.Task[Any] = asyncio.create_task(view.changed())
        done, _ = await asyncio.wait(
            {changed, *others}, timeout=STORE_LOOK_S, return_when=asyncio.FIRST_COMPLETED
        )
        changed.cancel()
        if done & others:
            return False
        if not done and inbox.storage_error is not None:
            log.warning("going down without what is remembered: %s", inbox.storage_error)
            return True
    return True


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _end_loop(looping: asyncio.Task[None], inbox: Inbox, system: LocalSystem) -> None:
    inbox.close()
    system.control.close()
    system.view.close()
    await looping


async def _end_topics(keeping: asyncio.Task[None], topics: DurableTopics) -> None:
    topics.close()
    await keeping


def who_may_connect(authenticate: Authenticate, token: str) -> Authenticate:
    """Tasks with their own token, and programs outside any task with the home's."""

    def may_connect(task: str, generation: int, given: str) -> bool:
        if task:
            return authenticate(task, generation, given)
        return hmac.compare_digest(given.encode(), token.encode())

    return may_connect


def who_runs(authenticate: Authenticate, tasks: Mapping[str, Task]) -> PrincipalOf:
    """On whose behalf a running task asks."""

    def principal_of(task: str, generation: int, secret: str) -> Principal | None:
        known = tasks.get(task)
        return known.principal if known and authenticate(task, generation, secret) else None

    return principal_of


def claim(home: Home) -> IO[bytes]:
    """Lock the home; ConflictError when another daemon has it, StorageError if it can't be used.

    InvalidError for one whose name is no text: the database and JSON could not name it.
    """
    try:
        str(home.root).encode()
    except UnicodeEncodeError:
        raise InvalidError(
            f"cannot use the home {str(home.root)!a}: its name is not UTF-8; choose another with "
            "ZENOS_HOME"
        ) from None
    try:
        for path in (home.root, home.models, home.runs, home.checkpoints, home.cache):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A home that was there may let others in: what is in it doesn't.
        for path in (home.models, home.runs, home.checkpoints, home.cache):
            path.chmod(0o700)
        for path in home.root.glob(f"{home.database.name}*"):
            path.chmod(0o600)
        # Whoever can open it could lock it.
        file = open(home.lock, "a+b", opener=durable.private)  # noqa: SIM115
    except OSError as error:
        raise StorageError(
            f"cannot use the home {home.root}: {error.strerror}; choose one with ZENOS_HOME"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        pid = holder(home)
        which, end = (f" (process {pid})", f", 'kill {pid}' ends it") if pid else ("", "")
        raise ConflictError(
            f"cannot start: a daemon{which} runs on {home.root} already; 'zenos status' shows it"
            f"{end}"
        ) from None
    return file


async def open_store(home: Home) -> SqliteStore:
    """What is remembered, the owner's alone."""
    usual = os.umask(0o077)  # nothing else runs yet
    try:
        return await SqliteStore.open(home.database)
    finally:
        os.umask(usual)


async def remembered(store: SqliteStore, config: Config) -> Snapshot:
    """What the store holds, with this machine under the name that it has by now."""
    snapshot = await store.load()
    renamed = renaming.of_this_machine(snapshot, config.node)
    if renamed is None:
        return snapshot
    log.info("this machine is now called %s, before %s", config.node, renamed.deleted_nodes)
    await store.commit(renamed)
    return await store.load()


def read_or_make_token(home: Home) -> str:
    """The API's token, made at the first start, readable by its owner alone."""
    try:
        if not home.token.exists():
            durable.write_file(home.token, secrets.token_urlsafe(32).encode(), mode=0o600)
        home.token.chmod(0o600)
        token = home.token.read_text().strip()
    except OSError as error:
        raise StorageError(f"cannot read or write {home.token}: {error.strerror}") from error
    except UnicodeDecodeError:
        token = ""
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidError(f"cannot use the token in {home.token}: delete it, a new one is made")
    return token


def listen(config: Config) -> socket.socket:
    """The API's listening socket. Only the loopback is bound without the word `public`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidError(f"cannot resolve the host {config.host!r}: {error.strerror}") from error
    except UnicodeError:  # an empty label, or one too long, or what is no text
        raise InvalidError(
            f"cannot resolve the host {config.host[:300]!r}: it is no name of a host; give an "
            "address, such as 127.0.0.1"
        ) from None
    if not ipaddress.ip_address(address[0]).is_loopback and not config.public:
        raise RefusedError(
            f"cannot listen on {config.host} without TLS: everyone who reaches it could read the "
            "token on its way; put a TLS proxy before 127.0.0.1, or set 'public: true' "
            "(--i-know-this-is-public)"
        )
    # With the protocol said, asyncio turns Nagle's delay off; else each answer waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidError(
                f"cannot listen on {config.host}: this machine has no such address; choose another "
                "with --host"
            ) from error
        raise ConflictError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; "
            "choose another with --port, or 0 for any free one"
        ) from error
    return listener


def watch_signals(system: LocalSystem, flags: Mapping[str, Any], home: Home) -> None:
    """SIGTERM and SIGINT: suspend what can be, and end. SIGHUP: read the settings again."""
    running = asyncio.get_running_loop()

    def stop() -> None:
        system.end_by_signal()

    def reload() -> None:
        try:
            fresh = configuration.resolve(read_settings(home.config), os.environ, flags)
            new, taken, others = configuration.reloaded(system.config, fresh)
            system.configure(new)
            logging.getLogger("zenos").setLevel(new.log_level.upper())
            shown = ", ".join(f"{name} {getattr(new, name)}" for name in taken)
            log.info("settings read again: %s", shown or "nothing has changed")
            if others:
                log.warning("needs a restart: %s", ", ".join(others))
        except ZenosError as error:
            log.error("%s; going on with the old settings", error)  # noqa: TRY400

    running.add_signal_handler(signal.SIGTERM, stop)
    running.add_signal_handler(signal.SIGINT, stop)
    running.add_signal_handler(signal.SIGHUP, reload)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings file as a mapping; empty when there is none."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}  # that the home itself cannot be used is said where it is claimed
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"cannot read {path}: {error}") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise InvalidError(f"cannot read {path}: it is not YAML: {where[:300]}") from error
    if not isinstance(values, dict):
        raise InvalidError(f"cannot read {path}: it must be a mapping of settings")
    return values


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log of mode 0600, each new file of it as well."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=durable.private)


def start_logging(home: Home, level: str, *, foreground: bool) -> None:
    """To `daemon.log` in the home (16 MiB, three old ones), or to stderr in the foreground."""
    logging.raiseExceptions = False  # a full disk takes the log, not stderr as well
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler()
    else:
        handler = PrivateLog(
            home.daemon_log, maxBytes=limits.DAEMON_LOG_BYTES_MAX, backupCount=3, encoding="utf-8"
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("zenos").setLevel(level.upper())


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m zenos.daemon`. Exit codes as in cli/errors.py."""
    parser = argparse.ArgumentParser(prog="zenos-daemon", allow_abbrev=False)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--foreground", action="store_true")
    parser.add_argument("--errors", choices=("plain", "text", "json"), default="plain")
    parser.add_argument("--ends-with", type=int, metavar="PID")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    for name in ("host", "port", "gpus", "cpus", "memory"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--i-know-this-is-public", dest="public", action="store_true", default=None)
    given = parser.parse_args(argv)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the loop has its own way with it
    names = ("host", "port", "gpus", "cpus", "memory", "public")
    flags: dict[str, Any] = {name: getattr(given, name) for name in names}
    raise_open_files()
    try:
        home = Home(given.home.absolute()) if given.home else Home.default()
        for item in given.set:
            name, _, value = item.partition("=")
            flags[name] = value
        config = configuration.resolve(read_settings(home.config), os.environ, flags)
        claim(home).close()
        # Not where it was started from: that folder could never be unmounted, and what lies in it
        # must not lead the daemon's own processes astray.
        os.chdir(home.root)
        start_logging(home, config.log_level, foreground=given.foreground)
        asyncio.run(run(home, config, flags, given.ends_with))
    except (KeyboardInterrupt, asyncio.CancelledError):
        log.info("told to end while starting")
    except ZenosError as error:
        if not given.foreground and logging.getLogger().handlers:
            log.error("%s", error)  # noqa: TRY400 - a clear message, no traceback
        line = str(error) if given.errors == "plain" else at_start(error, given.errors)
        print(line, file=sys.stderr)  # noqa: T201 - the one line that `zenos up` shows
        # What was given is wrong; not so a home or a port that could be used at another time.
        return 4 if isinstance(error, RefusedError) else 2 if isinstance(error, InvalidError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
